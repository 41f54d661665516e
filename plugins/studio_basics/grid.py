"""The generator `grid`: a contact sheet of pictures with labels.

Labels use the font of Pillow, which has only Latin letters; other letters are dropped, with a notice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

import studio
from studio.media.sheet import contact_sheet, missing_letters

if TYPE_CHECKING:
    from collections.abc import Sequence


MOST = 400  # pictures


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet(studio.State):
    """The inputs and, after the only step, the contact sheet."""

    inputs: Any
    made: studio.Image | None = None


class Grid(studio.Generator):
    """Arrange pictures in a grid, each with its label (contact sheet)."""

    name = "grid"
    output = studio.Image
    generative = False

    class Inputs(studio.Inputs):
        """Pictures and labels."""

        images: list[studio.Image] = studio.field(help="pictures", min_length=1, max_length=MOST)
        labels: list[str] = studio.field([], help="one label per picture, or none", max_length=MOST)
        columns: int = studio.field(4, ge=1, le=50, help="maximum number of pictures per row")
        cell: int = studio.field(128, ge=16, le=1024, help="longer side of a picture, in pixels")

        @model_validator(mode="after")
        def _even(self) -> Self:
            if self.labels and len(self.labels) != len(self.images):
                raise ValueError(
                    f"there are {len(self.labels)} labels for {len(self.images)} pictures; give one each, or none"
                )
            return self

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sheet:
        lost = missing_letters(inputs.labels)
        notices = (f"the font lacks these letters, which were dropped from the labels: {lost[:20]}",) if lost else ()
        return Sheet(inputs=inputs, notices=notices)

    def step(self, model: Any, states: Sequence[Sheet]) -> list[Sheet]:
        return [replace(state, position=1, made=_draw(state.inputs)) for state in states]

    def finish(self, model: Any, state: Sheet) -> studio.Image:
        assert state.made is not None
        return state.made


def _draw(inputs: Any) -> studio.Image:
    return contact_sheet(inputs.images, inputs.labels, columns=inputs.columns, cell=inputs.cell)
