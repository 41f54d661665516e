from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import studio
from studio.errors import InputError, MediaError, ModelError, StoreError, TimedOut, UnknownName, UsageError
from studio.media.png import with_text
from studio.recipe import BatchWidth
from studio.spec import JobSpec
from studio.store.replay import check_bounds, last_bits


@pytest.fixture
def host(sample_plugin):
    with studio.Studio(plugins=[sample_plugin], device="cpu") as made:
        yield made


@pytest.fixture
def file(host, tmp_path):
    return host.generate("noise", prompt="x", seed=3).save(tmp_path / "a.png")


def altered(file, **changes):
    """The same picture with another recipe."""
    image = studio.Image.open(file)
    recipe = json.loads(image.recipe.to_json())
    for name, value in changes.items():
        if name == "weights":
            recipe["spec"]["model"] = {"sha256": value}
        else:
            place = recipe["spec"] if name in JobSpec.model_fields and name != "parents" else recipe
            place[name] = value
    path = file.with_name("altered.png")
    path.write_bytes(with_text(image.data, {"studio": json.dumps(recipe)}))
    return path


@pytest.mark.parametrize(
    ("name", "inputs"), [("noise", {"prompt": "x", "side": 24}), ("counter", {"count": 9, "cut": True})]
)
def test_a_replay_is_identical(host, tmp_path, name, inputs):
    made = host.generate(name, seed=5, **inputs)
    for what in (made.save(tmp_path / f"a{made.suffix}"), made.sha256, made.sha256[:8], str(made.path)):
        report = host.replay(what)
        assert report.identical
        assert report.max_abs_diff == 0
        assert report.changed_facts == []
        assert report.media == report.original == made


def test_a_replay_is_a_request_like_any_other(host, file):
    assert host.replay(file, client="ann", priority="background", time_limit_s=60).identical
    with pytest.raises(UnknownName, match="no priority is called `urgent`"):
        host.replay(file, priority="urgent")
    with pytest.raises(InputError, match="`time_limit_s` is -1"):
        host.replay(file, time_limit_s=-1)


def test_media_given_are_found_by_hash(host):
    source = host.generate("noise", prompt="x", seed=1)
    assert host.replay(host.generate("invert", image=source).sha256).identical


def test_a_picture_saved_anew_is_known_by_its_pixels(host, file):
    bare = file.with_name("bare.png")
    with PIL.Image.open(file) as image:
        image.save(bare)
    assert b"studio" not in bare.read_bytes()
    assert host.replay(bare).identical


def test_without_recipe_there_is_no_replay(host, tmp_path):
    path = studio.Image.from_array(np.zeros((3, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(StoreError, match="has no recipe"):
        host.replay(path)


def test_changed_facts_are_named(host, file):
    recipe = studio.Image.open(file).recipe
    libraries = recipe.libraries | {"numpy": "0.1"}
    report = host.replay(altered(file, libraries=libraries, weights={"unet": "a" * 64}, seed=4), elsewhere=True)
    assert not report.identical
    assert report.max_abs_diff > 0
    assert 0 < report.mean_abs_diff <= report.max_abs_diff
    assert f"libraries.numpy: 0.1 -> {recipe.libraries['numpy']}" in report.changed_facts
    assert any(fact.startswith("weights.unet: aaaa") and fact.endswith("absent") for fact in report.changed_facts)
    assert len(report.changed_facts) == 2


def test_a_changed_plugin_is_named(host, file, sample_plugin, tmp_path):
    other = tmp_path / "sample_plugin.py"
    other.write_text(sample_plugin.read_text() + "\n# changed\n")
    with studio.Studio(plugins=[other], device="cpu") as host:
        report = host.replay(file)
    assert report.identical
    assert len(report.changed_facts) == 1
    assert report.changed_facts[0].startswith("plugin.version: sha256:")


def test_another_size_has_no_difference_in_numbers(host, file):
    report = host.replay(altered(file, inputs={"prompt": "x", "side": 32}), elsewhere=True)
    assert (report.identical, report.max_abs_diff) == (False, None)


def test_a_changed_picture_is_told(host, file):
    image = studio.Image.open(file)
    pixels = image.samples().copy()
    pixels[0, 0] ^= 1
    changed = studio.Image.from_array(pixels).attach(image.recipe, None).save(file.with_name("c.png"))
    report = host.replay(changed, elsewhere=True)
    assert not report.identical
    assert report.max_abs_diff == 1
    assert report.changed_facts[0].startswith("content: edited since")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"generator": "nosie"}, UsageError),
        ({"dtype": "__class__"}, UnknownName),
        ({"inputs": {"prompt": "x", "side": 10**9}}, InputError),
        ({"parents": ["0" * 64] * 101}, InputError),
        ({"generator": "counter", "inputs": {"count": 65}}, InputError),
        ({"generator": "counter", "inputs": {"count": "65"}}, InputError),
        ({"inputs": {"prompt": "x", "evil": 1}}, UnknownName),
        ({"generator": "invert", "inputs": {"image": "/etc/passwd"}}, InputError),
        ({"generator": "invert", "inputs": {"image": {"sha256": "0" * 64, "media_type": "image/png"}}}, StoreError),
        ({"seed": -1}, MediaError),
        ({"seed": "7; rm"}, MediaError),
        ({"plugin": 3}, MediaError),
    ],
)
def test_hostile_recipes_are_refused(host, file, changes, kind):
    with pytest.raises(kind):
        host.replay(altered(file, **changes), elsewhere=True)


class Wide(studio.Inputs):
    """Inputs with higher limits than a recipe from elsewhere may use."""

    steps: int = studio.field(1, ge=1, le=1000, help="steps")
    seconds: float = studio.field(1, help="not bounded")
    size: str = studio.field("64x64", help="size")


@pytest.mark.parametrize(
    "asked",
    [{"steps": 201}, {"steps": "1000"}, {"steps": " 201 "}, {"steps": 201.0}, {"size": "2048x1025"},
     {"size": "2048*2048"}, {"size": " 2048 × 1032 "}, {"size": "99999X1000"}],
)  # fmt: skip
def test_a_recipe_from_elsewhere_is_bounded_however_it_spells_numbers(host, asked):
    recipe = host.generate("noise", prompt="x", seed=3).recipe
    with pytest.raises(InputError, match="the limit for a recipe from elsewhere is"):
        check_bounds(recipe, Wide.parse(asked))
    check_bounds(recipe, Wide.parse({"steps": "200", "size": "2048x1024", "seconds": 1e9}))


def test_a_recorded_device_may_be_anything(host, file, sample_plugin):
    with studio.Studio(plugins=[sample_plugin]) as free:
        report = free.replay(altered(file, device="cuda:77; drop"), elsewhere=True)
    assert report.identical
    assert report.changed_facts[0].startswith("device: cuda:77; drop -> ")


def test_a_batch_is_told_to_differ_in_the_last_bits(host, file):
    recipe = studio.Image.open(file).recipe
    assert last_bits(recipe) == ""
    batch = recipe.model_copy(update={"batch_width": BatchWidth(min=1, max=4)})
    assert last_bits(batch).startswith("generated in a batch of 4")


@pytest.mark.parametrize("kind", ["a pipe", "a device", "Too many levels"])
def test_what_is_no_file_is_called_what_it_is(host, tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else path)
    for look in (host.load, host.show, host.replay):
        with pytest.raises(MediaError, match=kind):
            look(path)


@pytest.mark.parametrize("what", ["gone.png", "", "abc", "."])
def test_what_is_not_there_is_told(host, what):
    with pytest.raises(UsageError):
        host.replay(what)


def test_truncated_files_are_refused(host, file):
    data = file.read_bytes()
    for part in (0, 20, len(data) // 2, len(data) - 4):
        cut = file.with_name("cut.png")
        cut.write_bytes(data[:part])
        with pytest.raises(MediaError, match=r"cut\.png"):
            host.replay(cut)


def test_what_was_not_made_here_runs_only_where_that_is_asked_for(host, file, sample_plugin, tmp_path):
    with pytest.raises(UsageError, match="was not made in this data folder: its recipe runs `noise`"):
        host.replay(altered(file, seed=4))
    with studio.Studio(home=tmp_path / "other", plugins=[sample_plugin], device="cpu") as other:
        with pytest.raises(UsageError, match="was not made in this data folder"):
            other.replay(file)
        assert other.replay(file, elsewhere=True).identical
    assert host.replay(altered(file, libraries={}, device="cpu")).identical  # what runs is what the store holds


def test_what_is_given_brings_no_recipe_into_the_store(host, file, sample_plugin, tmp_path):
    with studio.Studio(home=tmp_path / "other", plugins=[sample_plugin], device="cpu") as other:
        made = other.generate("invert", image=studio.Image.open(altered(file, generator="counter", inputs={})))
        assert other.store.recipe(made.recipe.parents[0]) is None
        assert other.replay(made.sha256).identical


class Weighty(studio.Generator):
    """Say where the model is."""

    name = "weighty"
    output = studio.Text

    class Inputs(studio.Inputs):
        model: str = studio.model_field("a model")

    def load(self, ref, device, dtype):
        return ref.source

    def generate(self, model, inputs, rng):
        return studio.Text(model)


@pytest.fixture
def weighty(host):
    host.plugins.generators["weighty"] = Weighty()
    host.plugins._owners["weighty"] = host.plugins.owner("noise")
    return host


def test_a_recipe_from_elsewhere_opens_no_path(weighty, file, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    for model in (str(secret), "~/secret", "/dev/stdin", "../secret", f"file:{secret}", "nowhere"):
        forged = altered(file, generator="weighty", inputs={"model": model})
        with pytest.raises(ModelError, match=r"by its path|not downloaded"):
            weighty.replay(forged, elsewhere=True)


def test_a_recipe_from_elsewhere_finds_a_pulled_model_by_its_hashes(weighty, file, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    entry = studio.models.Models(weighty.home).pull(f"file:{tmp_path / 'm'}")
    weights = {"config.json": entry.files["config.json"].sha256}
    forged = altered(file, generator="weighty", inputs={"model": "/somewhere/else"}, weights=weights)
    assert str(weighty.home) in weighty.replay(forged, elsewhere=True).media.text


def test_what_takes_too_long_is_ended(host, file, monkeypatch):
    monkeypatch.setattr(studio.store.replay, "MOST_SECONDS", 0)
    with pytest.raises(TimedOut, match="longer than 0 seconds"):
        host.replay(altered(file, generator="counter", inputs={"count": 50}), elsewhere=True)


def test_a_workflow_file_names_no_path_of_a_model(weighty, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    text = "inputs: {{model: {{type: text, default: '{0}'}}}}\n"
    text += "nodes: {{a: {{use: weighty, inputs: {{model: '{1}'}}}}}}\n"
    for default, named in (("", str(secret)), (str(secret), "${model}"), ("", "${model}/secret")):
        (tmp_path / "w.yaml").write_text(text.format(default, named) + "outputs: {a: '${a}'}\n")
        given = {"model": str(tmp_path)} if named.endswith("/secret") else {}
        (failed,) = weighty.run(tmp_path / "w.yaml", **given).failed[:1]
        assert "names a model by its path" in failed.error.message
    (tmp_path / "w.yaml").write_text(text.format("", "${model}") + "outputs: {a: '${a}'}\n")
    assert weighty.run(tmp_path / "w.yaml", model=str(secret))["a"].text == str(secret)
    built = studio.Workflow("own")
    built.output("a", built.add("weighty", model=str(secret)))
    assert weighty.run(built)["a"].text == str(secret)


def test_show_opens_nothing_that_a_recipe_names(host, file, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "config.json").write_text("{}")
    inputs = {"model": str(secret), "image": str(secret / "config.json"), "prompt": "x"}
    forged = altered(file, generator=str(secret / "config.json"), inputs=inputs, parents=[str(secret), "0" * 64])
    code = f"""
import os, sys
opened = []
events = ("open", "os.listdir", "os.scandir")
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in events else None)
from studio.cli.main import run
try:
    run(["show", {str(forged)!r}])
finally:
    print([each for each in opened if {str(secret)!r} in each], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert str(secret) in ran.stdout  # it is told
    assert ran.stderr.splitlines()[-1] == "[]"
