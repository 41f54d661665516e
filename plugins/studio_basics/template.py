"""The generator `template`: a text that a workflow assembles from others.

Every text in a workflow may contain references; this generator makes such a text an output of its own.
"""

from __future__ import annotations

from typing import Any

import studio


class Template(studio.Generator):
    """Return a text unchanged; in a workflow, with its references resolved."""

    name = "template"
    output = studio.Text

    class Inputs(studio.Inputs):
        """The text."""

        text: str = studio.field(help="text, with references in a workflow", max_length=100_000)

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Text:
        return studio.Text(inputs.text)
