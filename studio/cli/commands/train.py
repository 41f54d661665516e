"""`studio train NAME`: run any training recipe; its options are generated from its Options."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.output import console, stray_prints_aside
from studio.cli.lib.settings import EPILOG

if TYPE_CHECKING:
    from studio.errors import UsageError
    from studio.generator import Trainer


class Trainers(click.Group):
    """Each training recipe as a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The recipes by name."""
        return sorted(name for name, each in ctx.obj.studio().trainers.items() if each.runs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Make the command. Raises UnknownName, which names the nearest, and UsageError for a recipe that is outside
        the package.
        """
        from studio.cli.lib.flags import parameters, values
        from studio.errors import UnknownName

        trainers = ctx.obj.studio().trainers
        if cmd_name not in trainers:
            raise UnknownName("training recipe", cmd_name, self.list_commands(ctx))
        trainer = trainers[cmd_name]
        if not trainer.runs:
            raise _only_of_starter(f"`studio train {cmd_name}`", trainer)
        flags = [flag for flag in trainer.Options.flags() if flag.name != "device"]
        taken = {name for parameter in ctx.find_root().command.params for name in parameter.opts}

        def run(**given: Any) -> None:
            options = trainer.Options.parse({**values(flags, given), **_device(ctx.obj.device, trainer)})
            with stray_prints_aside():
                trainer.run(options, console(wrap=False))  # a log's lines stay lines

        made = _Recipe(
            cmd_name,
            params=parameters(flags, taken),
            callback=run,
            short_help=trainer.summary,
            help=inspect.getdoc(trainer),
            epilog=EPILOG,
        )
        made.trainer = trainer
        return made


class _Recipe(click.Command):
    """The command of a recipe; options that only the starter's recipe has are refused with its command."""

    trainer: Trainer

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises UsageError for an option of the starter's recipe."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name.lstrip("-") in self.trainer.starter_options:
                raise _only_of_starter(f"`{error.option_name}`", self.trainer) from None
            raise


def _only_of_starter(what: str, trainer: Trainer) -> UsageError:
    from studio.errors import UsageError

    hint = f"in a clone of Studio's repository, run `{trainer.starter}` (docs/training.md)"
    return UsageError(f"{what} only trains the starter model, and is not part of the package any more", hint=hint)


def _device(wanted: str | None, trainer: Trainer) -> dict[str, str]:
    """`--device` is an option of `studio` itself; it is the recipe's where the recipe computes."""
    if wanted is None:
        return {}
    if "device" not in trainer.Options.model_fields:
        raise click.UsageError(f"`studio train {trainer.name}` does not use a device; omit `--device`")
    return {"device": wanted}


command = Trainers(
    "train",
    help="Run the training recipe NAME. `studio train NAME --help` lists its options.",
    subcommand_metavar="NAME ...",
    epilog=EPILOG,
)
