"""Files are whole or not there, exactly one of several writers gets a name, and no kill leaves anything behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio import files, temporary
from studio.errors import FileTaken, MediaError, StoreError
from studio.files import new_file, new_folder, read_limited, write_atomically

from . import crash_points


@pytest.fixture(params=["without a name", "with a temporary name"])
def naming(request, monkeypatch):
    """File systems that know files without a name, and others."""
    if request.param == "with a temporary name":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_what_is_written_is_read(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("files") / "a.bin"
    for data in (first, second):
        assert write_atomically(path, data) == path
        assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["a.bin"]


@pytest.mark.parametrize("fails", ["fsync", "replace", "fdopen", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, naming, fails, code):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def broken(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, broken)
        with pytest.raises(StoreError) as caught:
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert str(path) in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert "choose" in caught.value.hint


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, naming, call):
    def interrupted(*_):
        raise KeyboardInterrupt

    (tmp_path / "a.bin").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "a.bin", b"new")
    assert os.listdir(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["file", "new", "folder", "file-named", "new-named", "folder-named"])
def test_killed_at_every_system_call(tmp_path, kind):
    """What has the name is whole, the old or the new; the next write into the folder removes what the kill left."""
    (tmp_path / "out").mkdir()
    command = [sys.executable, crash_points.__file__, str(tmp_path / "out"), kind]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stderr
    points = [json.loads(line) for line in ran.stdout.splitlines()]
    old, new = {"fi": ("old", "new"), "ne": ("", "new"), "fo": ("old/old", "new/new")}[kind[:2]]
    assert len(points) > 8
    assert {found for found, _, _ in points} == {old, new}
    assert points[-1][0] == new
    assert [others for _, others, _ in points if others] == []


def test_what_a_living_process_writes_is_not_removed(tmp_path, naming):
    with new_file(tmp_path / "a.bin") as file, new_folder(tmp_path / "b") as folder:
        file.write(b"whole")
        (folder / "c").write_text("whole")
        assert temporary.sweep(tmp_path)  # there are some, which another process leaves alone
    assert (tmp_path / "a.bin").read_bytes() == b"whole"
    assert (tmp_path / "b" / "c").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b"]


def test_the_folder_of_an_engine_that_was_killed_while_it_was_made_goes_with_the_next(tmp_path):
    from studio.engine.checkpoints.run_folder import RUNNING, RunFolder, folders

    program = f"""
import os, signal
from pathlib import Path
from studio.engine.checkpoints.run_folder import RunFolder
os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
RunFolder(Path({str(tmp_path)!r})).path()
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=500)
    assert len(os.listdir(tmp_path / RUNNING)) == 1
    folder = RunFolder(tmp_path)
    assert [folder.path()] == folders(tmp_path)
    assert os.listdir(tmp_path / RUNNING) == [folder.path().name]
    folder.close()
    assert os.listdir(tmp_path / RUNNING) == []


def test_files_of_others_are_not_removed(tmp_path):
    for name in (".a.png.0123456789ab.tmp", ".studio.tmp", "studio.0123456789ab.tmp", ".studio.0123456789AB.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".studio.0123456789ab.tmp").symlink_to("nowhere")
    write_atomically(tmp_path / "a.png", b"")
    assert len(os.listdir(tmp_path)) == 6


@pytest.mark.parametrize("named", ["", "del os.O_TMPFILE"])
def test_one_of_several_writers_gets_the_name(tmp_path, named):
    program = f"""
import os, sys
from studio.errors import FileTaken
from studio.files import write_atomically
{named}
sys.stdin.read()  # until all are here
try:
    write_atomically(sys.argv[1], sys.argv[2].encode() * 100_000, overwrite=False)
    print("won", end="")
except FileTaken as error:
    print(error.message, end="")
"""
    path = tmp_path / "a.bin"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for i in range(4)
    ]
    for each in writers:
        each.stdin.close()
    said = [each.stdout.read() for each in writers]
    assert [each.wait() for each in writers] == [0] * 4
    assert sorted(said) == sorted(["won"] + [f"`{path}` already exists"] * 3)
    assert path.read_bytes() == str(said.index("won")).encode() * 100_000
    assert os.listdir(tmp_path) == ["a.bin"]
    for each in writers:
        each.stdout.close()


def test_without_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    def unsupported(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.setattr(os, "link", unsupported)
    write_atomically(tmp_path / "a", b"first", overwrite=False)
    with pytest.raises(FileTaken):
        write_atomically(tmp_path / "a", b"second", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_is_replaced_never_followed(tmp_path, naming):
    outside, link = tmp_path / "outside", tmp_path / "link"
    link.symlink_to(outside)
    with pytest.raises(FileTaken):
        write_atomically(link, b"new", overwrite=False)
    assert link.is_symlink()
    outside.write_bytes(b"old")
    write_atomically(link, b"new")
    assert (link.is_symlink(), link.read_bytes(), outside.read_bytes()) == (False, b"new", b"old")


@pytest.mark.parametrize("overwrite", [True, False])
def test_no_device_pipe_or_folder_is_overwritten(tmp_path, naming, overwrite):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-device").symlink_to("/dev/null")
    for name in ("pipe", "folder", "to-device"):
        with pytest.raises(StoreError, match=name):
            write_atomically(tmp_path / name, b"new", overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe", "to-device"]


@pytest.mark.parametrize("name", ["é" * 127, "\U0001f600" * 63, "a" * 255], ids=["two bytes", "four", "one"])
def test_the_longest_names_are_written(tmp_path, naming, name):
    path = tmp_path / name
    for data in (b"one", b"two"):
        write_atomically(path, data)
    assert path.read_bytes() == b"two"
    with pytest.raises(StoreError, match="name too long") as caught:
        write_atomically(tmp_path / (name + "abcd"), b"")
    assert "shorter" in caught.value.hint


@pytest.fixture
def limit():
    """No file may be larger than 64 KiB, as where a disk is full in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path, naming, limit):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    with pytest.raises(StoreError, match=r"cannot write .*a\.bin.: File too large"):
        write_atomically(path, b"x" * 100_000)
    with pytest.raises(StoreError, match=r"cannot write .*folder"), new_folder(tmp_path / "folder") as folder:
        (folder / "a").write_bytes(b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_libraries_in_rust_that_find_no_space_are_understood(tmp_path, limit):
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    many = Tokenizer(WordLevel({f"word{i}": i for i in range(20_000)}, unk_token="word0"))
    for name, write in (
        ("tensors", lambda folder: save_file({"a": np.zeros(100_000)}, folder / "a.safetensors")),
        ("tokens", lambda folder: many.save(str(folder / "tokenizer.json"))),
    ):
        with (
            pytest.raises(StoreError, match=f"cannot write .*{name}.: File too large"),
            new_folder(tmp_path / name) as f,
        ):
            write(f)
    assert os.listdir(tmp_path) == []


def test_a_folder_takes_the_place_of_one_or_of_a_link_to_one(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    for text in ("first", "second"):
        with new_folder(link) as folder:
            (folder / text).write_text(text)
    assert link.is_symlink()
    assert os.listdir(real) == ["second"]
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_a_folder_takes_no_files_place_and_an_error_leaves_the_old_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a file has that name"), new_folder(tmp_path / "file"):
        pass
    with new_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "folder") as folder:
        (folder / "b").write_text(str(1 // 0))
    assert os.listdir(tmp_path / "folder") == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_without_a_swap_the_folder_is_replaced_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    for text in ("first", "second"):
        with new_folder(tmp_path / "folder") as folder:
            (folder / text).write_text(text)
    assert os.listdir(tmp_path / "folder") == ["second"]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777: real("/dev/full", os.O_WRONLY))
    with pytest.raises(StoreError, match="No space left") as caught:
        write_atomically(tmp_path / "a.bin", b"x" * 100)
    assert "disk is full" in caught.value.hint


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="cannot write") as caught:
        write_atomically(tmp_path / "no" / "a.bin", b"")
    assert "create it" in caught.value.hint


@pytest.mark.parametrize("taken", ["file", "broken link"])
def test_a_folder_cannot_have_a_name_that_is_taken(tmp_path, taken):
    path = tmp_path / "a"
    path.touch() if taken == "file" else path.symlink_to("nowhere/at/all")
    with pytest.raises(StoreError, match="a file or a broken link has that name"):
        files.make_folder(path)


def test_reading_is_bounded(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(MediaError, match="larger than 4 bytes"):
        read_limited(path, 4)
    with pytest.raises(MediaError, match="cannot read"):
        read_limited(tmp_path, 4)


def test_a_home_that_is_nobodys_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert files.expanded("~/models") == Path("/home/somebody/models")
    assert files.expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
