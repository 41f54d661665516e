"""Methods of plugins on `Studio`."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import pytest

import studio
from studio.cli.main import run
from studio.errors import PluginError

PALETTE = Path(__file__).parents[2] / "examples" / "palette.py"


def test_a_method_is_called_with_the_studio(tmp_path: Path) -> None:
    import PIL.Image

    picture = PIL.Image.new("RGB", (9, 4), "red")
    picture.paste("blue", (0, 0, 3, 4))
    with studio.Studio(plugins=[PALETTE]) as host:
        assert host.palette(studio.Image(picture), n=2) == ["#ff0000", "#0000ff"]
        assert host.palette.__doc__.startswith("The n main colours of a picture")
        assert list(inspect.signature(host.palette).parameters) == ["picture", "n"]
        assert "palette" in dir(host)
        own = {"image", "images", "video", "text", "chat", "explain", "embed", "rank", "label", "search"}
        assert own <= set(dir(host))
        with pytest.raises(AttributeError, match=r"`Studio` has no method `pallete`; plugins add: .*`palette`"):
            _ = host.pallete
        assert not hasattr(host, "_private")


def test_the_hosts_own_names_stay_its_own_and_a_broken_module_costs_one_method(tmp_path: Path) -> None:
    plugin = tmp_path / "greedy.py"
    plugin.write_text(
        textwrap.dedent("""
        import studio

        @studio.hookimpl
        def studio_methods():
            names = ("submit", "home", "image", "gone")
            return [studio.Method(name, "no_such_module_here:x") for name in names]
    """)
    )
    with studio.Studio(plugins=[plugin]) as host:
        [report] = [each for each in host.plugins.reports if each.name == "greedy"]
        assert report.methods == ("gone",)
        assert "the method name `submit` is reserved by Studio" in report.reason
        assert "the method name `home` is reserved by Studio" in report.reason
        assert "the method name `image` is already used by the plugin `diffusion`" in report.reason
        with pytest.raises(PluginError, match=r"the method `gone` cannot be loaded from `no_such_module_here:x`"):
            _ = host.gone


def test_what_is_no_function_is_refused_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "number.py"
    plugin.write_text(
        textwrap.dedent("""
        import studio

        seven = 7

        @studio.hookimpl
        def studio_methods():
            return [studio.Method("seven", ":seven")]
    """)
    )
    with studio.Studio(plugins=[plugin]) as host, pytest.raises(PluginError, match="is int; it must be a function"):
        _ = host.seven
    assert run(["--plugin", str(plugin), "plugins"]) == 0
    [line] = [each for each in capsys.readouterr().out.splitlines() if each.startswith("number\t")]
    assert line.split("\t")[2] == "partly"
    assert line.endswith(":seven` is int; it must be a function")


def test_a_property_that_fails_tells_its_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    host = studio.Studio()
    monkeypatch.setattr(type(host), "generators", property(lambda self: [].nothing))
    with pytest.raises(AttributeError, match="'list' object has no attribute 'nothing'"):
        _ = host.generators
