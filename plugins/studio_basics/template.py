"""The generator `template`: a text, which a workflow has put together of others.

In a workflow every text may hold references; this generator makes such a text a result of its own.
"""

from __future__ import annotations

from typing import Any

import studio


class Template(studio.Generator):
    """Give a text back as it is; in a workflow, the text that its references come to."""

    name = "template"
    output = studio.Text

    class Inputs(studio.Inputs):
        """The text."""

        text: str = studio.field(help="the text", max_length=100_000)

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Text:
        return studio.Text(inputs.text)
