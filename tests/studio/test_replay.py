from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest

import studio
from studio.errors import InputError, MediaError, StoreError, UnknownName, UsageError
from studio.media.png import with_text


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
    recipe = json.loads(image.recipe.to_json()) | changes
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
    with pytest.raises(StoreError, match="carries no recipe"):
        host.replay(path)


def test_changed_facts_are_named(host, file):
    recipe = studio.Image.open(file).recipe
    libraries = recipe.libraries | {"numpy": "0.1"}
    report = host.replay(altered(file, libraries=libraries, weights={"unet": "a" * 64}, seed=4))
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
    report = host.replay(altered(file, inputs={"prompt": "x", "side": 32}))
    assert (report.identical, report.max_abs_diff) == (False, None)


def test_a_changed_picture_is_told(host, file):
    image = studio.Image.open(file)
    pixels = image.samples().copy()
    pixels[0, 0] ^= 1
    changed = studio.Image.from_array(pixels).attach(image.recipe, None).save(file.with_name("c.png"))
    report = host.replay(changed)
    assert not report.identical
    assert report.max_abs_diff == 1
    assert report.changed_facts[0].startswith("content: changed since")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"generator": "nosie"}, UsageError),
        ({"dtype": "__class__"}, UnknownName),
        ({"inputs": {"prompt": "x", "side": 10**9}}, InputError),
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
        host.replay(altered(file, **changes))


def test_a_recorded_device_may_be_anything(host, file, sample_plugin):
    with studio.Studio(plugins=[sample_plugin]) as free:
        report = free.replay(altered(file, device="cuda:77; drop"))
    assert report.identical
    assert report.changed_facts[0].startswith("device: cuda:77; drop -> ")


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
