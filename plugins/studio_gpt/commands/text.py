"""`studio text PROMPT`: the generator `text`, whose output is streamed to standard output.

With `-o` it is written to files, as with any other generator. `--explain` prints the probability of each token instead,
by `Studio.explain`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from studio.cli.lib.making import GeneratorCommand, Results, follow
from studio.cli.lib.options import request_of
from studio.cli.lib.output import emit, emit_json, emit_piece, note, stray_prints_aside, table

if TYPE_CHECKING:
    from studio.engine import Event, Ticket


class TextCommand(GeneratorCommand):
    """The command of a generator of text."""

    def __init__(self, name: str, generator: str) -> None:
        super().__init__(name, generator)
        self.params += [
            click.Option(["--explain"], is_flag=True, help="Print the probability of each token, and alternatives."),
            click.Option(["--attention"], metavar="LAYER.HEAD",
                         help="Explain, and draw the attention of this head; both are indices from 0."),
        ]  # fmt: skip

    def invoke(self, ctx: click.Context) -> int:
        """Print the texts, in the order of their seeds, each followed by a line break; or write files with `-o`."""
        if ctx.params["explain"] or ctx.params["attention"]:
            return self._explain(ctx)
        if ctx.params["output"] or ctx.params["previews"]:
            return super().invoke(ctx)
        from studio.destination import Destination

        tickets = self.submit(ctx.obj, ctx.params, self.inputs(ctx.obj, ctx.params), stream=True)
        results = Results(tickets, Destination(), None)
        stream = Stream(tickets, quiet=ctx.obj.quiet, mute=ctx.params["as_json"])
        with stray_prints_aside():
            for index, event in follow(tickets):
                results.take(index, event)
                stream.take(index, event)
        if ctx.params["as_json"]:
            texts = [str(results.made[i][1]) if i in results.made else None for i in range(len(tickets))]
            emit_json([{**each, "text": text} for each, text in zip(results.as_json(), texts, strict=True)])
        return results.report(debug=ctx.obj.debug)

    def _explain(self, ctx: click.Context) -> int:
        """Print a table of the tokens, or JSON; then the path of the attention picture, if requested."""
        params = ctx.params
        layer, _, head = (params["attention"] or "").partition(".")
        attention = {"layer": layer, "head": head or "0"} if params["attention"] else {}
        given = self.inputs(ctx.obj, params, "text-explain")
        with stray_prints_aside():
            found = ctx.obj.studio().explain(**given, **attention, seed=params["seed"], **request_of(params))
        tokens, paths = found.tokens, [str(found.attention.path)] if found.attention else []
        if params["as_json"]:
            emit_json({**tokens, "attention": paths})
            return 0
        rows = [[str(each["id"]), each["token"], "", ""] for each in tokens["prompt"]]
        table(("id", "token", "probability", "others"), rows + [_row(each) for each in tokens["written"]])
        for path in paths:
            emit(path)
        return 0


def _row(each: dict[str, Any]) -> list[str]:
    others = [
        f"{other['token']!r} {math.exp(other['logprob']):.3f}" for other in each["top"] if other["id"] != each["id"]
    ]
    return [str(each["id"]), each["token"], f"{math.exp(each['logprob']):.3f}", ", ".join(others)]


class Stream:
    """Prints the texts in order: the current one as it grows, the next after it is complete."""

    def __init__(self, tickets: Sequence[Ticket], *, quiet: bool, mute: bool) -> None:
        self.waiting: list[list[str]] = [[] for _ in tickets]  # not printed yet
        self.whole = [False] * len(tickets)
        self.quiet, self.mute = quiet, mute
        self._turn, self._begun = 0, False
        self._shown_notes: set[str] = set()

    def take(self, index: int, event: Event) -> None:
        """Act on an event of the text at `index`."""
        from studio.engine import Delta, Notice

        if isinstance(event, Notice) and not self.quiet and event.text not in self._shown_notes:
            self._shown_notes.add(event.text)
            note(f"note: {event.text}")
        if self.mute:
            return
        if isinstance(event, Delta):
            self.waiting[index].append(event.text)
        self.whole[index] = self.whole[index] or event.last
        while self._turn < len(self.waiting):
            text, whole = "".join(self.waiting[self._turn]), self.whole[self._turn]
            self.waiting[self._turn].clear()
            self._begun = self._begun or bool(text)
            emit_piece(text + ("\n" if whole and self._begun else ""))
            if not whole:
                break
            self._turn, self._begun = self._turn + 1, False


command = TextCommand("text", generator="text")
