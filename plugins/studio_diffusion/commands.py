"""The command `studio image PROMPT`: the generator `image`, with `--best K` of several pictures."""

from __future__ import annotations

from typing import Any

import click

from studio.cli.lib.making import GeneratorCommand, Results, follow
from studio.cli.lib.options import request_of
from studio.cli.lib.output import emit, emit_json, stray_prints_aside
from studio.cli.lib.signing import signed


class ImageCommand(GeneratorCommand):
    """The command of a text-to-image generator."""

    def __init__(self, name: str, generator: str) -> None:
        super().__init__(name, generator)
        self.params.append(
            click.Option(["--best"], type=click.IntRange(1), metavar="K",
                         help="Keep the K of the N pictures (-n) that match the prompt best, by CLIP.")
        )  # fmt: skip

    def invoke(self, ctx: click.Context) -> int:
        """Print the paths of the pictures; with `--best` only of those that are kept, best first."""
        if ctx.params["best"] is None:
            return super().invoke(ctx)
        return self._best(ctx, ctx.params["best"])

    def _best(self, ctx: click.Context, best: int) -> int:
        """All pictures go to the store; the best of those that did not fail go to the `-o` path."""
        from studio.cli.lib.destination import choose
        from studio.cli.lib.pictures import Counter
        from studio.cli.lib.progress import Display
        from studio.destination import Destination
        from studio.errors import UsageError
        from studio.media import Image
        from studio_diffusion.methods import best_of

        settings, params = ctx.obj, ctx.params
        if best > params["count"]:
            raise UsageError(
                f"`--best` is {best}; it must be at most the number of pictures, {params['count']}",
                hint=f"make more pictures: `-n {max(8, 2 * best)}`",
            )
        if params["previews"]:
            raise UsageError("`--previews` and `--best` exclude each other", hint="leave out one of the two")
        given = self.inputs(settings, params)
        target = choose(params["output"], best, Image.suffix, force=params["force"], others=Image.others)
        target = signed(target, settings, params, Image.suffix)
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
            rows, order = results.as_json(), list(made)
            with Counter(quiet=settings.quiet) as counter:
                ranked = best_of(settings.studio(), given["prompt"], list(made.values()), best,
                                 follow=counter.follow, **request_of(params))  # fmt: skip
            for rank, value in ranked:
                index = order[rank]
                path = target.save(made[index], self.generator, tickets[index].request.spec.seed)
                kept.append({**rows[index], "path": str(path), "score": value})
        if params["as_json"]:
            emit_json(kept)
        else:
            for each in kept:
                emit(each["path"])
        return results.report(debug=settings.debug)


command = ImageCommand("image", generator="image")
