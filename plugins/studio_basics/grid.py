"""The generator `grid`: pictures side by side, each with its label: a contact sheet.

The labels are set in the font that comes with Pillow, which has Latin letters only; others are left out, with a notice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

import studio
from studio.media.sheet import contact_sheet, letterless

if TYPE_CHECKING:
    from collections.abc import Sequence


MOST = 400  # pictures


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet(studio.State):
    """Inputs, and the sheet once it is made."""

    inputs: Any
    made: studio.Image | None = None


class Grid(studio.Generator):
    """Put pictures side by side, each with its label."""

    name = "grid"
    output = studio.Image

    class Inputs(studio.Inputs):
        """Pictures and labels."""

        images: list[studio.Image] = studio.field(help="the pictures", min_length=1, max_length=MOST)
        labels: list[str] = studio.field([], help="a label for each picture, or none at all", max_length=MOST)
        columns: int = studio.field(4, ge=1, le=50, help="pictures in a row, at the most")
        cell: int = studio.field(128, ge=16, le=1024, help="pixels of a picture's longer side")

        @model_validator(mode="after")
        def _even(self) -> Self:
            if self.labels and len(self.labels) != len(self.images):
                raise ValueError(f"there are {len(self.labels)} labels for {len(self.images)} pictures")
            return self

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sheet:
        lost = letterless(inputs.labels)
        notices = (f"the font has no letters for these, which the labels leave out: {lost[:20]}",) if lost else ()
        return Sheet(inputs=inputs, notices=notices)

    def step(self, model: Any, states: Sequence[Sheet]) -> list[Sheet]:
        return [replace(state, position=1, made=_draw(state.inputs)) for state in states]

    def finish(self, model: Any, state: Sheet) -> studio.Image:
        assert state.made is not None
        return state.made


def _draw(inputs: Any) -> studio.Image:
    return contact_sheet(inputs.images, inputs.labels, columns=inputs.columns, cell=inputs.cell)
