"""`--no-label` and `studio share`, as a user gives them."""

from __future__ import annotations

import json
from pathlib import Path

import studio as package
from studio.media.label import is_labelled
from studio.media.signing import Signer
from tests.studio.media.test_signing import read, signer

from ..conftest import Studio

__all__ = ["signer"]  # the fixture


def test_outputs_are_labelled_unless_asked(studio: Studio) -> None:
    for words, labelled in (([], True), (["--no-label"], False)):
        ran = studio("generate", "dot", "words", "--seed", "3", "-o", "a.png", "--force", *words)
        assert ran.code == 0, ran.err
        assert is_labelled(Path("a.png").read_bytes()) is labelled
        stored = studio("generate", "dot", "words", "--seed", "3", *words).lines[0]
        assert is_labelled(Path(stored).read_bytes()) is labelled
    again = studio("replay", "a.png", "-o", "b.png", "--no-label")
    assert (again.code, again.lines) == (0, ["identical"])
    assert Path("b.png").read_bytes() == Path("a.png").read_bytes()
    assert "--no-label" not in studio("generate", "echo", "--help").out, "a text file has no label"


def test_a_shared_copy_has_the_label_and_not_the_words(studio: Studio) -> None:
    studio("generate", "dot", "secret words", "--seed", "3", "-o", "a.png")
    ran = studio("share", "a.png")
    assert (ran.code, ran.lines, ran.err) == (0, ["a-shared.png"], "")
    assert b"secret" in Path("a.png").read_bytes()
    copy = Path("a-shared.png")
    assert b"secret" not in copy.read_bytes()
    assert is_labelled(copy.read_bytes())
    assert package.Image.open(copy) == package.Image.open("a.png")
    assert "secret words" in studio("show", "a-shared.png").out, "the store still knows how it was made"
    assert "trainedAlgorithmicMedia, multimodal-studio" in studio("show", "a-shared.png").out
    assert json.loads(studio("show", "a-shared.png", "--json").out)["label"]["producer"] == "multimodal-studio"
    assert studio("replay", "a-shared.png").lines == ["identical"]
    taken = studio("share", "a.png")
    assert (taken.code, taken.out) == (1, "")
    assert "already exists" in taken.err
    assert studio("share", "a.png", "-o", "folder/").lines == ["folder/a-shared.png"]
    assert studio("share", "a.png", "-o", "b.png", "--force").lines == ["b.png"]
    assert "not .jpg" in studio("share", "a.png", "-o", "b.jpg").err
    identity = package.Image.open("a.png").sha256
    assert studio("share", identity[:8]).lines == [f"{identity[:12]}-shared.png"]


def test_what_cannot_be_shared_is_one_line(studio: Studio) -> None:
    Path("note.txt").write_text("hello")
    for what, reason in (("note.txt", "not in a format that Studio writes"), ("gone.png", "there is no file")):
        ran = studio("share", what)
        assert (ran.code != 0, ran.out) == (True, "")
        assert reason in ran.err
    studio("generate", "dot", "words", "--no-label", "-o", "a.png")
    assert "has no label that it is made by AI, so the copy has none" in studio("share", "a.png").err


def test_signing_needs_what_it_says(studio: Studio, tmp_path: Path) -> None:
    words = ("generate", "dot", "words")
    for options, reason in (
        (["--sign", "c.pem", "-o", "a.png"], "`--sign` and `--key` belong together"),
        (["--sign", "c.pem", "--key", "k.pem"], "there is no `-o`"),
        (["--sign", "c.pem", "--key", "k.pem", "-o", "a.png", "--no-label"], "exclude each other"),
    ):
        ran = studio(*words, *options)
        assert (ran.code, ran.out) == (2, ""), ran.err
        assert reason in ran.err
    assert not Path("a.png").exists()


def test_outputs_and_copies_are_signed(studio: Studio, signer: Signer) -> None:
    options = ("--sign", str(signer.certificate), "--key", str(signer.key))
    assert studio("generate", "dot", "words", "--seed", "3", "-o", "a.png", *options).lines == ["a.png"]
    assert studio("replay", "a.png").lines == ["identical"]
    assert studio("share", "a.png", *options).lines == ["a-shared.png"]
    assert studio("generate", "dot", "words", "-n", "2", "--seed", "3", "-o", "many/", *options).code == 0
    for path in ("a.png", "a-shared.png", *map(str, Path("many").iterdir())):
        assert read(Path(path).read_bytes(), "image/png", signer)[0] == "Trusted"
