"""`studio generate NAME`: run any generator; its options are generated from its Inputs."""

from __future__ import annotations

import click

from studio.cli.lib.making import GeneratorCommand
from studio.cli.lib.settings import EPILOG


class Generators(click.Group):
    """Each generator as a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The generators by name."""
        return sorted(ctx.obj.studio().generators)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Make the command. Raises UnknownName, which names the nearest."""
        generator = ctx.obj.generator(cmd_name)
        return GeneratorCommand(cmd_name, generator=cmd_name, short_help=generator.summary)


command = Generators(
    "generate",
    help="Generate media with the generator NAME. `studio generate NAME --help` lists its options.",
    subcommand_metavar="NAME ...",
    epilog=EPILOG,
)
