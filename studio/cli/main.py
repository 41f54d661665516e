"""The group `studio`: global options, commands loaded when named, and one place that turns failures into exit codes.

A command is the attribute `command` of the module `studio.cli.commands.NAME`, or declared by a plugin with the hook
`studio_commands`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.output import drop_stdout_if_broken, report_error, report_failure, stray_prints_aside, use_streams
from studio.cli.lib.settings import EPILOG, Settings
from studio.extensions import HOST_COMMANDS

if TYPE_CHECKING:
    from studio.extensions import Command


class Commands(click.Group):
    """The commands of plugins and of the host. Each is imported when it is run; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102 (click's)
        return [*_of_plugins(ctx), *HOST_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102 (click's)
        if cmd_name in HOST_COMMANDS:
            command: click.Command = import_module(f"studio.cli.commands.{cmd_name}").command
        elif declared := _of_plugins(ctx).get(cmd_name):
            command = load(declared)
        else:
            return None
        command.epilog = command.epilog or EPILOG
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List each command with its declared help line."""
        from studio.errors import StudioError

        lines: dict[str, str] = {}
        try:
            lines |= {name: each.help for name, each in _of_plugins(ctx).items()}
        except StudioError as error:  # of a path that is not there, say: there is help all the same
            report_failure(error, "plugin commands cannot be listed: ")
        with formatter.section("Commands"):
            formatter.write_dl(list((lines | HOST_COMMANDS).items()))

    def resolve_command(  # noqa: D102 (click's)
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in HOST_COMMANDS and not args[0].startswith("-") and args[0] not in _of_plugins(ctx):
            from studio.errors import UnknownName

            error = UnknownName("command", args[0], self.list_commands(ctx))
            error.hint = "; ".join([str(error.hint), *ctx.obj.found.failed])  # one that failed may have it
            raise error
        return super().resolve_command(ctx, args)


def load(declared: Command) -> click.Command:
    """Import a plugin's command. Raises PluginError, also if it has an option with the name of a global option."""
    from studio.errors import PluginError
    from studio.plugins import commands

    with stray_prints_aside():
        command = commands.load(declared)
    own = {name for parameter in studio.params for name in parameter.opts}
    if taken := sorted(own & set(_options(command))):
        message = f"the command `{declared.name}` has the option `{taken[0]}`, which is an option of `studio` itself"
        raise PluginError(message, hint="give the option another name")
    return command


def _options(command: click.Command) -> Iterator[str]:
    """The options of a command, and those of the commands in it."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from parameter.opts
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _options(inner)


def _of_plugins(ctx: click.Context) -> dict[str, Command]:
    """The commands that plugins declare, discovered once. Raises UsageError for a `--plugin` that does not exist."""
    settings: Settings = ctx.obj
    if settings.found is None:
        from studio import configuration
        from studio.files import expanded
        from studio.home import default_home
        from studio.plugins.commands import find

        home = ctx.params.get("home")
        named = configuration.plugins((expanded(home) if home else default_home()).absolute())
        with stray_prints_aside():
            settings.found = find([*named.paths, *ctx.params.get("plugins", ())], user_folder=named.folder)
        settings.found.failed.extend(f"plugin `{each.name}`: {each.reason}" for each in named.refused)
    return settings.found.commands


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        click.echo(f"studio {version('multimodal-studio')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--plugin", "plugins", multiple=True, is_eager=True, metavar="PATH", type=click.Path(path_type=Path),
              help="Load another plugin: a file or a folder. Repeatable.  [env: STUDIO_PLUGINS]")  # fmt: skip
@click.option("--home", is_eager=True, metavar="DIR", type=click.Path(path_type=Path),
              help="Data folder, for outputs and models.  [env: STUDIO_HOME]")  # fmt: skip
@click.option("--device", metavar="NAME",
              help="Device for models: cpu, cuda, or several such as cuda:0,cuda:1.  [default: the best]")  # fmt: skip
@click.option("--memory", metavar="SIZE",
              help="Memory limit for models and activations, such as 2GiB.  [default: 90% of free memory]")  # fmt: skip
@click.option("--invariant", is_flag=True, help="Reproducible bytes: never batch with other requests (slower).")
@click.option("--trace", metavar="FILE", type=click.Path(path_type=Path),
              help="Write a Chrome trace of every step, for Perfetto.")  # fmt: skip
@click.option("--local", is_flag=True, help="Run in this process even if a server of the data folder runs.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print progress and notices.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def studio(ctx: click.Context, /, **options: Any) -> None:
    """Generate images, video, audio and text with plugins, and reproduce every output from its recipe."""
    for name, value in options.items():
        setattr(ctx.obj, name, value)
    if ctx.obj.home is not None:  # for what looks there without a host at hand, such as `studio.models.path`
        os.environ["STUDIO_HOME"] = str(ctx.obj.home)


def hoist(argv: Sequence[str], group: click.Group = studio) -> list[str]:
    """Move the global options in front of the command, so that they can be given anywhere before `--`.

    Such a text as the value of an input must be written with `=`: `--negative=--quiet`.
    """
    takes_value = {
        name: not parameter.is_flag
        for parameter in group.params
        if isinstance(parameter, click.Option) and parameter.name != "version"
        for name in parameter.opts
    }
    front: list[str] = []
    rest: list[str] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        if word in takes_value:
            front.append(word)
            if takes_value[word]:
                if not waiting:
                    raise click.UsageError(f"`{word}` needs a value.")
                front.append(waiting.pop(0))
        else:
            (front if word.partition("=")[0] in takes_value else rest).append(word)
    return [*front, *rest]


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv` and return the exit code. No traceback is shown without --debug."""
    use_streams()
    settings = Settings()
    code = _guarded(argv, settings)
    drop_stdout_if_broken()
    if settings.stuck:  # a plugin's step does not end: leave without it, as the end of the interpreter would wait
        sys.stderr.flush()
        os._exit(code)
    return code


def _guarded(argv: Sequence[str], settings: Settings) -> int:
    """Run, and convert the result or error to an exit code."""
    debug = "--debug" in argv
    try:
        with studio.make_context("studio", hoist(argv), obj=settings) as ctx:
            ctx.call_on_close(settings.close)
            code = studio.invoke(ctx)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug=debug)


def explain(error: BaseException, *, debug: bool) -> int:
    """Report what a command raised, and return the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return 141  # as if SIGPIPE had ended it: the reader has all it wanted
    if isinstance(error, KeyboardInterrupt | click.Abort | EOFError):
        report_error("interrupted")
        return 130
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    if isinstance(error, click.ClickException):
        return _explain_click(error)
    from studio.errors import StudioError, WorkflowError

    if isinstance(error, WorkflowError):
        for message, hint in error.problems:
            report_error(message, hint)
        return error.exit_code
    if isinstance(error, StudioError):
        report_failure(error, debug=debug)
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        report_error(f"`{error.filename}`: {error.strerror}" if error.filename else error.strerror)
        return 1
    report_error(f"{type(error).__name__}: {error}", "run it again with --debug for the traceback")
    return 1


def _explain_click(error: click.ClickException) -> int:
    from studio.errors import nearest

    ctx = error.ctx if isinstance(error, click.UsageError) else None
    path = ctx.command_path if ctx else "studio"
    hint = f"`{path} --help` lists its options"
    if isinstance(error, click.NoSuchOption):
        known = [name for p in ctx.command.get_params(ctx) for name in p.opts + p.secondary_opts] if ctx else []
        if meant := nearest(error.option_name.lstrip("-"), [name.lstrip("-") for name in known if name[:2] == "--"]):
            hint = f"did you mean `--{meant}`? " + hint
        report_error(f"`{path}` has no option `{error.option_name}`", hint)
    else:
        report_error(error.format_message().rstrip("."), hint)
    return error.exit_code
