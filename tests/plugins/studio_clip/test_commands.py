"""`studio embed`, `rank`, `label` and `search`: real commands on the CLIP that ships."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

import studio
from studio_clip.search import search

from ..conftest import Command


def disc(colour: str, path: Path) -> Path:
    picture = PIL.Image.new("RGB", (96, 96), "white")
    PIL.ImageDraw.Draw(picture).ellipse((16, 16, 80, 80), fill=colour)
    picture.save(path)
    return path


@pytest.fixture
def discs(command: Command) -> Path:
    folder = Path("discs")
    folder.mkdir()
    for name in ("red.png", "blue.png", "yellow.avif"):
        disc(name.partition(".")[0], folder / name)
    return folder


def test_rank_and_label(command: Command, discs: Path) -> None:
    ranked = command("rank", "a red circle", str(discs), "--best", "2")
    assert (ranked.code, len(ranked.out.splitlines())) == (0, 2)
    assert ranked.out.splitlines()[0].endswith("red.png")
    told = command("label", str(discs / "blue.png"), str(discs / "red.png"), "--labels", "red circle, blue circle",
                   "--json").told  # fmt: skip
    assert [each["labels"][0]["label"] for each in told] == ["blue circle", "red circle"]
    assert [Path(each["path"]).name for each in told] == ["blue.png", "red.png"]


def test_a_broken_picture_is_left_out_and_told(command: Command, discs: Path) -> None:
    (discs / "bad.png").write_bytes((discs / "red.png").read_bytes()[:-60])
    ranked = command("rank", "a red circle", str(discs), "--json")
    assert (ranked.code, len(ranked.told)) == (1, 3)
    assert "skipped" in ranked.err
    assert "bad.png" in ranked.err
    alone = command("rank", "a red circle", str(discs / "bad.png"))
    assert (alone.code, alone.out) == (1, "")
    assert "bad.png" in alone.err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("rank", "red", "empty"), "the folder `empty` has no files of a known kind"),
        (("search", "red", "empty"), "the folder `empty` has no files of a known kind"),
        (("search", "red"), "the store has no pictures yet"),
        (("search", "red", "nowhere"), "`nowhere` is not a folder"),
        (("label", "discs", "--labels", "one"), "labels"),
        (("label", "discs", "--labels", "one,one"), "occurs twice"),
        (("embed",), "nothing to embed"),
        (("rank", "red", "discs", "--model", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused(command: Command, discs: Path, argv: tuple[str, ...], reason: str) -> None:
    Path("empty").mkdir()
    ran = command(*argv)
    assert (ran.code, ran.out) == (2, "")
    assert reason in ran.err


def test_embed(command: Command, discs: Path) -> None:
    made = command("embed", "a red circle", "红色的圆", "-i", str(discs), "--json").told
    names = [Path(each["of"]).name for each in made]
    assert names == ["a red circle", "红色的圆", "blue.png", "red.png", "yellow.avif"]
    vectors = np.array([each["vector"] for each in made])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert vectors[0] @ vectors[3] > vectors[0] @ vectors[2]
    stored = studio.Embedding.open(made[0]["path"])
    np.testing.assert_allclose(stored.vector, vectors[0], atol=1e-5)


def test_search_looks_only_at_what_is_new(command: Command, discs: Path, own_home: Path) -> None:
    first = command("search", "a red circle", str(discs), "-n", "1")
    assert first.out.split("\t")[1].strip().endswith("red.png")
    assert "3 pictures embedded, 0 cached" in first.err
    with studio.Studio(home=own_home, device="cpu") as host:
        again = search(host, "blue", discs)
        assert (again.looked_at, again.known) == (0, 3)
        disc("green", discs / "green.png")
        disc("black", discs / "red.png")
        (discs / "bad.png").write_bytes(b"bad")
        third = search(host, "a green circle", discs, n=1)
        assert (third.looked_at, third.known, list(third.broken)) == (2, 2, [discs / "bad.png"])
        assert [each.path.name for each in third.hits] == ["green.png"]
        (own_home / "search.sqlite3").write_bytes(b"damaged" * 1000)
        mended = search(host, "a green circle", discs, n=1)
        assert (mended.looked_at, mended.known, mended.renewed) == (4, 0, True)
        assert [each.path for each in mended.hits] == [each.path for each in third.hits]


def test_search_in_the_store_finds_what_was_made(own_home: Path) -> None:
    with studio.Studio(home=own_home, device="cpu") as host:
        made = host.generate("grid", images=[studio.Image(PIL.Image.new("RGB", (64, 64), "red"))])
        host.store.put(studio.Image(PIL.Image.new("RGB", (64, 64), "blue")))  # brought, not made
        found = search(host, "something red")
        assert [each.sha256 for each in found.hits] == [made.sha256]
        host.store.discard(made.sha256, host.store.get(made.sha256).path.stat().st_mtime_ns)
        other = host.generate("grid", images=[studio.Image(PIL.Image.new("RGB", (64, 64), "green"))])
        found = search(host, "something red")
        assert [each.sha256 for each in found.hits] == [other.sha256], "what is gone is not found"
        assert (found.looked_at, found.known) == (1, 0)
    with sqlite3.connect(own_home / "search.sqlite3") as file:
        assert file.execute("select count(*) from pictures").fetchone() == (2,)
    file.close()


def test_a_search_leaves_nothing_but_vectors(command: Command, discs: Path, own_home: Path) -> None:
    for argv in (("search", "red", "discs"), ("rank", "red", "discs"), ("label", "discs", "--labels", "a,b")):
        assert command(*argv).code == 0
    assert {each.name for each in own_home.rglob("*") if each.is_file()} <= {
        "search.sqlite3", "search.sqlite3-wal", "search.sqlite3-shm", "measured.json",
    }  # fmt: skip


def test_what_a_recipe_says_counts_beside_what_is_seen(own_home: Path, tmp_path: Path) -> None:
    """Two pictures of one disc; the recipes name what was asked for. The file carries it too."""
    picture = PIL.Image.new("RGB", (64, 64), "white")
    with studio.Studio(home=own_home, device="cpu") as host:
        plain = host.generate("grid", images=[studio.Image(picture)])
        assert plain.recipe is not None
        said = tmp_path / "said"
        said.mkdir()
        for word, shade in (("octopus", 250), ("cat", 245)):
            picture.paste((shade, shade, shade), (0, 0, 64, 64))
            media = studio.Image(picture)
            spec = plain.recipe.spec.model_copy(update={"inputs": {"prompt": f"a {word}"}})
            recipe = plain.recipe.model_copy(update={"spec": spec, "output": media.ref})
            host.store.put(media.attach(recipe, None))
            media.attach(recipe, None).save(said / f"{word}.png")
        for folder in (None, said):
            cat, octopus = (search(host, text, folder, n=3).hits for text in ("a cat", "章鱼"))
            assert host.load(cat[0].path).recipe.spec.inputs["prompt"] == "a cat"
            assert host.load(octopus[0].path).recipe.spec.inputs["prompt"] == "a octopus"


def test_names_that_are_not_text_and_what_cannot_be_read(command: Command, discs: Path) -> None:
    strange = Path(os.fsdecode(b"d\xff"))
    strange.mkdir()
    disc("red", strange / os.fsdecode(b"red\xfe.png"))
    (strange / os.fsdecode(b"bad\xfa.png")).write_bytes(b"bad")
    (strange / "loop.png").symlink_to("loop.png")
    (strange / "gone.png").symlink_to("nowhere")
    os.mkfifo(strange / "pipe.png")
    for argv in (("search", "red"), ("rank", "red"), ("label", "--labels", "red,blue"), ("embed", "-i")):
        for known in range(2 if argv[0] == "search" else 1):  # which finds its vectors again
            ran = command(*argv, str(strange), "--json")
            (only,) = ran.told
            assert (ran.code, only.get("path", only.get("of")).startswith("d\udcff/red") or argv[0] == "embed") == (
                1,
                True,
            )
            assert ran.err.count("skipped: ") == 4, (argv, known)
            for name in ("bad\\udcfa.png", "loop.png", "gone.png", "pipe.png"):
                assert name in ran.err
    assert command("rank", "red", str(strange)).out.endswith("d\\udcff/red\\udcfe.png\n")


def test_a_damaged_vector_is_made_again(discs: Path, own_home: Path) -> None:
    with studio.Studio(home=own_home, device="cpu") as host:
        first = search(host, "a red circle", discs)
        for change in ("vector = zeroblob(4)", "vector = zeroblob(length(vector))", "said = x'00'", "sum = sum + 1",
                       "vector = 'text'"):  # fmt: skip
            with sqlite3.connect(own_home / "search.sqlite3") as file:
                file.execute(f"update pictures set {change} where key like '%red%'")
            file.close()
            again = search(host, "a red circle", discs)
            assert (again.looked_at, again.known) == (1, 2)
            assert [each.path for each in again.hits] == [each.path for each in first.hits]
            # another batch may differ in the last bit
            assert [each.score for each in again.hits] == pytest.approx([each.score for each in first.hits], abs=1e-5)
