from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio import files
from studio.errors import MediaError, StoreError
from studio.files import read_limited, write_atomically


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_what_is_written_is_read(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("files") / "a.bin"
    for data in (first, second):
        assert write_atomically(path, data) == path
        assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["a.bin"]


@pytest.mark.parametrize("fails", ["fsync", "replace", "fdopen", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fails, code):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def broken(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, fails, broken)
        with pytest.raises(StoreError) as caught:
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert str(path) in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert "choose" in caught.value.hint


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "a.bin", b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(files.os, "open", lambda path, flags, mode=0o777: real("/dev/full", os.O_WRONLY))
    with pytest.raises(StoreError, match="No space left") as caught:
        write_atomically(tmp_path / "a.bin", b"x" * 100)
    assert "disk is full" in caught.value.hint


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="cannot write") as caught:
        write_atomically(tmp_path / "no" / "a.bin", b"")
    assert "create it" in caught.value.hint


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
