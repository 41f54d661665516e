"""Every path that the product reads is opened by `studio.files`, which waits for no pipe, or is named here."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from .test_calls import ROOT, calls

ELSEWHERE = {
    "plugins/studio_diffusion/vocabulary.py": "plain_words.txt, a file that ships",
    "studio/models/source.py": "a file that ships",
    "studio/diffusion/stepping.py": "a file that ships",
    "studio/loaders/adapters.py": "after `check_regular`",
    "studio/models/clients.py": "what pip or npm said, in a folder made here",
    "studio/devices": "the system's own files",
    "studio/plugins/": "plugins, which are code that the user named, after `is_file`",
    "studio/weights/checksums.py": "checksums of a package, after `is_file`",
    "studio/destination.py": "a file of that name, after `is_file`",
    "studio/training": "files of the run's own folder, whose checkpoints are looked at with `check_regular`",
    "plugins/studio_clip/model.py": "training: what was written just before, and the CLIP that it goes on with",
    "plugins/studio_diffusion/export.py": "what was written just before",
    "plugins/studio_dcgan/checkpoint.py": "after `check_regular`",
    "studio/diffusion/single_files.py": "a file that ships",
    "studio/loaders/single_file.py": "a file of an installed library, after `is_file`",
    "studio/media/png.py": "its own `read_text`, of bytes",
    "studio/server/web/routes.py": "files that ship",
    "studio/testing/fake_tensor.py": "the library's own reader, put on the fake device",
}


def reads(name: str, call: ast.Call) -> bool:
    """Whether a call opens a path to read from without looking at what is there."""
    if name in ("read_text", "read_bytes", "safe_open", "load_file"):
        return not ast.unparse(call.func).startswith("png.")
    if name != "open" or (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("os", "PIL.Image")):
        return False
    given = [*call.args, *(key.value for key in call.keywords if key.arg == "mode")]
    modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if isinstance(call.func, ast.Name):
        return not any(set(mode) & set("wax") for mode in modes[-1:])
    encoded = any(key.arg == "encoding" for key in call.keywords)
    return any(set(mode) <= set("rbt") for mode in modes) or (encoded and not modes)


def test_paths_are_opened_by_studio_files() -> None:
    found = {(file, call.lineno) for file, name, call in calls() if reads(name, call)}
    assert sorted(each for each in found if not each[0].startswith(tuple(ELSEWHERE))) == []


def test_the_list_of_exceptions_is_not_longer_than_it_must_be() -> None:
    files = {file for file, name, call in calls() if reads(name, call)}
    assert [each for each in ELSEWHERE if not any(file.startswith(each) for file in files)] == []
    assert [each for each in ELSEWHERE if not (ROOT / each).exists()] == []


def _lock(path: Path) -> object:
    from studio.models import lock

    return lock.read(path.rename(path.with_name(lock.LOCK)).parent)


def _pulled(path: Path) -> object:
    from studio.models import Models

    return Models(path.parent / "home").pull(f"file:{path}")


def _checkpoint(path: Path) -> object:
    from studio.engine.checkpoints.checkpoint import Checkpoint

    return Checkpoint.open(path)


def _weights(path: Path) -> object:
    import torch

    import studio

    return studio.module(lambda: torch.nn.Linear(1, 1), [path], device="cpu", dtype="float32")


def _gguf(path: Path) -> object:
    from studio_gpt.gguf_file import Gguf

    return Gguf(path)


def _texts(path: Path) -> object:
    from studio_gpt.corpus import text_files

    return text_files([str(path)])


def _folder_of_texts(path: Path) -> object:
    (path.parent / "a.txt").write_text("first")
    path.rename(path.with_name("b.txt"))
    return _texts(path.parent)


def _chats(path: Path) -> object:
    from studio_gpt.tune import read

    return list(read(path))


def _text_config(path: Path) -> object:
    from studio_gpt.load import read_json

    return read_json(path)


def _pixels(path: Path) -> object:
    from studio_diffusion.layout import read_json

    return read_json(path, dict)


def _dcgan(path: Path) -> object:
    from studio_dcgan.checkpoint import find

    return find(path)


def _sound(path: Path) -> object:
    import studio

    return studio.Audio.open(path)


def _best(path: Path) -> object:
    from studio.training.best import Best

    return Best(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    "open_", [_lock, _pulled, _checkpoint, _weights, _gguf, _texts, _folder_of_texts, _chats, _text_config, _pixels,
              _dcgan, _sound, _best],
)  # fmt: skip
def test_nothing_but_a_file_is_read(tmp_path: Path, open_: Callable[[Path], object], kind: str) -> None:
    """A pipe would be waited for without end, and a device read without end."""
    import os

    from studio.errors import StudioError

    path = tmp_path / "x.gguf"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(StudioError):
        open_(path)
