"""The options of every request: client, priority and time limit, and `--no-label` of those that make media.

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


def label_option() -> click.Option:
    """The option `--no-label`, for commands that make media."""
    return click.Option(["--no-label"], is_flag=True, help="Write no label that the output is made by AI.")


def label_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The value of `--no-label`, as an argument of `Studio.submit`."""
    return {"ai_label": False if params.get("no_label") else None}


def takes_label(function: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command's function: adds `--no-label`, and passes it as `label`, an argument of `Studio.submit`."""

    @wraps(function)
    def call(*args: Any, no_label: bool, **params: Any) -> int:
        return function(*args, **params, label=label_of({"no_label": no_label}))

    declared = label_option()
    return click.option(*declared.opts, is_flag=True, help=declared.help)(call)


def takes_request(function: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command's function: adds the options, and passes them as `request`, arguments of `Studio.submit`."""

    @wraps(function)
    def call(*args: Any, **params: Any) -> int:
        given = {name: params.pop(name) for name in NAMES}
        return function(*args, **params, request=request_of(given))

    for name, more in reversed(_OPTIONS):
        click.option(name, **more)(call)
    return call
