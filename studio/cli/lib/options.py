"""The options of every request: client, priority and time limit.

They are declared once, here. Commands of generators have them already; other commands get them by `takes_request`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import click

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--background", {"is_flag": True, "help": "Run at low priority."}),
    ("--client", {"default": "", "metavar": "NAME", "help": "Client name; clients share a device fairly."}),
    ("--time-limit", {"type": click.FloatRange(min=0, min_open=True), "metavar": "SECONDS",
                      "help": "Timeout for one step.  [default: the generator's]"}),
)  # fmt: skip
NAMES = ("background", "client", "time_limit")  # as click has them


def request_options() -> list[click.Parameter]:
    """The options, as click parameters."""
    return [click.Option([name], **more) for name, more in _OPTIONS]


def request_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the options, as arguments of `Studio.submit`."""
    priority = "background" if params["background"] else "interactive"
    return {"priority": priority, "client": params["client"], "time_limit_s": params["time_limit"]}


def takes_request(function: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command's function: adds the options, and passes them as `request`, arguments of `Studio.submit`."""

    @wraps(function)
    def call(*args: Any, **params: Any) -> int:
        given = {name: params.pop(name) for name in NAMES}
        return function(*args, **params, request=request_of(given))

    for name, more in reversed(_OPTIONS):
        click.option(name, **more)(call)
    return call
