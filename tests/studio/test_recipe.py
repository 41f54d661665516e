from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import MediaError
from studio.recipe import BatchWidth, MediaRef, PluginRef, Recipe

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), TEXT
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
REF = MediaRef(sha256="ab" * 32, media_type="image/png")


def recipe(**changes):
    values = {
        "generator": "image",
        "plugin": PluginRef(name="diffusion", version="1.2"),
        "kind": "image",
        "inputs": {"prompt": "a cat", "steps": 20, "guidance": 5.0, "size": "128x128", "negative": "dog"},
        "seed": 7,
        "output": REF,
    }
    return Recipe(**(values | changes))


@given(inputs=st.dictionaries(TEXT, JSON, max_size=4), facts=st.dictionaries(TEXT, JSON, max_size=4))
def test_recipes_come_back(inputs, facts):
    made = recipe(inputs=inputs, facts=facts, created="now", seconds=1.0)
    again = Recipe.parse(made.to_json())
    assert again == made
    assert again.to_json() == made.to_json()


def test_the_portable_form_has_no_times():
    made = recipe(created="2020", seconds=3.0).portable()
    assert "created" not in made.to_json()
    assert "seconds" not in made.to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"generator": 3}',
        b"\xff\xfe",
        "[" * 500_000,
        '{"a":' * 100_000,
        "x" * (2 << 20),
        recipe().to_json().replace('"seed":7', '"seed":-1'),
        recipe().to_json().replace('"schema_version":2', '"schema_version":3'),
        recipe().to_json().replace("abab", "../.."),
        recipe().to_json()[:-1] + ', "extra": 1}',
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(text):
    with pytest.raises(MediaError) as caught:
        Recipe.parse(text)
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message


def test_changed_facts_are_named():
    old = recipe(libraries={"torch": "2.0", "numpy": "1"}, weights={"unet": "a" * 64}, threads=None)
    new = recipe(
        libraries={"torch": "2.1", "numpy": "1", "av": "9"}, weights={"unet": "b" * 64}, dtype="bfloat16", threads=2,
        batch_width=BatchWidth(min=1, max=4), created="later", plugin=PluginRef(name="diffusion", version="1.3"),
    )  # fmt: skip
    assert old.changed_facts(new) == [
        "plugin.version: 1.2 -> 1.3",
        f"weights.unet: {'a' * 12}…aaaa -> {'b' * 12}…bbbb",
        "libraries.torch: 2.0 -> 2.1",
        "libraries.av: absent -> 9",
        "dtype: float32 -> bfloat16",
        "batch_width.max: 1 -> 4",
    ]
    assert old.changed_facts(old) == []


def test_the_text_that_other_tools_read():
    made = recipe(weights={"unet": "c" * 64}, facts={"sampler": "ddim"})
    assert made.parameters_text().splitlines() == [
        "a cat",
        "Negative prompt: dog",
        "Steps: 20, Sampler: DDIM, CFG scale: 5, Seed: 7, Size: 128x128, "
        "Model hash: cccccccccc, Model: diffusion image 1",
    ]
    done = recipe(facts={"steps": 4, "guidance": 4.5, "size": "96x64", "strength": 0.8, "sampler": "odd, one"})
    assert done.parameters_text().splitlines()[-1] == (
        'Steps: 4, Sampler: "odd, one", CFG scale: 4.5, Seed: 7, Size: 96x64, Model: diffusion image 1, '
        "Denoising strength: 0.8"
    )
    assert recipe(inputs={"image": {}}).parameters_text() is None
    assert "Negative" not in recipe(inputs={"prompt": "x", "negative": ""}).parameters_text()


OF_SCHEMA_1 = {
    "schema_version": 1, "generator": "image", "generator_version": "5",
    "plugin": {"name": "multimodal-studio", "version": "0.1.0"}, "kind": "image",
    "inputs": {"prompt": "a cat", "model": "starter", "steps": 20}, "seed": 7, "weights": {"unet": "c" * 64},
    "libraries": {"torch": "2.9"}, "device": "cpu", "dtype": "bfloat16", "threads": 2,
    "batch_width": {"min": 1, "max": 4}, "facts": {"sampler": "ddim"}, "notices": ["cut"], "invariant": True,
    "steps": 20, "output": {"sha256": "a" * 64, "media_type": "image/png"}, "parents": ["b" * 64],
}  # fmt: skip


def test_recipes_of_schema_1_are_read():
    read = Recipe.parse(json.dumps(OF_SCHEMA_1))
    spec = read.spec
    assert (spec.generator, spec.seed, spec.dtype, spec.threads, spec.invariant) == ("image", 7, "bfloat16", 2, True)
    assert spec.model.sha256 == {"unet": "c" * 64}
    assert spec.inputs == OF_SCHEMA_1["inputs"]
    assert (read.parents, read.notices, read.steps) == (("b" * 64,), ("cut",), 20)
    assert read.schema_version == 2
    assert Recipe.parse(read.to_json()) == read
    assert "seed" not in json.loads(read.to_json()), "it is written in the new form"


@pytest.mark.parametrize("missing", ["generator", "seed", "plugin", "output"])
def test_a_recipe_of_schema_1_that_lacks_a_field_is_refused(missing):
    with pytest.raises(MediaError, match=missing):
        Recipe.parse(json.dumps({name: value for name, value in OF_SCHEMA_1.items() if name != missing}))
