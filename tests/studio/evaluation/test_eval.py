"""`studio eval`, whole: a tiny generator of discs against a folder of discs, on the CLIP that ships."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pytest

import studio
from studio.cli.main import run
from studio.errors import InputError, MediaError, UnknownName, UsageError
from studio.evaluation import bootstrap, data, evaluate, frechet
from studio.evaluation.run import embedder_of, prompts

PLUGIN = Path(__file__).with_name("discs_plugin.py")
COLOURS = ("red", "green", "blue", "orange", "purple")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Intervals are not what is tested here."""
    monkeypatch.setattr(bootstrap, "STATISTICS", 5)


@pytest.fixture
def folder(tmp_path):
    """Ten discs of each of five colours, drawn by other numbers than the generator's."""
    for number in range(50):
        path = tmp_path / "data" / COLOURS[number % 5] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = PIL.Image.new("RGB", (48, 48), "white")
        r = 12 + number % 7
        PIL.ImageDraw.Draw(picture).ellipse((24 - r, 24 - r, 24 + r, 24 + r), fill=COLOURS[number % 5])
        picture.save(path)
    return tmp_path / "data"


def test_good_pictures_beat_bad_ones_in_every_figure_that_can_tell(folder, own_home):
    """Black frames, noise, and one mode: no figure that may gate takes black frames or noise for good discs."""
    with studio.Studio(home=own_home, device="cpu", plugins=[PLUGIN]) as host:
        found = {
            how: {each.name: each for each in evaluate(host, "discs", folder, n=50, inputs={"how": how}).figures}
            for how in ("good", "black", "noise", "one")
        }
    good = found["good"]
    for bad in ("black", "noise"):
        for name, figure in good.items():
            if figure.gates:
                other = found[bad][name].value
                assert (other > figure.value) if figure.better == "less" else (other < figure.value), (bad, name)
    assert {"Fréchet distance", "CMMD", "precision"} <= {name for name, each in good.items() if each.gates}
    assert not good["CLIP score"].gates
    assert "label top-5" not in good, "with five labels it would be 100% of anything"
    assert found["one"]["recall"].value < 0.5 * good["recall"].value
    assert found["one"]["coverage"].value < 0.5 * good["coverage"].value
    assert found["one"]["Vendi score"].value < good["Vendi score"].value
    assert good["label top-1"].value > 90
    for figure in good.values():
        low, high = figure.interval
        assert low <= figure.value <= high


def test_the_command_writes_a_report_and_goes_on_from_what_was_made(folder, tmp_path, capsys, own_home):
    argv = ["--plugin", str(PLUGIN), "--device", "cpu", "eval", "discs", "--data", str(folder), "-n", "60"]
    assert run([*argv, "-p", "fail=True", "--speed", "0"]) == 1
    assert "the 42nd fails" in capsys.readouterr().err
    report = tmp_path / "report"
    assert run([*argv, "--size", "32", "--speed", "2", "-o", str(report), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert json.loads((report / "result.json").read_text()) == {k: v for k, v in told.items() if k != "report"}
    names = {each["name"]: each for each in told["figures"]}
    assert names["each of 2 together"]["value"] > 0
    assert names["peak memory"]["value"] > 1
    assert told["setup"]["size"] == 32
    text = (report / "report.md").read_text()
    for name in ("sheet.png", "nearest.png", "plot.png"):
        assert f"({name})" in text
        assert min(studio.Image.open(report / name).size) > 50
    assert run([*argv, "--size", "32", "--speed", "0"]) == 0
    captured = capsys.readouterr()
    assert "remembered" in captured.err
    assert "Fréchet distance" in captured.out
    assert run([*argv, "-o", str(report)]) == 1
    assert "already exists" in capsys.readouterr().err


def test_a_plugin_may_bring_what_looks_at_the_pictures(folder, own_home):
    with studio.Studio(home=own_home, device="cpu", plugins=[PLUGIN]) as host:
        assert embedder_of(host).name == "clip"
        found = evaluate(host, "discs", folder, n=50, embedder="colours")
        assert found.setup["encoder"]["generator"] == "colours"
        assert "CLIP score" not in {each.name for each in found.figures}, "it reads no texts"
        assert found.wanted
        with pytest.raises(UnknownName, match=r"no embedder is called `colour`"):
            evaluate(host, "discs", folder, n=50, embedder="colour")


def test_what_cannot_be_compared_is_refused(folder, tmp_path, own_home):
    with studio.Studio(home=own_home, device="cpu", plugins=[PLUGIN]) as host:
        with pytest.raises(InputError, match=f"`n` is 1, but must be a whole number from {frechet.FEWEST}"):
            evaluate(host, "discs", folder, n=1)
        with pytest.raises(UsageError, match="generates text"):
            evaluate(host, "template", folder)
        with pytest.raises(UnknownName, match="colur"):
            evaluate(host, "discs", folder, by="colur")
        with pytest.raises(UnknownName, match="no input is called `steps`"):
            evaluate(host, "discs", folder, inputs={"steps": 3})
        with pytest.raises(InputError, match="`of` gets the labels"):
            evaluate(host, "discs", folder, inputs={"of": "red"})
        with pytest.raises(UnknownName, match="no priority is called `urgent`"):
            evaluate(host, "discs", folder, n=50, priority="urgent")
        with pytest.raises(UsageError, match=f"has 10 images; at least {frechet.FEWEST} are needed"):
            evaluate(host, "discs", folder / "red")
        with pytest.raises(UsageError, match="is not a folder"):
            evaluate(host, "discs", tmp_path / "nowhere")
        (folder / "mauve").mkdir()
        PIL.Image.new("RGB", (8, 8)).save(folder / "mauve" / "1.png")
        with pytest.raises(UnknownName, match="mauve"):
            evaluate(host, "discs", folder, n=50)
        (folder / "mauve" / "2.png").write_bytes(b"no picture")
        with pytest.raises(MediaError, match=r"2\.png"):
            evaluate(host, "discs", folder)
        PIL.Image.new("RGB", (8, 8)).save(folder / "loose.png")
        with pytest.raises(UsageError, match=r"`.*loose\.png` has no label"):
            evaluate(host, "discs", folder)


def test_every_label_is_asked_for_alike():
    asked = prompts(["b", "a", "c", "a"], 50)
    assert sorted({asked.count(name) for name in "abc"}) == [16, 17]
    assert asked == prompts(["c", "b", "a"], 50)


def test_pictures_become_alike():
    clear = studio.Image(PIL.Image.new("RGBA", (40, 20), (255, 0, 0, 0)))
    assert data.fitted(clear, 16) == studio.Image(PIL.Image.new("RGB", (16, 16), "white"))
    wide = data.fitted(studio.Image(PIL.Image.new("L", (40, 20), 0)), 16).pil
    assert (wide.getpixel((8, 8)), wide.getpixel((8, 0))) == ((0, 0, 0), (255, 255, 255))
