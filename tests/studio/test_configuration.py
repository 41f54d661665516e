"""Plugins by environment and configuration file, and a data folder from a stranger, which loads nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import studio
from studio import configuration
from studio.cli.main import run
from studio.errors import StoreError, UsageError

PLUGIN = '''
import pathlib, studio

pathlib.Path("{marker}").write_text("it ran")


class Word(studio.Generator):
    """Write a word."""

    name = "{name}"
    output = studio.Text

    class Inputs(studio.Inputs):
        text: str = studio.field("x", help="the word", max_length=100)

    def generate(self, model, inputs, rng):
        return studio.Text(inputs.text)


@studio.hookimpl
def studio_generators():
    return [Word()]
'''


@pytest.fixture(autouse=True)
def own_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user" / name))


def plugin(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PLUGIN.format(name=name, marker=path.parent / f"{name}.ran"), "utf-8")
    return path


def host_of(home: Path) -> studio.Studio:
    return studio.Studio(home=home, device="cpu")


def test_plugins_from_the_environment(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = plugin(tmp_path / "one.py", "one"), plugin(tmp_path / "more" / "two.py", "two")
    named = [str(one), str(two.parent), str(tmp_path / "gone.py"), ""]
    monkeypatch.setenv("STUDIO_PLUGINS", os.pathsep.join(named))
    with studio.Studio(device="cpu", plugins=[one]) as host:  # named twice, loaded once
        assert {"one", "two", "template"} <= set(host.generators)
        (bad,) = (each for each in host.plugins.reports if each.status != "ok")
        assert (bad.name, bad.reasons) == (
            "gone", (f"there is no file or folder `{tmp_path / 'gone.py'}`, which STUDIO_PLUGINS names",)
        )  # fmt: skip


def test_a_plugin_whose_name_is_not_text_loads(tmp_path: Path, own_home: Path) -> None:
    strange = plugin(tmp_path / os.fsdecode(b"odd\xff.py"), "odd")
    with studio.Studio(device="cpu", plugins=[strange]) as host:
        assert host.plugins.owner("odd").name == "odd\\xff"
        made = host.generate("odd", text="hello")
        assert host.replay(made.sha256).identical


def test_the_default_data_folder_names_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDIO_HOME")
    home = studio.home.default_home()
    plugin(home / "mine" / "one.py", "one")
    plugin(home / "plugins" / "two.py", "two")
    (home / "config.toml").write_text('plugins = ["mine/one.py"]\n', "utf-8")
    with studio.Studio(device="cpu") as host:
        assert {"one", "two"} <= set(host.generators)


def test_a_strangers_data_folder_loads_nothing_until_it_is_trusted(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin(own_home / "mine" / "one.py", "one")
    plugin(own_home / "plugins" / "two.py", "two")
    (own_home / "config.toml").write_text('plugins = ["mine/one.py"]\n', "utf-8")
    with host_of(own_home) as host:
        assert not {"one", "two"} & set(host.generators)
        reasons = {each.name: each.reason for each in host.plugins.reports if each.status == "failed"}
    assert set(reasons) == {"config.toml", "plugins"}
    assert all("studio plugins trust" in str(each) for each in reasons.values())
    assert not list(own_home.rglob("*.ran"))
    assert run(["generate", "two"]) == 2
    assert "studio plugins trust" in capsys.readouterr().err
    (own_home / "plugins" / "three.py").write_text("# studio_commands\nraise SystemExit('it ran')")
    assert run(["--help"]) == 0
    assert run(["three"]) == 2
    captured = capsys.readouterr()
    assert "studio plugins trust" in captured.err
    assert "it ran" not in captured.err
    (own_home / "plugins" / "three.py").unlink()
    assert run(["plugins", "trust"]) == 0
    assert not list(own_home.rglob("*.ran"))
    with host_of(own_home) as host:
        assert {"one", "two"} <= set(host.generators)
    copy = tmp_path / "copy"
    shutil.copytree(own_home, copy)
    with host_of(copy) as host:
        assert "one" not in host.generators
    own_home.rename(tmp_path / "away")
    copy.rename(own_home)
    with host_of(own_home) as host:
        assert "one" not in host.generators, "another folder in its place"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("plugins = [", "not TOML"),
        ("plugins = 'x.py'", "must be a list of paths"),
        ("plugins = [1]", "must be a list of paths"),
        ("plugin = ['x.py']", "did you mean `plugins`?"),
        ("plugins = ['x.py']", "there is no file or folder"),
        ("plugins = ['a\\u0000b']", "there is no file or folder"),
        ("\udcff", "not TOML"),
    ],
)
def test_what_is_wrong_in_a_configuration_file_costs_itself(own_home: Path, text: str, reason: str) -> None:
    own_home.mkdir()
    configuration.trust(own_home)
    (own_home / "config.toml").write_bytes(os.fsencode(text))
    with host_of(own_home) as host:
        (bad,) = (each for each in host.plugins.reports if each.status != "ok")
        assert reason in str(bad.reason)
        assert "template" in host.generators


def test_a_damaged_list_of_trust_is_named(own_home: Path) -> None:
    own_home.mkdir()
    path = configuration.trust(own_home)
    path.write_text("{", "utf-8")
    with pytest.raises(StoreError, match=r"trusted\.json"):
        configuration.trusted(own_home)


def test_replay_names_the_plugin_that_is_missing(own_home: Path, tmp_path: Path) -> None:
    with studio.Studio(device="cpu", plugins=[plugin(tmp_path / "speak.py", "speak")]) as host:
        made = host.generate("speak", text="hello").sha256
    with studio.Studio(device="cpu") as host:
        with pytest.raises(
            UsageError, match=r"`speak` needs the plugin `speak` sha256:\w+, which is not loaded"
        ) as told:
            host.replay(made)
        assert "--plugin PATH" in str(told.value.hint)
    (tmp_path / "speak.py").write_text("1 / 0", "utf-8")
    broken = studio.Studio(device="cpu", plugins=[tmp_path / "speak.py"])
    with broken as host, pytest.raises(UsageError, match="not loaded: ZeroDivisionError"):
        host.replay(made)
