"""Building a request from a JobSpec or a caller's values: find the generator, validate inputs, locate weights.

Requests from Python, the command line, workflows, replay and resume are all built here.

Try it: ``studio.Studio().submit(studio.JobSpec(generator="template", inputs={"template": "Hi"}, seed=1)).result()``
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio import models
from studio.engine import Request
from studio.errors import InputError, UnknownName
from studio.generator import Generator
from studio.labelling import Labeller
from studio.media import Media
from studio.plugins import Plugins, missing
from studio.recipe import MediaRef, PluginRef
from studio.spec import DTYPES, MAX_SEED, OPTIONS, PRIORITIES, JobSpec, ModelRef


class Requests:
    """Builds requests with the generators of `plugins`, media that `fetch` finds by hash, the models of `home`, and AI
    labels by `labelling`.
    """

    def __init__(
        self,
        plugins: Callable[[], Plugins],
        fetch: Callable[[MediaRef], Media],
        home: Path,
        invariant: bool,
        labelling: Labeller,
    ) -> None:
        """With `invariant`, requests are never batched."""
        self._plugins, self._fetch, self._home, self._invariant = plugins, fetch, home, invariant
        self._labelling = labelling

    def of_values(self, name: str, values: Mapping[str, Any]) -> Request:
        """A request from `values`: inputs and options of a JobSpec (`OPTIONS`). The default seed is 32 random bits.
        Raises UnknownName, InputError, MediaError or ModelError.
        """
        generator = self._generator(name)
        options = {key: value for key, value in values.items() if key in OPTIONS}
        inputs = generator.Inputs.parse({key: value for key, value in values.items() if key not in OPTIONS})
        return self._of(generator, inputs, **options)

    def of_spec(
        self, spec: JobSpec, plugin: PluginRef | None = None, fetch: Callable[[MediaRef], Media] | None = None
    ) -> Request:
        """A request from a JobSpec. Media are named only by hash; a path that names the model is opened, unless the
        caller forbids it (`studio.models.no_paths_but`), as it must for a spec from an untrusted source. `plugin` is
        the plugin that had its generator, and `fetch` replaces the default. Raises as `of_values`, and UsageError if
        the generator no longer exists.
        """
        plugins = self._plugins()
        if plugin is not None and spec.generator not in plugins.generators:
            raise missing(spec.generator, plugin, plugins.reports)
        generator = self._generator(spec.generator)
        inputs = generator.Inputs.from_recipe(spec.inputs, fetch or self._fetch, spec.model)
        rest = {name: getattr(spec, name) for name in (*OPTIONS, "threads", "parents")}
        return self._of(generator, inputs, pins=spec.model, **rest)

    def weights(self, spec: JobSpec) -> tuple[Generator, ModelRef]:
        """The generator of a JobSpec and its located weights; inputs are not checked. Raises as `of_spec`."""
        generator = self._generator(spec.generator)
        with models.home(self._home):
            return generator, models.locate(generator.Inputs.model_ref_in(spec.inputs))

    def owner(self, generator: Generator) -> PluginRef:
        """The plugin of a generator."""
        return self._plugins().owner(generator.name)

    def _generator(self, name: str) -> Generator:
        generators = self._plugins().generators
        if name not in generators:
            raise UnknownName("generator", name, generators)
        return generators[name]

    def _of(self, generator: Generator, inputs: Any, *, seed: int | None = None, **options: Any) -> Request:
        options["invariant"] = self._invariant or bool(options.get("invariant"))
        check_options(options)
        with models.home(self._home):
            made = Request.of(generator, inputs, _seed(seed), self.owner(generator), **options)
        return replace(made, label=self._labelling.of(generator, inputs.media(), options.get("ai_label")))


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(32)
    if not _whole(seed) or not 0 <= seed <= MAX_SEED:
        raise InputError("seed", f"`seed` is {seed!r}, but must be a whole number from 0 to {MAX_SEED}")
    return seed


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UnknownName or InputError for an option that is out of range."""
    every, limit = options.get("preview_every", 0), options.get("time_limit_s")
    if not _whole(every) or every < 0:
        raise InputError("preview_every", f"`preview_every` is {every!r}, but must be a whole number from 0 (none)")
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        raise InputError("time_limit_s", f"`time_limit_s` is {limit!r}, but must be a number of seconds above 0")
    if options.get("ai_label") not in (None, True, False):
        raise InputError("ai_label", f"`ai_label` is {options['ai_label']!r}, but must be true or false")
    for name, allowed in (("priority", PRIORITIES), ("dtype", (None, *DTYPES))):
        if options.get(name, allowed[0]) not in allowed:
            raise UnknownName(name, str(options[name]), [each for each in allowed if each])


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
