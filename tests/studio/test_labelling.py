"""Which outputs are labelled as made by AI, by rule, by option and by setting; and that replays do not notice."""

from __future__ import annotations

import json

import PIL.Image
import pytest

import studio
from studio import configuration
from studio.engine import Preview
from studio.errors import InputError, UsageError
from studio.media.label import COMPOSITE, TRAINED, Label, is_labelled


@pytest.fixture
def host(sample_plugin):
    with studio.Studio(plugins=[sample_plugin], device="cpu") as made:
        yield made


@pytest.fixture
def photo():
    return studio.Image(PIL.Image.radial_gradient("L").resize((16, 16)).convert("RGB"))


def source(media):
    return media.label.source if media.label else None


def test_what_models_make_alone_is_trained_and_what_begins_with_a_picture_is_composite(host, photo, tmp_path):
    made = host.generate("noise", prompt="x", seed=1)
    assert made.label == Label(TRAINED, "multimodal-studio", made.sha256)
    assert is_labelled(made.path.read_bytes())
    assert source(host.generate("invert", image=made)) == TRAINED
    edited = host.generate("invert", image=photo)
    assert source(edited) == COMPOSITE
    assert source(host.generate("invert", image=edited)) == COMPOSITE
    photo.save(tmp_path / "photo.png")
    assert not is_labelled((tmp_path / "photo.png").read_bytes())
    assert source(host.generate("invert", image=tmp_path / "photo.png")) == COMPOSITE


def test_an_input_without_label_counts_by_its_recipe(host, photo):
    made = host.generate("noise", prompt="x", seed=2, ai_label=False)
    assert made.label is None
    assert source(host.generate("invert", image=made)) == TRAINED
    edited = host.generate("invert", image=photo, ai_label=False)
    assert source(host.generate("invert", image=edited)) == COMPOSITE


def test_pictures_of_other_programs_count_by_their_label(host, photo):
    assert source(host.generate("invert", image=photo.labelled(Label(TRAINED, "another", "1")))) == TRAINED
    assert source(host.generate("invert", image=photo.labelled(Label("", "another", "1")))) == COMPOSITE


def test_a_tool_is_labelled_as_its_inputs_are(host, photo):
    made = host.generate("noise", prompt="x", seed=3)
    assert host.generate("grid", images=[photo, photo]).label is None
    assert source(host.generate("grid", images=[made, made])) == TRAINED
    assert source(host.generate("grid", images=[made, photo])) == COMPOSITE


def test_texts_are_not_labelled(host):
    assert host.generate("counter").label is None
    assert host.submit("counter").request.label is None


SLOW = """
import dataclasses, PIL.Image, studio

class Slowly(studio.Generator):
    "Draw in steps."
    name, output = "slowly", studio.Image

    def start(self, model, inputs, rng):
        return studio.State(steps=3)

    def step(self, model, states):
        return [dataclasses.replace(state, position=state.position + 1) for state in states]

    def preview(self, model, state):
        return studio.Image(PIL.Image.new("L", (8, 8), state.position))

    finish = preview

@studio.hookimpl
def studio_generators():
    return [Slowly()]
"""


def test_previews_are_labelled(tmp_path):
    (tmp_path / "slowly.py").write_text(SLOW)
    with studio.Studio(plugins=[tmp_path / "slowly.py"], device="cpu") as host:
        for wanted in (True, False):
            events = host.stream("slowly", preview_every=1, ai_label=wanted)
            previews = [event.media for event in events if isinstance(event, Preview)]
            assert previews
            assert {source(each) for each in previews} == {TRAINED if wanted else None}


def test_the_last_request_decides_about_the_stored_file(host):
    for wanted in (True, False, None):
        made = host.generate("noise", prompt="x", seed=5, ai_label=wanted)
        assert (made.label is not None) == is_labelled(made.path.read_bytes()) == (wanted is not False)
        assert host.load(made.sha256).label == made.label
    host.generate("invert", image=studio.Image(made.pil))
    assert is_labelled(made.path.read_bytes()), "the same picture as an input takes no label away"


def test_what_is_neither_true_nor_false_is_refused(host):
    with pytest.raises(InputError, match="`ai_label` is 'no', but must be true or false"):
        host.submit("noise", prompt="x", ai_label="no")
    with pytest.raises(InputError, match="`ai_label` is 'no', but must be true or false"):
        studio.Studio(ai_label="no")


@pytest.mark.parametrize("labelled", [True, False])
def test_a_file_from_before_there_were_labels_replays_identically(host, tmp_path, labelled):
    made = host.generate("noise", prompt="x", seed=6, ai_label=labelled)
    old = made.labelled(None)
    old.save(tmp_path / "old.png")
    made.path.write_bytes(old.file_bytes())
    for what in (tmp_path / "old.png", made.sha256):
        report = host.replay(what)
        assert report.identical
        assert report.changed_facts == []
    assert source(report.media) == TRAINED
    assert host.replay(made.sha256, ai_label=False).media.label is None
    assert made.recipe.to_json() == host.load(made.sha256).recipe.to_json()


def test_equal_requests_give_equal_files(host, tmp_path, sample_plugin):
    host.generate("noise", prompt="x", seed=7).save(tmp_path / "one.png")
    with studio.Studio(home=tmp_path / "other", plugins=[sample_plugin], device="cpu") as other:
        other.generate("noise", prompt="x", seed=7).save(tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_outputs_of_a_workflow_are_labelled_also_cached_ones(host, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(
        "name: two\nnodes:\n  draw: {use: noise, inputs: {prompt: x}, seed: 8}\n"
        "  turn: {use: invert, inputs: {image: '${draw}'}}\noutputs: {made: '${turn}'}\n"
    )
    for wanted in (None, False, True):
        made = host.run(file, ai_label=wanted)["made"]
        assert source(made) == (None if wanted is False else TRAINED)
        assert is_labelled(made.path.read_bytes()) == (wanted is not False)


def test_the_host_and_its_data_folder_say_whether_and_by_whom(sample_plugin, tmp_path, monkeypatch):
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user" / name))
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text('ai_label = false\ncontent_producer = "ACME 有限公司"\n')

    def made(**options):
        with studio.Studio(home=home, plugins=[sample_plugin], device="cpu", **options) as host:
            return host.generate("noise", prompt="x", seed=9)

    assert made().label.producer == "multimodal-studio", "an untrusted folder decides nothing"
    configuration.trust(home)
    assert made().label is None
    marked = made(ai_label=True)
    assert marked.label.producer == "ACME 有限公司"
    assert json.loads(marked.label.aigc())["ContentProducer"] == "ACME 有限公司"
    wrong = {
        "ai_label = 3": "`ai_label` in .* is 3; it must be true or false",
        "content_producer = ''": "`content_producer` in .*; it must be 1 to 200 characters",
    }
    for text, reason in wrong.items():
        (home / "config.toml").write_text(text)
        with pytest.raises(UsageError, match=reason):
            made()


def test_a_resumed_request_keeps_its_choice():
    spec = studio.JobSpec(generator="noise", inputs={"prompt": "x"}, seed=1, ai_label=False)
    assert studio.JobSpec.parse(spec.to_json()).ai_label is False
    assert "ai_label" not in spec.portable().to_json()


def test_the_plugins_that_draw_no_picture_of_a_model_say_so():
    with studio.Studio(device="cpu") as host:
        tools = {name for name, each in host.generators.items() if not each.generative}
    assert tools == {"grid", "text-attention"}
