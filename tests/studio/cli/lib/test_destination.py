"""Where `-o` writes: nothing is overwritten without --force, and what was made is not lost where a folder is full."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from studio.cli.lib.destination import choose
from studio.errors import FileTaken, StoreError
from studio.media import Text

from ..conftest import Studio, files

Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("kind", ["file", "link to a file", "broken link"])
def test_a_taken_name_is_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    path, outside = tmp_path / "a.txt", tmp_path / "outside"
    if kind != "broken link":
        outside.write_text("old")
    path.write_text("old") if kind == "file" else path.symlink_to(outside)
    with pytest.raises(FileTaken, match=r"a\.txt.* already exists"):
        choose(str(path), 1, ".txt")
    choose(str(path), 1, ".txt", force=True).save(Text("new"), "echo", 1)
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert not outside.exists() or outside.read_text() == "old"  # a link gives way, what it points to does not


def test_a_name_taken_during_the_work_stays_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    target = choose(str(path), 1, ".txt")
    path.write_text("another command's")
    kept = Text("mine").attach(None, tmp_path / "store" / "id.txt")
    with pytest.raises(FileTaken) as caught:
        target.save(kept, "echo", 1)
    assert path.read_text() == "another command's"
    assert caught.value.hint is not None
    assert f"the output is stored as `{kept.path}`" in caught.value.hint


def test_in_a_folder_the_same_content_may_be_there_already(tmp_path: Path) -> None:
    target = choose(f"{tmp_path}/", 1, ".txt")
    path = target.save(Text("one"), "echo", 1)
    assert target.save(Text("one"), "echo", 1) == path
    path.write_text("changed by hand")
    with pytest.raises(FileTaken):
        target.save(Text("one"), "echo", 1)
    assert path.read_text() == "changed by hand"


def test_a_name_without_a_suffix_gets_that_of_its_media(tmp_path: Path) -> None:
    assert choose(str(tmp_path / "notes"), 1, ".txt").save(Text("one"), "echo", 1) == tmp_path / "notes.txt"
    with pytest.raises(FileTaken, match=r"notes\.txt"):
        choose(str(tmp_path / "notes"), 1, ".txt")
    assert choose(str(tmp_path / "many"), 2, ".txt").folder


@pytest.mark.parametrize("name", ["a" * 300 + ".txt", "b/" * 3000 + "a.txt", "nul\0.txt"])
def test_a_name_that_cannot_be_is_refused_in_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*(File name too long|null)"):
        choose(str(tmp_path / name), 1, ".txt")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("force", [True, False])
def test_pipes_and_devices_are_not_written_to(tmp_path: Path, force: bool) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(StoreError):
        choose(str(tmp_path / "pipe.txt"), 1, ".txt", force=force)
    (tmp_path / "null.txt").symlink_to(os.devnull)
    with pytest.raises(StoreError):
        choose(str(tmp_path / "null.txt"), 1, ".txt", force=force)


def test_a_broken_link_as_a_folder_is_named(studio: Studio) -> None:
    Path("out").symlink_to("nowhere/at/all")
    ran = studio("generate", "echo", "hi", "-o", "out/")
    assert ran.code == 1
    assert "cannot create the folder `out`: a file or a broken link has that name" in ran.err


def test_of_two_commands_with_one_name_exactly_one_gets_it(start: Start, tmp_path: Path) -> None:
    run = ("generate", "slow", "--steps", "20", "--pause", "0.01", "-o", "a.txt", "--seed")
    both = [start(*run, str(seed)) for seed in (1, 2)]
    said = [each.communicate(timeout=500) for each in both]
    assert sorted(each.returncode for each in both) == [0, 1]
    loser = next(i for i, each in enumerate(both) if each.returncode)
    assert "`a.txt` already exists" in said[loser][1]
    assert files(tmp_path / "outside") == ["a.txt"]


def test_a_data_folder_that_cannot_be_written_loses_no_work(studio: Studio) -> None:
    Path("home").write_text("a file")
    ran = studio("--home", "home", "generate", "dot", "x", "-n", "2", "--seed", "5", "-o", "out", "--json")
    assert ran.code == 0
    assert "warning: cannot create the folder `" in ran.err
    assert [each["stored"] for each in json.loads(ran.out)] == [None, None]
    assert len(files(Path("out"))) == 2
    assert studio("show", json.loads(ran.out)[0]["path"]).code == 0  # the recipe is in the file
    assert studio("--home", "home", "generate", "dot", "x").code == 1  # nowhere to put it


def test_a_data_folder_that_cannot_be_written_loses_no_replay(studio: Studio) -> None:
    Path("home").write_text("a file")
    made = studio("generate", "dot", "x", "--seed", "5", "-o", "a.png").lines[0]
    ran = studio("--home", "home", "replay", made, "--yes", "-o", "b.png")
    assert (ran.code, ran.lines) == (0, ["identical"])
    assert "warning: it is not in the store: cannot create the folder `" in ran.err
    assert Path("b.png").read_bytes() == Path("a.png").read_bytes()
    told = json.loads(studio("--home", "home", "replay", made, "--yes", "--json").out)
    assert (told["identical"], told["path"]) == (True, None)


def test_a_workflow_names_the_data_folder_that_cannot_be_written(studio: Studio) -> None:
    Path("home").write_text("a file")
    Path("w.yaml").write_text('nodes: {a: {use: dot, inputs: {prompt: x}}}\noutputs: {a: "${a}"}\n')
    ran = studio("--home", "home", "run", "w.yaml", "-o", "a.png")
    assert ran.code == 1
    assert "home`: a file or a broken link has that name" in ran.err
    assert "remove the file" not in ran.err


def test_an_output_that_cannot_be_written_leaves_the_others_and_says_where_it_is_kept(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.media import Media

    real = Media.save

    def full(self: Media, path: Path, **more: bool) -> Path:
        if "-6-" in Path(path).name:
            raise StoreError(f"cannot write `{path}`: No space left on device")
        return real(self, path, **more)

    monkeypatch.setattr(Media, "save", full)
    ran = studio("generate", "dot", "x", "-n", "3", "--seed", "5", "-o", "out/")
    assert ran.code == 1
    assert len(ran.lines) == 2
    assert [name.split("-")[1] for name in files(Path("out"))] == ["5", "7"]
    assert "1 of 3 failed: cannot write `out/dot-6-" in ran.err
    kept = ran.err.partition("the output is stored as `")[2].partition("`")[0]
    assert Path(kept).is_file()


@pytest.mark.parametrize("name", ["report.md", "plot.png", "result.json"])
def test_a_report_overwrites_no_file_of_its_folder(tmp_path: Path, name: str) -> None:
    from studio.cli.commands.eval import _folder

    (tmp_path / name).write_text("mine")
    with pytest.raises(FileTaken, match=name):
        _folder(str(tmp_path), force=False)
    assert _folder(str(tmp_path), force=True) == tmp_path
    assert (tmp_path / name).read_text() == "mine"
