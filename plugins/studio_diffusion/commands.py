"""The command `studio image PROMPT`: the generator `image`. With `--best K` the best of several are kept."""

from __future__ import annotations

from typing import Any

import click

from studio.cli.lib.making import GeneratorCommand, Results, follow
from studio.cli.lib.options import request_of
from studio.cli.lib.output import emit, emit_json, stray_prints_aside


class ImageCommand(GeneratorCommand):
    """The command of a generator that draws a prompt."""

    def __init__(self, name: str, generator: str) -> None:
        super().__init__(name, generator)
        self.params.append(
            click.Option(["--best"], type=click.IntRange(1), metavar="K",
                         help="Of the N pictures (-n) keep the K that go best with the prompt, by CLIP.")
        )  # fmt: skip

    def invoke(self, ctx: click.Context) -> int:
        """Print the paths of the pictures, or, with `--best`, of those alone that are kept, the best first."""
        if ctx.params["best"] is None:
            return super().invoke(ctx)
        return self._best(ctx, ctx.params["best"])

    def _best(self, ctx: click.Context, best: int) -> int:
        """All pictures go to the store; the best of those that did not fail go where `-o` says."""
        from studio.cli.lib.destination import Destination, choose
        from studio.cli.lib.pictures import Counter
        from studio.cli.lib.progress import Display
        from studio.errors import UsageError
        from studio.media import Image
        from studio_diffusion.methods import best_of

        settings, params = ctx.obj, ctx.params
        if best > params["count"]:
            raise UsageError(
                f"`--best {best}` is more than the number of pictures, which is {params['count']}",
                hint=f"give `-n {max(8, 2 * best)}`, say",
            )
        if params["previews"]:
            raise UsageError("`--previews` and `--best` exclude one another", hint="leave one of the two out")
        given = self.inputs(settings, params)
        target = choose(params["output"], best, Image.suffix, force=params["force"], others=Image.others)
        tickets = self.submit(settings, params, given, 0)
        results = Results(tickets, Destination(), None)
        with (
            Display([each.request.spec.seed for each in tickets], quiet=settings.quiet) as display,
            stray_prints_aside(),
        ):
            for index, event in follow(tickets):
                display.show(index, event)
                results.take(index, event)
        if target.target is not None:
            results.take_unstored()
        made = {index: media for index, (_, media) in sorted(results.made.items()) if isinstance(media, Image)}
        kept: list[dict[str, Any]] = []
        if made:
            told, places = results.as_json(), list(made)
            with Counter(quiet=settings.quiet) as counter:
                ranked = best_of(settings.studio(), given["prompt"], list(made.values()), best,
                                 follow=counter.follow, **request_of(params))  # fmt: skip
            for place, value in ranked:
                index = places[place]
                path = target.save(made[index], self.generator, tickets[index].request.spec.seed)
                kept.append({**told[index], "path": str(path), "score": value})
        if params["as_json"]:
            emit_json(kept)
        else:
            for each in kept:
                emit(each["path"])
        return results.report(debug=settings.debug)


command = ImageCommand("image", generator="image")
