"""Biases as text, for the command line: `causal:window=128`, `spacetime:grid=8x24x24,window=4x16x8,tile=4x8x8`.

A bias is a kind, a colon, and `name=value` pairs; `+` joins several. Sizes are `8x24x24`, lists of numbers `0/512/900`.
`none` is no bias. `Dense` has no text form, since it is a tensor.

Try it: ``python -c "from studio.attention.spec import parse; print(parse('causal:window=4+lengths:keys=5/7'))"``
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from studio.attention.bias import Bias, Blocks, Causal, Lengths
from studio.attention.spacetime import SpaceTime
from studio.errors import UnknownName, UsageError


def _number(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,12}", text):
        raise ValueError("a whole number")
    return int(text)


def _row(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,12}(/\d{1,12})*", text):
        raise ValueError("whole numbers with `/` between them")
    return [int(each) for each in text.split("/")]


def _sides(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,6}x\d{1,6}x\d{1,6}", text):
        raise ValueError("three sizes such as `8x24x24`: time, height, width")
    return tuple(int(each) for each in text.split("x"))


_Fields = dict[str, Callable[[str], Any]]
_KINDS: dict[str, tuple[Callable[..., Bias], _Fields, tuple[str, ...]]] = {
    "causal": (Causal, {"window": _number, "offset": _number}, ()),
    "lengths": (Lengths, {"keys": _row, "queries": _row}, ("keys",)),
    "blocks": (Blocks, {"cu_seqlens": _row, "cu_seqlens_k": _row}, ("cu_seqlens",)),
    "spacetime": (SpaceTime, {"grid": _sides, "window": _sides, "tile": _sides}, ("grid", "window")),
}


def parse(text: str) -> Bias | None:
    """The bias that `text` describes. Raises UsageError, which suggests the nearest name for a misspelt one."""
    if text.strip() == "none":
        return None
    bias: Bias | None = None
    for term in text.split("+"):
        found = _term(term.strip())
        bias = found if bias is None else bias + found
    return bias


def _term(text: str) -> Bias:
    kind, _, rest = text.partition(":")
    if kind not in _KINDS:
        raise UnknownName("bias", kind, ("none", *_KINDS))
    make, fields, needed = _KINDS[kind]
    given: dict[str, Any] = {}
    for pair in rest.split(",") if rest else ():
        name, equals, value = pair.partition("=")
        if name not in fields:
            raise UnknownName(f"setting of `{kind}`", name, fields)
        if name in given:
            raise UsageError(f"`{kind}` has `{name}` twice")
        try:
            given[name] = fields[name](value)
        except ValueError as error:
            raise UsageError(f"`{name}` of `{kind}` is `{value if equals else ''}`; it must be {error}") from None
    if missing := [name for name in needed if name not in given]:
        raise UsageError(
            f"`{kind}` lacks {' and '.join(f'`{name}`' for name in missing)}", hint=f"`{kind}:{missing[0]}=…`"
        )
    return make(**given)
