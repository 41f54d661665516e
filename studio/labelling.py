"""Which output is labelled as made by AI, and how (the label itself: `studio.media.label`).

Every picture, video and sound of a generator is, unless the user has said otherwise. It is `trainedAlgorithmicMedia` if
all pictures, videos and sounds among the inputs were made by models alone, or there are none, and
`compositeWithTrainedAlgorithmicMedia` if any came from elsewhere. The output of a tool (`Generator.generative` is
false) is labelled only if an input is made by AI.

Try it: ``studio image "a kiwi" -o a.png; python -c "import studio; print(studio.Image.open('a.png').label)"``
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from studio import configuration
from studio.caching import cached_property
from studio.errors import InputError
from studio.generator import Generator
from studio.media import Label, Media
from studio.media.label import COMPOSITE, TRAINED, Source
from studio.store import Store
from studio.store.replay import Ancestor, ancestry
from studio.store.store import KINDS


class Labeller:
    """The settings of one host: `on` overrides the data folder's. Raises InputError unless it is a bool or None."""

    def __init__(self, home: Path, store: Store, on: bool | None) -> None:
        if on not in (None, True, False):
            raise InputError("ai_label", f"`ai_label` is {on!r}, but must be true or false")
        self._home, self._store, self._on = home, store, on

    def of(self, generator: Generator, inputs: Iterable[Media], wanted: bool | None = None) -> Label | None:
        """The label for the output of a request; `wanted` overrides the settings. Raises UsageError for a setting that
        is not valid.
        """
        if not generator.output.has_label or not self.is_on(wanted):
            return None
        sources = [self._source(each) for each in inputs if each.has_label]
        if not generator.generative and not any(sources):
            return None
        pure = all(source == TRAINED for source in sources)
        return Label(TRAINED if pure else COMPOSITE, self._settings.content_producer)

    def again(self, media: Media, generator: Generator | None, wanted: bool | None) -> Media:
        """Media of the store with the label that is wanted now: earlier it may have been another."""
        if not media.has_label or self.is_on(wanted) == (media.label is not None):
            return media
        if media.label is not None:
            return media.labelled(None)
        if media.recipe is None or generator is None:
            return media
        parents = (self._store.path(each) for each in media.recipe.parents)
        return media.labelled(self.of(generator, [KINDS[each.suffix].open(each) for each in parents if each], wanted))

    def is_on(self, wanted: bool | None) -> bool:
        """Whether outputs are labelled."""
        return next(each for each in (wanted, self._on, self._settings.ai_label) if each is not None)

    @cached_property
    def _settings(self) -> configuration.LabelSettings:
        return configuration.labels(self._home)

    def _source(self, media: Media) -> Source:
        """The label of an input, or the one that it would have as far as the store knows; empty if it is not by AI."""
        if media.label is not None:
            return media.label.source or COMPOSITE
        *before, it = ancestry(media.sha256, self._store.recipe(media.sha256), self._store).in_order()
        if it.recipe is None:
            return ""
        return COMPOSITE if any(map(self._is_from_outside, (*before, it))) else TRAINED

    def _is_from_outside(self, one: Ancestor) -> bool:
        """Whether this is no output, or it is not known from what it was made, as in a circle of equal content."""
        if one.recipe is not None:
            return len(one.parents) < len(set(one.recipe.parents))
        path = self._store.path(one.sha256)
        return path is None or KINDS[path.suffix].has_label
