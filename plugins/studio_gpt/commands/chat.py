"""`studio chat`: a conversation with the generator `text`, turn by turn.

Each line of input is a message; `/new` starts a new conversation, `/quit` and Ctrl-D end it. Ctrl-C stops an answer and
keeps its text so far. Answers are streamed to standard output, everything else goes to standard error, so that it works
in a pipe too. A notice is shown once. The conversation is stored by `studio_gpt.conversation`.
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
    "Studio's starter only turns ideas into picture prompts; for a chat model run `studio models pull smollm2`,"
    " then `studio chat --model smollm2`"
)
EXCLUDED_INPUTS = ("literal",)  # chat messages are always plain text


class ChatCommand(click.Command):
    """The command; its flags are those of the generator, except the inputs that the conversation sets."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The generator's inputs, then `--seed` and the options of a request."""
        from studio.cli.lib.flags import parameters

        own = super().get_params(ctx)
        taken = {name for parameter in [*own, *ctx.find_root().command.params] for name in parameter.opts}
        return [*parameters(_flags(ctx.obj), taken), *own]

    def invoke(self, ctx: click.Context) -> int:
        """Chat until the user ends it."""
        from studio.cli.lib.flags import values

        inputs = values(_flags(ctx.obj), ctx.params)
        conversation = ctx.obj.studio().chat(seed=ctx.params["seed"], **inputs, **request_of(ctx.params))
        if not (inputs.get("model") or ctx.obj.quiet):
            note(f"note: {STARTER}")
        session = ChatSession(conversation, ctx.obj)
        for line in _lines():
            if line == "/quit":
                break
            if line == "/new":
                conversation.turns.clear()
            elif line.startswith("/"):
                note(f"note: unknown command `{line.split()[0]}`; `/new` starts a new conversation, `/quit` exits")
            elif line:
                session.say(line)
        return 1 if session.failed and not _typed() else 0


def _flags(settings: Settings) -> list[Flag]:
    from studio_gpt.conversation import CONVERSATION_INPUTS, GENERATOR

    flags = settings.generator(GENERATOR).Inputs.flags()
    chosen = [flag for flag in flags if flag.name not in (*CONVERSATION_INPUTS, *EXCLUDED_INPUTS)]
    return [replace(flag, help=flag.help.removeprefix("with `chat`: ")) for flag in chosen]


class ChatSession:
    """A conversation shown on a terminal. `failed` counts turns without an answer."""

    def __init__(self, conversation: Conversation, settings: Settings) -> None:
        self.failed = 0
        self._shown_notes: set[str] = set()
        self._conversation, self._settings = conversation, settings

    def say(self, message: str) -> None:
        """Show the answer as it is generated; after a failure, report it and remove the turn."""
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
        """Show each notice of the host once."""
        from studio.engine import Loading, Notice

        if isinstance(event, Loading | Notice) and not self._settings.quiet:
            text = f"note: {event.text}" if isinstance(event, Notice) else f"loading the model on {event.device}"
            if text not in self._shown_notes:
                self._shown_notes.add(text)
                note(text)


def _typed() -> bool:
    """Whether standard input is a terminal; it may also be a pipe, or closed (None)."""
    return sys.stdin is not None and sys.stdin.isatty()


def _lines() -> Iterator[str]:
    """The lines of standard input, stripped. Ctrl-C discards the line, Ctrl-D ends.

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
    help="Chat with a language model in its chat template. `/new` starts a new conversation, `/quit` or Ctrl-D exits,"
    " Ctrl-C stops an answer.",
    epilog=EPILOG,
    params=[
        click.Option(
            ["--seed"],
            type=int,
            metavar="N",
            help="Random seed, from 0 to 2^63 - 1. Equal seeds and turns give equal answers.  [default: random]",
        ),
        *request_options(),
    ],
)
