"""`studio chat`: a conversation with the generator `text`, turn by turn.

Lines that a person types are turns; `/new` begins anew, `/quit` and Ctrl-D end it. Ctrl-C stops an answer, and what was
said of it stays. Answers go to standard output as they are written, everything else to standard error, so that it works
in a pipe too. A notice is shown once. It knows nothing of templates: the generator has an input `chat`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.settings import EPILOG, Settings
from studio.cli.lib.output import emit_piece, note, report_failure, stray_prints_aside

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.inputs import Flag

GENERATOR = "text"
STARTER = (
    "without `--model` this is Studio's starter, which turns an idea into a picture prompt and cannot converse;"
    " `studio models pull smollm2`, then `studio chat --model smollm2`, can"
)
OURS = ("prompt", "chat", "turns")  # inputs that the conversation itself gives
NOT_OF_CHATS = ("literal",)  # a chat's messages are plain text in any case


class ChatCommand(click.Command):
    """The command; its flags are those of the generator, but for what the conversation gives."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The generator's inputs, then `--seed`."""
        from studio.cli.lib.flags import parameters

        own = super().get_params(ctx)
        taken = {name for parameter in [*own, *ctx.find_root().command.params] for name in parameter.opts}
        return [*parameters(_flags(ctx.obj), taken), *own]

    def invoke(self, ctx: click.Context) -> int:
        """Talk until the person ends it."""
        from studio.cli.lib.flags import values
        from studio.models import Models

        studio, flags = ctx.obj.studio(), _flags(ctx.obj)
        inputs = values(flags, ctx.params)
        if model := inputs.get("model"):
            Models(studio.home).path(model)  # what is not there is said before anyone types
        elif not ctx.obj.quiet:
            note(f"note: {STARTER}")
        talk = Conversation(studio, inputs, ctx.params["seed"], ctx.obj)
        for line in _lines():
            if line == "/quit":
                break
            if line == "/new":
                talk.turns.clear()
            elif line.startswith("/"):
                note(f"note: there is no `{line.split()[0]}`; `/new` begins anew, `/quit` ends")
            elif line:
                talk.say(line)
        return 1 if talk.failed and not _typed() else 0


def _flags(settings: Settings) -> list[Flag]:
    flags = settings.generator(GENERATOR).Inputs.flags()
    wanted = [flag for flag in flags if flag.name not in (*OURS, *NOT_OF_CHATS)]
    return [replace(flag, help=flag.help.removeprefix("with `chat`: ")) for flag in wanted]


class Conversation:
    """What was said so far. `failed` counts turns without an answer."""

    def __init__(self, studio: Studio, inputs: dict[str, Any], seed: int | None, settings: Settings) -> None:
        self.turns: list[str] = []
        self.failed = 0
        self._told: set[str] = set()
        self._studio, self._inputs, self._seed, self._settings = studio, inputs, seed, settings

    def say(self, prompt: str) -> None:
        """Get an answer and show it as it is written; a failure is told, and the turn taken back."""
        from studio.errors import StudioError

        try:
            with stray_prints_aside():
                answer = self._answer(prompt)
        except StudioError as error:
            self.failed += 1
            report_failure(error, debug=self._settings.debug)
            return
        except KeyboardInterrupt:  # before there was an answer to stop
            return
        if answer:
            self.turns += [prompt, answer]

    def _answer(self, prompt: str) -> str:
        from studio.engine import Failed, Finished, Loading, Notice, Preview

        seed = None if self._seed is None else self._seed + len(self.turns) // 2
        asked = {**self._inputs, "prompt": prompt, "chat": True, "turns": list(self.turns)}
        ticket = self._studio.submit_many(GENERATOR, 1, seed=seed, preview_every=1, **asked)[0]
        shown = ""
        try:
            for event in ticket.events():
                if isinstance(event, Preview | Finished):
                    text = str(getattr(event.media, "text", ""))
                    emit_piece(text[len(shown) :])
                    shown = text
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, Loading | Notice):
                    self._tell(
                        f"note: {event.text}" if isinstance(event, Notice) else f"loading the model on {event.device}"
                    )
        except KeyboardInterrupt:
            ticket.cancel()
        finally:
            if shown:
                emit_piece("\n")
        return shown.strip()

    def _tell(self, text: str) -> None:
        if text not in self._told and not self._settings.quiet:
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
    short_help="Talk with a language model.",
    help="Talk with a language model, in its own chat template. `/new` begins anew; `/quit` or Ctrl-D ends; Ctrl-C"
    " stops an answer.",
    epilog=EPILOG,
    params=[
        click.Option(
            ["--seed"],
            type=int,
            metavar="N",
            help="From 0 to 2^63 - 1. Equal seeds and turns give equal answers.  [default: new ones]",
        )
    ],
)
