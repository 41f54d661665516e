"""Studio's basic generators for workflows, which need no model: `template` and `grid`."""

from __future__ import annotations

import studio
from studio_basics.grid import Grid
from studio_basics.template import Template


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    """The generators of this plugin."""
    return [Template(), Grid()]
