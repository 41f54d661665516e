"""`studio chat`: a conversation with the generator `text`, turn by turn.

Lines that a person types are turns; `/new` begins anew, `/quit` and Ctrl-D end it. Ctrl-C stops an answer, and what was
said of it stays. Answers go to standard output as they are written, everything else to standard error, so that it works
in a pipe too. A notice is shown once. What was said is kept by `studio_gpt.conversation`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from studio.cli.lib.options import request_of, request_options
from studio.cli.lib.output import emit_piece, note, report_failure, stray_prints_aside
from studio.cli.lib.settings import EPILOG, Settings

if TYPE_CHECKING:
    from studio.engine import Event
    from studio.inputs import Flag
    from studio_gpt.conversation import Conversation

STARTER = (
    "without `--model` this is Studio's starter, which turns an idea into a picture prompt and cannot converse;"
    " `studio models pull smollm2`, then `studio chat --model smollm2`, can"
)
NOT_OF_CHATS = ("literal",)  # a chat's messages are plain text in any case


class ChatCommand(click.Command):
    """The command; its flags are those of the generator, but for what the conversation gives."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The generator's inputs, then `--seed` and the options of a request."""
        from studio.cli.lib.flags import parameters

        own = super().get_params(ctx)
        taken = {name for parameter in [*own, *ctx.find_root().command.params] for name in parameter.opts}
        return [*parameters(_flags(ctx.obj), taken), *own]

    def invoke(self, ctx: click.Context) -> int:
        """Talk until the person ends it."""
        from studio.cli.lib.flags import values

        inputs = values(_flags(ctx.obj), ctx.params)
        conversation = ctx.obj.studio().chat(seed=ctx.params["seed"], **inputs, **request_of(ctx.params))
        if not (inputs.get("model") or ctx.obj.quiet):
            note(f"note: {STARTER}")
        talk = Talk(conversation, ctx.obj)
        for line in _lines():
            if line == "/quit":
                break
            if line == "/new":
                conversation.turns.clear()
            elif line.startswith("/"):
                note(f"note: there is no `{line.split()[0]}`; `/new` begins anew, `/quit` ends")
            elif line:
                talk.say(line)
        return 1 if talk.failed and not _typed() else 0


def _flags(settings: Settings) -> list[Flag]:
    from studio_gpt.conversation import GENERATOR, OURS

    flags = settings.generator(GENERATOR).Inputs.flags()
    wanted = [flag for flag in flags if flag.name not in (*OURS, *NOT_OF_CHATS)]
    return [replace(flag, help=flag.help.removeprefix("with `chat`: ")) for flag in wanted]


class Talk:
    """A conversation shown on a terminal. `failed` counts turns without an answer."""

    def __init__(self, conversation: Conversation, settings: Settings) -> None:
        self.failed = 0
        self._told: set[str] = set()
        self._conversation, self._settings = conversation, settings

    def say(self, message: str) -> None:
        """Show the answer as it is written; a failure is told, and the turn taken back."""
        from studio.errors import StudioError

        try:
            self._show(message)
        except StudioError as error:
            self.failed += 1
            report_failure(error, debug=self._settings.debug)
        except KeyboardInterrupt:
            return  # the answer is stopped

    def _show(self, message: str) -> None:
        shown = False
        try:
            with stray_prints_aside(), closing(self._conversation.stream(message, self._watch)) as pieces:
                for piece in pieces:
                    shown = True
                    emit_piece(piece)
        finally:
            if shown:
                emit_piece("\n")

    def _watch(self, event: Event) -> None:
        """Say once what the host has to say."""
        from studio.engine import Loading, Notice

        if isinstance(event, Loading | Notice) and not self._settings.quiet:
            text = f"note: {event.text}" if isinstance(event, Notice) else f"loading the model on {event.device}"
            if text not in self._told:
                self._told.add(text)
                note(text)


def _typed() -> bool:
    """Whether a person types; standard input may also be a pipe, or closed (None)."""
    return sys.stdin is not None and sys.stdin.isatty()


def _lines() -> Iterator[str]:
    """What a person types, line by line, without blanks around it. Ctrl-C takes back the line, Ctrl-D ends.

    A pipe may begin with a byte order mark, which is not part of the first line.
    """
    if not _typed():
        for number, line in enumerate(sys.stdin or ()):
            yield (line if number else line.removeprefix("\ufeff")).strip()
        return
    import readline  # noqa: F401  # gives `input` its history and its keys

    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            note("")
        except EOFError:
            note("")
            return


command = ChatCommand(
    "chat",
    help="Talk with a language model, in its own chat template. `/new` begins anew; `/quit` or Ctrl-D ends; Ctrl-C"
    " stops an answer.",
    epilog=EPILOG,
    params=[
        click.Option(
            ["--seed"],
            type=int,
            metavar="N",
            help="From 0 to 2^63 - 1. Equal seeds and turns give equal answers.  [default: new ones]",
        ),
        *request_options(),
    ],
)
