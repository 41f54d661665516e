from __future__ import annotations

import re
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

import studio
from studio.contract import check
from studio.errors import InputError, MediaError, UnknownName


class Sample(studio.Inputs):
    prompt: str = studio.field(help="what to draw", max_length=10)
    steps: int = studio.field(20, ge=1, le=1000, help="how many steps")
    guidance: float = studio.field(5.0, ge=0, lt=30, help="how strongly to follow the prompt")
    side: int = studio.field(64, ge=8, le=512, multiple_of=8, help="in pixels")
    sampler: str = studio.field("ddim", choices=["ddim", "euler"], help="how to step")
    mode: Literal["fast", "good"] = studio.field("good", help="which way")
    tiled: bool = studio.field(False, help="in tiles")
    image: studio.Image | None = studio.field(None, help="to start from")
    more: list[studio.Image] = studio.field(default_factory=list, help="others")
    note: studio.Text = studio.field(studio.Text(""), help="a text")
    odd: int = studio.field(1, help="an odd number")

    @field_validator("odd")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("it must be odd")
        return value


def picture(value=0):
    return studio.Image.from_array(np.full((2, 2), value, np.uint8))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "`prompt` is missing"),
        ({"prompt": "x" * 11}, "must be text of at most 10 characters"),
        ({"prompt": "x", "steps": 0}, "`steps` is 0, but must be a whole number from 1 to 1000"),
        ({"prompt": "x", "steps": 1.5}, "`steps` is 1.5, but must be a whole number from 1 to 1000"),
        ({"prompt": "x", "steps": "ten"}, "`steps` is 'ten'"),
        (
            {"prompt": "x", "guidance": float("nan")},
            "`guidance` is nan, but must be a finite number from 0 to below 30",
        ),
        ({"prompt": "x", "guidance": float("inf")}, "`guidance` is inf"),
        ({"prompt": "x", "guidance": -1}, "`guidance` is -1"),
        ({"prompt": "x", "side": 63}, "must be a whole number from 8 to 512, a multiple of 8"),
        ({"prompt": "x", "sampler": "dim"}, "must be one of `ddim`, `euler`"),
        ({"prompt": "x", "mode": "bad"}, "must be one of `fast`, `good`"),
        ({"prompt": "x", "odd": 2}, "`odd` is 2: it must be odd"),
        ({"prompt": "x", "image": 3}, "or the path of a file, not int"),
        ({"prompt": "x", "steps": 0, "side": 3}, "; `side` is 3"),
    ],
)
def test_refusals_give_value_and_range(values, words):
    with pytest.raises(InputError) as caught:
        Sample.parse(values)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.field in Sample.model_fields


def test_unknown_inputs_name_the_nearest():
    with pytest.raises(UnknownName, match="did you mean `guidance`"):
        Sample.parse({"prompt": "x", "guidence": 3})


@given(value=st.one_of(st.integers(), st.floats(), st.text(max_size=9), st.none(), st.lists(st.integers(), max_size=3)))
def test_any_value_is_taken_or_refused_in_one_line(value):
    for name in ("steps", "guidance", "sampler", "tiled", "side", "more"):
        try:
            made = Sample.parse({"prompt": "x", name: value})
        except InputError as error:
            assert f"`{name}`" in error.message  # noqa: PT017 (either outcome is right)
        except MediaError:
            assert name == "more"
        else:
            assert 1 <= made.steps <= 1000
            assert 0 <= made.guidance < 30


@pytest.mark.parametrize(
    ("value", "where"), [("a\ud800b", "U+D800 at character 2"), ("\udced", "U+DCED at character 1")]
)
def test_a_lone_surrogate_is_named_with_its_place(value, where):
    class Said(studio.Inputs):
        text: str = studio.field(help="words", max_length=9)  # without a length any text passes

    with pytest.raises(InputError, match=re.escape(f"`text` has a lone surrogate, {where}")):
        Said.parse({"text": value})


def test_long_values_are_cut_in_messages():
    with pytest.raises(InputError) as caught:
        Sample.parse({"prompt": "y" * 10**6})
    assert len(caught.value.message) < 200


def test_media_come_as_values_or_paths(tmp_path):
    path = picture(7).save(tmp_path / "a.png")
    for given_ in (picture(7), path, str(path)):
        assert Sample.parse({"prompt": "x", "image": given_}).image == picture(7)
    with pytest.raises(MediaError, match="cannot read"):
        Sample.parse({"prompt": "x", "image": tmp_path / "no.png"})
    assert Sample.parse({"prompt": "x", "note": "hello"}).note == studio.Text("hello")


def test_flags_tell_what_a_face_needs():
    flags = {flag.name: flag for flag in Sample.flags()}
    assert list(flags) == list(Sample.model_fields)
    assert (flags["prompt"].required, flags["prompt"].type) == (True, "str")
    steps = flags["steps"]
    assert (steps.type, steps.default, steps.minimum, steps.maximum) == ("int", 20, 1, 1000)
    assert flags["side"].multiple_of == 8
    assert flags["sampler"].choices == ("ddim", "euler")
    assert flags["mode"].choices == ("fast", "good")
    assert (flags["image"].type, flags["image"].media, flags["image"].multiple) == ("media", studio.Image, False)
    assert (flags["more"].media, flags["more"].multiple) == (studio.Image, True)
    assert flags["tiled"].type == "bool"
    assert all(flag.help for flag in flags.values())


def test_the_schema_follows():
    schema = Sample.model_json_schema()["properties"]
    assert schema["steps"]["minimum"] == 1
    assert schema["sampler"]["enum"] == ["ddim", "euler"]
    assert schema["note"]["x-studio-media"] == "text"


def test_recipes_give_the_inputs_back():
    made = Sample.parse({"prompt": "x", "image": picture(1), "more": [picture(2), picture(3)], "steps": 4})
    kept = {media.sha256: media for media in made.media()}
    assert set(kept) == {each.sha256 for each in (picture(1), picture(2), picture(3), studio.Text(""))}
    again = Sample.from_recipe(made.as_recipe(), lambda ref: kept[ref.sha256])
    assert again == made


@pytest.mark.parametrize("value", ["/etc/passwd", {"sha256": "../x", "media_type": "image/png"}, 3, ["x"]])
def test_a_recipe_opens_no_path(value):
    def fetch(ref):
        raise AssertionError(f"asked for {ref}")

    with pytest.raises(InputError, match="must name media by sha256"):
        Sample.from_recipe({"prompt": "x", "image": value}, fetch)


def test_values_are_frozen():
    made = Sample.parse({"prompt": "x"})
    with pytest.raises(ValueError, match="frozen"):
        made.steps = 3


def test_the_length_of_a_list_is_told_as_such():
    class Listed(studio.Inputs):
        words: list[str] = studio.field(help="words", min_length=2, max_length=9)
        word: str = studio.field("", help="a word", max_length=9)

    with pytest.raises(InputError, match=r"`words` is \['a'\], but must be a list of 2 to 9, each text$"):
        Listed.parse({"words": ["a"]})
    with pytest.raises(InputError, match=r"but must be text of at most 9 characters$"):
        Listed.parse({"words": ["a", "b"], "word": "x" * 10})


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"ge": 1, "le": 9}, "a whole number from 1 to 9"),
        ({"ge": 1}, "a whole number of at least 1"),
        ({"le": 9}, "a whole number up to 9"),
        ({"gt": 0, "lt": 9}, "a whole number above 0 and below 9"),
        ({"gt": 0, "le": 9, "multiple_of": 3}, "a whole number above 0 up to 9, a multiple of 3"),
        ({"ge": 1, "lt": 9}, "a whole number from 1 to below 9"),
        ({"gt": 0}, "a whole number above 0"),
    ],
)
def test_ranges_in_words(limits, words):
    kind = type("Inputs", (studio.Inputs,), {"__annotations__": {"n": int}, "n": studio.field(4, help="n", **limits)})
    assert kind.flags()[0].range == words


class Aliased(studio.Inputs):
    steps: int = studio.field(20, ge=1, le=1000, help="how many", aliases=("num_inference_steps", "n_steps"))
    size: str = studio.field("8x8", help="WIDTHxHEIGHT", max_length=20, aliases=("{width}x{height}",))
    negative: str | None = studio.field(None, help="what to avoid", aliases=("negative_prompt",))


@given(
    steps=st.none() | st.tuples(st.sampled_from(["steps", "num_inference_steps", "n_steps"]), st.integers(1, 1000)),
    size=st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)),
    apart=st.booleans(),
)
def test_aliases_are_taken_for_the_main_name(steps, size, apart):
    values = dict([steps] if steps else [])
    if size:
        values |= {"width": size[0], "height": size[1]} if apart else {"size": f"{size[0]}x{size[1]}"}
    found = Aliased.parse(values)
    assert found.steps == (steps[1] if steps else 20)
    assert found.size == (f"{size[0]}x{size[1]}" if size else "8x8")
    assert set(found.as_recipe()) == {"steps", "size", "negative"}, "recipes hold the main names"
    assert Aliased.from_recipe(values, fetch=lambda ref: None) == found


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 1, "num_inference_steps": 1}, "`steps` and `num_inference_steps` are one input, and both are given"),
        ({"n_steps": 1, "num_inference_steps": 1}, "are one input, and both are given"),
        ({"width": 8}, "`width` is given without `height`"),
        ({"height": 8}, "`height` is given without `width`"),
        ({"size": "8x8", "width": 8, "height": 8}, "`size` and `width` are one input"),
        ({"num_inference_steps": 0}, "`steps` is 0, but must be a whole number from 1 to 1000"),
    ],
)
def test_an_input_is_given_by_one_name(values, words):
    with pytest.raises(InputError) as caught:
        Aliased.parse(values)
    assert words in caught.value.message
    assert caught.value.field in Aliased.model_fields


def test_schema_and_unknown_names_know_the_main_names_only():
    assert set(Aliased.model_json_schema()["properties"]) == {"steps", "size", "negative"}
    assert "num_inference" not in str(Aliased.model_json_schema())
    with pytest.raises(UnknownName) as caught:
        Aliased.parse({"num_steps": 3})
    assert caught.value.candidates == ("steps", "size", "negative")
    assert Aliased.parse({"negative_prompt": None}).negative is None


def test_aliases_that_clash_are_no_good():
    class Clashing(studio.Generator):
        """Clash."""

        name, output = "clashing", studio.Text

        class Inputs(studio.Inputs):
            steps: int = studio.field(20, ge=1, le=9, help="how many", aliases=("count", "seed", "no-name"))
            count: int = studio.field(20, ge=1, le=9, help="how many")

        def generate(self, model, inputs, rng):
            return studio.Text("")

    told = "; ".join(check(Clashing()))
    assert "its alias `count` is also another input" in told
    assert "its input `seed` has a name that is reserved for the host" in told
    assert "its alias 'no-name' is not a name" in told
