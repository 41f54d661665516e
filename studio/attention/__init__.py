"""One attention for every model: `attend`, the descriptions of what queries may see, and the kernels behind them.

Importing this loads no torch; using a name does. Knows nothing of models; `routes` brings stock ones here.

Try it: ``studio attention --shape 1,4096,8,64 --bias spacetime:grid=16x16x16,window=8x8x8,tile=4x4x4``
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studio.attention.backend import Backend
    from studio.attention.bias import Bias, Blocks, Causal, Dense, Lengths, SpaceTime
    from studio.attention.cache import KVCache
    from studio.attention.dispatch import Dispatch, attend, attend_rows
    from studio.attention.probe import Availability, availability
    from studio.attention.problem import Problem
    from studio.attention.serving import Serving, recorded
    from studio.attention.spans import Spans, attend_spans
    from studio.attention.table import Table

_HOMES = {
    "Availability": "probe",
    "Backend": "backend",
    "Bias": "bias",
    "Blocks": "bias",
    "Causal": "bias",
    "Dense": "bias",
    "Dispatch": "dispatch",
    "KVCache": "cache",
    "Lengths": "bias",
    "Problem": "problem",
    "Serving": "serving",
    "SpaceTime": "bias",
    "Spans": "spans",
    "Table": "table",
    "attend": "dispatch",
    "attend_rows": "dispatch",
    "attend_spans": "spans",
    "availability": "probe",
    "recorded": "serving",
}
__all__ = [
    "Availability",
    "Backend",
    "Bias",
    "Blocks",
    "Causal",
    "Dense",
    "Dispatch",
    "KVCache",
    "Lengths",
    "Problem",
    "Serving",
    "SpaceTime",
    "Spans",
    "Table",
    "attend",
    "attend_rows",
    "attend_spans",
    "availability",
    "recorded",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
