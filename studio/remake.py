"""Replay: generate media again from their recipes, which may be untrusted, and compare the results.

The source media are generated again first. A recipe from elsewhere must respect the limits of `studio.store.replay`,
and can name only pulled models.

Try it: ``studio replay FILE``
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from studio import devices, models
from studio.devices import torch_setup
from studio.engine import Engine, Request
from studio.engine.router import RequestRouter
from studio.engine.ticket import wait
from studio.errors import NotStored, UsageError
from studio.media import Media
from studio.recipe import MediaRef, Recipe
from studio.requests import Requests, check_options
from studio.store import Store, replay
from studio.store.replay import Remade, ReplayReport


class Remake:
    """Generates media again on the engines of `router`, in the recorded dtype and on the recorded device, unless a
    `dtype` or a `device` was chosen. `options` are `client`, `priority` and `time_limit_s` of the requests.
    """

    def __init__(
        self,
        store: Store,
        requests: Requests,
        router: RequestRouter,
        device: str | None,
        dtype: str | None,
        options: Mapping[str, Any],
    ) -> None:
        self._store, self._requests, self._router, self._device, self._dtype = store, requests, router, device, dtype
        self._options = options

    def replay(self, original: Media, what: Path | str, *, elsewhere: bool) -> ReplayReport:
        """Generate `original`, which was read from `what`, again and compare. Raises like `Studio.replay`."""
        recipe = asked = replay.recipe_of(original, what)
        ours = replay.is_ours(recipe, original.sha256, self._store)
        if not ours:
            if not elsewhere:
                raise replay.not_ours(recipe, what)
            asked = replay.with_pulled_model(recipe, self._store.root)
        made: dict[str, Media] = {}
        remade = tuple(self._ancestors(recipe, original.sha256, made))
        with nullcontext() if ours else models.no_paths_but():
            media = self.make(asked, made, None if ours else replay.MOST_SECONDS)
        return replay.compare(original, media, recipe, remade)

    def _ancestors(self, recipe: Recipe, sha256: str, made: dict[str, Media]) -> list[Remade]:
        """Generate the source media again, and add them to `made` under their original hashes."""
        remade = []
        *line, _ = replay.ancestry(sha256, recipe, self._store).in_order()
        for each in line:
            if each.recipe is None:
                continue
            reason = ""
            try:
                made[each.sha256] = self.make(each.recipe, made)
            except UsageError as error:  # such as a missing plugin; the output may still be stored
                if self._store.path(each.sha256) is None:
                    raise
                reason = error.message
            identical = each.sha256 in made and made[each.sha256].sha256 == each.sha256
            remade.append(Remade(each.sha256, each.recipe.spec.generator, identical, reason))
        return remade

    def make(self, recipe: Recipe, made: Mapping[str, Media], seconds: float | None = None) -> Media:
        """Generate the output of a recipe; `made` has media that replace those with these hashes.

        Media that the data folder cannot store have no path, and a notice with the reason. Raises TimedOut if it takes
        more than `seconds`.
        """
        request = self.request(recipe, made, bounded=seconds is not None)
        try:
            return self._run(request, _name(recipe.device), seconds)
        except NotStored as error:
            unstored: Media = error.media
            return unstored.noticing([f"it is not in the store: {error.message}"])

    def _run(self, request: Request, recorded: str, seconds: float | None) -> Media:
        here = self._router.devices
        if self._device is None and recorded not in here and _usable(recorded):
            with Engine(recorded, self._dtype, store=self._store) as engine:
                return wait([engine.submit(request)], seconds)[0]
        wanted = recorded if recorded in here else None
        return wait(self._router.submit_many([request], wanted), seconds)[0]

    def request(self, recipe: Recipe, made: Mapping[str, Media], *, bounded: bool) -> Request:
        """The request of a recipe. If it is `bounded`, it must respect `studio.store.replay.MOST`."""
        spec = recipe.spec

        def fetch(ref: MediaRef) -> Media:
            return made[ref.sha256] if ref.sha256 in made else self._store.open(ref.sha256)

        threads = spec.threads if spec.threads and 1 <= spec.threads <= torch_setup.cores() else None
        changed = {
            "dtype": None if self._dtype else spec.dtype, "threads": threads, "label": "replay",
            "model": spec.model.unpinned(),  # changed weights are reported
            "parents": spec.parents or recipe.parents, **self._options,
        }  # fmt: skip
        check_options(self._options)
        request = self._requests.of_spec(spec.portable().model_copy(update=changed), recipe.plugin, fetch)
        if bounded:
            replay.check_bounds(recipe, request.inputs)
        return request


def _name(device: str) -> str:
    """``cuda:0`` of a recipe's ``cuda:0 (NVIDIA H200)``."""
    return device.partition(" ")[0]


def _usable(device: str) -> bool:
    """Whether a recorded device, which may be any text, is available."""
    try:
        devices.choose(_name(device))
    except UsageError:
        return False
    return True
