"""`--client`, `--background` and `--time-limit`: the same for commands made from a generator and for others."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from studio.cli.lib.making import GeneratorCommand
from studio.cli.lib.options import takes_request
from studio.cli.lib.settings import Settings
from studio.cli.main import studio

from ..conftest import PROBE

GIVEN = ["--client", "me", "--background", "--time-limit", "9.5"]


def test_a_generators_command_hands_them_on(tmp_path: Path) -> None:
    settings = Settings(plugins=(PROBE,), home=tmp_path, device="cpu")
    command = GeneratorCommand("say", generator="echo")
    for argv, expected in ((GIVEN, ("me", "background", 9.5)), ([], ("", "interactive", None))):
        with click.Context(click.Command("studio"), obj=settings) as root:
            ctx = command.make_context("say", ["hello", "-n", "2", *argv], parent=root)
            tickets = command.submit(settings, ctx.params, command.inputs(settings, ctx.params), 0)
        for ticket in tickets:
            spec = ticket.request.spec
            assert (spec.client, spec.priority, spec.time_limit_s) == expected
            ticket.result()
    settings.close()


@pytest.mark.parametrize(
    ("argv", "request_"),
    [
        (GIVEN, {"client": "me", "priority": "background", "time_limit_s": 9.5}),
        ([], {"client": "", "priority": "interactive", "time_limit_s": None}),
    ],
)
def test_any_other_command_takes_them_as_one(argv: list[str], request_: dict[str, object]) -> None:
    told = []

    @click.command()
    @click.argument("word")
    @takes_request
    @click.pass_obj
    def command(settings: str, word: str, request: dict[str, object]) -> int:
        told.append((settings, word, request))
        return 4

    with command.make_context("x", ["hello", *argv], obj="settings") as ctx:
        assert command.invoke(ctx) == 4
    assert told == [("settings", "hello", request_)]


WITHOUT = {
    "attention",
    "doctor",
    "flow",
    "mcp",
    "models",
    "jobs",
    "plugins",
    "resume",
    "serve",
    "share",
    "show",
    "token",
    "top",
    "train",
}
"""Commands that run no request, or not themselves: `jobs add` has them. `resume` runs saved ones, with the options that
they were saved with.
"""


def test_every_command_that_runs_requests_has_the_options(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, device="cpu")
    with click.Context(studio, obj=settings) as ctx:
        names = set(studio.list_commands(ctx)) - WITHOUT - {"generate"}
        commands = [studio.get_command(ctx, name) for name in names]
        group = studio.get_command(ctx, "generate")
        commands.append(group.get_command(ctx, "template"))
        add = studio.get_command(ctx, "jobs").get_command(ctx, "add")
        commands += [add.get_command(ctx, "template"), add.get_command(ctx, "run")]
        for command in commands:
            with command.make_context(command.name, [], parent=ctx, resilient_parsing=True) as made:
                options = {option for each in command.get_params(made) for option in each.opts}
            assert {"--client", "--background", "--time-limit"} <= options, command.name
    assert names >= {"chat", "embed", "eval", "image", "label", "rank", "replay", "run", "search", "text", "video"}
    assert set(studio.list_commands(ctx)) >= WITHOUT
    settings.close()
