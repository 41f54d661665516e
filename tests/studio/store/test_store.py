from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio import files
from studio.errors import StoreError, UsageError
from studio.home import default_home
from studio.locks import try_lock
from studio.recipe import PluginRef, Recipe
from studio.store import Store

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def picture(value=0, size=4):
    return studio.Image.from_array(np.full((size, size, 3), value, np.uint8))


def with_recipe(media, seed=7):
    plugin = PluginRef(name="p", version="1")
    recipe = Recipe(
        generator="g", plugin=plugin, kind=media.kind, inputs={}, seed=seed, output=media.ref, created="then"
    )
    return media.attach(recipe, None)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@settings(max_examples=30)
@given(texts=st.lists(TEXT, max_size=6))
def test_what_is_put_is_got(tmp_path_factory, texts):
    store = Store(tmp_path_factory.mktemp("store"))
    for text in texts:
        artifact = store.put(with_recipe(studio.Text(text)))
        again = store.open(artifact.sha256)
        assert again == studio.Text(text)
        assert again.recipe == artifact.recipe
        assert again.path == artifact.path
    assert list(store) == sorted({studio.Text(text).sha256 for text in texts})


@pytest.mark.parametrize(
    "media",
    [
        picture(),
        studio.Text("x"),
        studio.Embedding(np.ones(3)),
        studio.Audio(np.zeros((1, 4)), 8000),
        studio.Video(np.zeros((1, 16, 16, 3), np.uint8), 8),
    ],
    ids=lambda media: media.kind,
)
def test_every_medium_is_kept(tmp_path, media):
    store = Store(tmp_path)
    artifact = store.put(with_recipe(media))
    assert store.get(artifact.sha256[:6]).path == artifact.path
    assert type(store.open(artifact.sha256)) is type(media)


def test_the_same_content_is_one_object_with_its_first_recipe(tmp_path):
    store = Store(tmp_path)
    first = store.put(with_recipe(picture(), seed=1))
    second = store.put(with_recipe(picture(), seed=2))
    assert second.recipe.spec.seed == 1
    assert everything(tmp_path / "objects") == sorted(
        [f"{first.sha256[:2]}/{first.sha256}.json", f"{first.sha256[:2]}/{first.sha256}.png"]
    )
    assert studio.Image.open(first.path).recipe.created is None
    assert store.get(first.sha256).recipe.created == "then"


def test_a_video_that_is_stored_already_is_not_decoded_again(tmp_path, monkeypatch):
    store, frames = Store(tmp_path), np.zeros((1, 16, 16, 3), np.uint8)
    store.put(with_recipe(studio.Video(frames, 8), seed=1))
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *command, **_: started.append(command))  # videos are decoded in one
    assert store.put(with_recipe(studio.Video(frames, 8), seed=2)).recipe.spec.seed == 1
    assert not started


def test_a_video_matches_its_file_whatever_the_recipe():
    video = studio.Video(np.zeros((1, 16, 16, 3), np.uint8), 8)
    for other in (video, with_recipe(video)):
        assert video.matches(other.file_bytes())
        assert other.matches(video.file_bytes())
    assert not video.matches(studio.Video(np.full((1, 16, 16, 3), 200, np.uint8), 8).file_bytes())


def test_a_recipe_is_added_to_what_had_none(tmp_path):
    store = Store(tmp_path)
    assert store.put(picture()).recipe is None
    assert store.put(with_recipe(picture())).recipe.spec.seed == 7
    assert store.put(picture()).recipe.spec.seed == 7


@pytest.mark.parametrize("name", ["", "abc", "xyzxyz", "../../etc", "A" * 64, "*" * 8, "a" * 65])
def test_what_is_no_id_is_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError):
        Store(tmp_path).get(name)


def test_a_missing_artifact_is_told(tmp_path):
    with pytest.raises(StoreError, match="has no artifact `abcdef`"):
        Store(tmp_path).get("abcdef")
    assert Store(tmp_path).find("a" * 64) is None
    assert list(Store(tmp_path)) == []


def test_an_ambiguous_id_lists_its_candidates(tmp_path, monkeypatch):
    store = Store(tmp_path)
    folder = tmp_path / "objects" / "ab"
    folder.mkdir(parents=True)
    for end in "12":
        (folder / f"{'abcdef' + end * 58}.txt").write_text("")
    with pytest.raises(UsageError, match="2 artifacts match: abcdef1111111111, abcdef2222222222"):
        store.get("abcdef")


@pytest.mark.parametrize("damage", [b"", b"other", None])
def test_damage_is_named_and_mended(tmp_path, damage):
    store = Store(tmp_path)
    artifact = store.put(with_recipe(picture()))
    data = artifact.path.read_bytes()
    artifact.path.write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(StoreError, match=artifact.sha256):
        store.get(artifact.sha256)
    store.put(with_recipe(picture()))
    assert store.open(artifact.sha256) == picture()


def test_a_damaged_recipe_is_named(tmp_path):
    store = Store(tmp_path)
    artifact = store.put(with_recipe(picture()))
    artifact.path.with_suffix(".json").write_text("{")
    with pytest.raises(StoreError, match=f"the recipe of the artifact {artifact.sha256} is damaged"):
        store.get(artifact.sha256)
    with pytest.raises(StoreError):
        store.put(picture())
    store.put(with_recipe(picture(), seed=8))
    assert store.get(artifact.sha256).recipe.spec.seed == 8


@pytest.mark.parametrize("call", ["open", "fsync", "link", "fdopen"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_write_leaves_nothing_partial(tmp_path, monkeypatch, call, code, nth):
    store = Store(tmp_path)
    real, calls = getattr(os, call), []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) >= nth:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, broken)
        with pytest.raises(StoreError) as caught:
            store.put(with_recipe(picture()))
    assert "choose another" in caught.value.hint
    assert not [name for name in everything(tmp_path) if ".tmp" in name or name.endswith(".png")]
    artifact = store.put(with_recipe(picture()))
    assert store.open(artifact.sha256) == picture()


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    first = Store(tmp_path).put(picture())
    left = [first.path.parent / name for name in (".studio.0123456789ab.tmp", f".{first.path.name}.abcdef123456.tmp")]
    for path in left:
        path.write_bytes(b"x")
    Store(tmp_path).put(studio.Text("something in another folder"))
    assert not any(path.exists() for path in left)
    Store(tmp_path).put(studio.Text("and again"))  # folders that did not change are not looked into again


def test_what_another_process_is_writing_is_found_once_that_one_is_killed(tmp_path):
    first = Store(tmp_path).put(picture())
    left = first.path.parent / ".studio.0123456789ab.tmp"
    descriptor = os.open(left, os.O_RDWR | os.O_CREAT)
    assert try_lock(descriptor)
    Store(tmp_path).put(studio.Text("while it writes"))
    assert left.exists()
    os.close(descriptor)  # as a kill does
    Store(tmp_path).put(studio.Text("afterwards"))
    assert not left.exists()


def test_a_folder_in_the_way_is_told(tmp_path):
    (tmp_path / "objects").write_text("")
    with pytest.raises(StoreError, match="cannot create the folder"):
        Store(tmp_path).put(picture())


def test_the_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("STUDIO_HOME")
    assert "multimodal-studio" in str(default_home())
