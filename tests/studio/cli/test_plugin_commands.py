"""Commands of plugins: listed without importing them, run like the host's, and broken by themselves alone."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from studio.extensions import HOST_COMMANDS
from studio.plugins import Plugins
from studio.plugins.commands import find

from .conftest import Studio

GREET = """
import studio

@studio.hookimpl
def studio_commands():
    return [studio.Command("greet", "Say hello.", ".words:greet")]

@studio.hookimpl
def studio_methods():
    return [studio.Method("greeting", ".words:greeting")]
"""
WORDS = """
import click
import studio
from studio.cli.lib.options import takes_request
from studio.cli.lib.output import emit_json

def greeting(host, name):
    return f"hello {name} from {host.home.name}"

@click.command()
@click.argument("name")
@takes_request
@click.pass_obj
def greet(settings, name, request):
    '''Say hello to NAME.'''
    if name == "nobody":
        raise studio.StudioError("there is nobody", hint="name somebody")
    emit_json({"said": settings.studio().greeting(name), **request})
    return 3
"""


def package(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def greet(tmp_path: Path) -> Path:
    return package(tmp_path / "greet", __init__=GREET, words=WORDS)


def test_a_command_runs_with_the_hosts_options(studio: Studio, greet: Path) -> None:
    ran = studio("greet", "you", "--home", "there", "--background", "--client", "me", "--time-limit", "1.5",
                 plugin=greet)  # fmt: skip
    told = {"said": "hello you from there", "priority": "background", "client": "me", "time_limit_s": 1.5}
    assert (ran.code, json.loads(ran.out)) == (3, told)
    assert studio("greet", "you", plugin=greet).code == 3
    failed = studio("greet", "nobody", plugin=greet)
    assert (failed.code, failed.err.splitlines()[-2:]) == (1, ["error: there is nobody", "hint: name somebody"])
    shown = studio("greet", "--help", plugin=greet)
    assert "Say hello to NAME." in shown.out
    assert "are accepted here as well" in " ".join(shown.out.split())
    assert studio("greet", "you", "--time-limit", "0", plugin=greet).code == 2


def test_help_lists_it_without_importing_it(studio: Studio, greet: Path) -> None:
    (greet / "words.py").write_text("raise SystemExit('imported')")
    assert "  greet      Say hello.\n" in studio("--help", plugin=greet).out
    assert "  greet " in studio("--help", "--plugin", str(greet), plugin=None).out
    assert "  greet " not in studio("--help", plugin=None).out


def test_a_broken_command_costs_only_itself(studio: Studio, greet: Path) -> None:
    (greet / "words.py").write_text("raise SystemExit('imported')")
    ran = studio("greet", "you", plugin=greet)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: the command `greet` cannot be loaded from `")
    assert "SystemExit" in ran.err or "sys.exit" in ran.err
    assert "Traceback" not in ran.err
    [report] = [each for each in json.loads(studio("plugins", "--json", plugin=greet).out) if each["name"] == "greet"]
    assert (report["status"], report["commands"]) == ("partly", ["greet"])
    assert report["reason"].startswith("the command `greet` cannot be loaded from `")
    assert studio("top", plugin=greet).code == 0
    (greet / "words.py").write_text("greet = print")
    assert "is builtin_function_or_method; it must be a `click.Command`" in studio("greet", plugin=greet).err


@pytest.mark.parametrize(
    "made",
    [
        "click.Command('greet', params=[click.Option(['--size', '--device'])])",
        "click.Group('greet', {'in': click.Command('in', params=[click.Option(['--device'])])})",
    ],
)
def test_an_option_of_studio_itself_is_refused(studio: Studio, greet: Path, made: str) -> None:
    """It would be taken for Studio's wherever it stands."""
    (greet / "words.py").write_text(f"import click\ngreet = {made}")
    ran = studio("greet", plugin=greet)
    assert ran.code == 1
    assert ran.err.startswith(
        "error: the command `greet` has the option `--device`, which is an option of `studio` itself\n"
    )
    [report] = [each for each in json.loads(studio("plugins", "--json", plugin=greet).out) if each["name"] == "greet"]
    assert "the option `--device`" in report["reason"]


ONE = """
import studio

@studio.hookimpl
def studio_commands():
    return {commands}
"""


@pytest.mark.parametrize(
    ("commands", "kept", "reason"),
    [
        ("[studio.Command('mine', 'Mine.', ':x')]", ["mine"], None),
        ("[studio.Command('doctor', 'Mine.', ':x')]", [], "the command name `doctor` is reserved by Studio"),
        ("[studio.Command('theirs', 'Mine.', ':x')]", [], "name `theirs` is already used by the plugin `aa_first`"),
        ("[studio.Command('mine', 'A.', ':x'), studio.Command('mine', 'B.', ':y')]", ["mine"],
         "the command name `mine` is already used by the plugin `second`"),
        ("[studio.Command('mine', 'A.', ':x'), 3]", ["mine"], "int is not a `studio.Command`"),
        ("[studio.Command('mine', 'A.', 'x')]", [], "command `mine`: its target is 'x'"),
        ("studio.Command('mine', 'A.', ':x')", [], "`studio_commands` returned Command; it must return a list"),
        ("1 / 0", [], "`studio_commands`: ZeroDivisionError"),
        ("exit(3)", [], "`studio_commands`: called sys.exit(3)"),
    ],
)  # fmt: skip
def test_the_first_keeps_a_name_and_both_ways_agree(
    tmp_path: Path, commands: str, kept: list[str], reason: str | None
) -> None:
    first = ONE.format(commands="[studio.Command('theirs', 'Theirs.', ':x')]")
    folder = package(tmp_path / "plugins", aa_first=first, second=ONE.format(commands=commands))
    plugins = Plugins.discover([folder], entry_points=False)
    found = find([folder])
    report = plugins.reports[1]
    assert report.commands == tuple(kept)
    assert (report.reason is None) if reason is None else reason in report.reason
    assert bool(found.failed) is bool(reason)
    assert {name: each for name, each in found.commands.items() if name in plugins.commands} == plugins.commands
    assert set(found.commands) & {"mine", "theirs", "doctor"} == set(plugins.commands)


def test_what_the_help_cannot_see_is_told(tmp_path: Path) -> None:
    """A hook under another name in the main file: only plugins that name it are imported for the help."""
    folder = package(tmp_path / "hidden", __init__="from .inner import *", inner=ONE.format(
        commands="[studio.Command('mine', 'Mine.', ':x')]"))  # fmt: skip
    [report] = Plugins.discover([folder], entry_points=False).reports
    assert (
        report.reason
        == "its commands cannot be found: its main file must define or import `studio_commands` by that name"
    )
    assert "mine" not in find([folder]).commands


def test_plugins_without_commands_are_not_imported_for_the_help(tmp_path: Path) -> None:
    folder = package(tmp_path / "plugins", heavy="raise RuntimeError('imported')")
    assert find([folder]).failed == []


def test_a_command_that_is_not_there_names_the_plugins_that_failed(studio: Studio, tmp_path: Path) -> None:
    folder = package(tmp_path / "broken", __init__="# studio_commands\nimport no_such_module_here")
    ran = studio("gret", plugin=folder)
    assert ran.code == 2
    assert "no command is called `gret`" in ran.err
    assert "plugin `broken`: ModuleNotFoundError: No module named 'no_such_module_here'" in ran.err
    listed = studio("--help", plugin=tmp_path / "gone.py")
    assert (listed.code, "  doctor " in listed.out) == (0, True)
    assert "plugin commands cannot be listed: the plugin" in listed.err


def test_no_command_of_a_built_in_plugin_is_the_hosts(studio: Studio) -> None:
    told = json.loads(studio("plugins", "--json", plugin=None).out)
    own = {name for each in told if each["origin"].startswith("multimodal-studio: ") for name in each["commands"]}
    assert {"image", "video", "text", "chat", "embed", "rank", "label", "search"} <= own
    assert not own & set(HOST_COMMANDS)
    assert {each["name"]: each["reason"] for each in told if each["reason"]} == {}


def test_commands_of_plugins_load_no_torch_for_their_help() -> None:
    code = "import sys; from studio.cli.main import run; run({!r}); print([m for m in {!r} if m in sys.modules])"
    for name in ("image", "chat", "rank"):
        command = [sys.executable, "-c", code.format([name, "--help"], ("torch", "diffusers", "transformers"))]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "[]"
