"""One attention for every model: `attend`, masks as descriptions, and the backends (kernels) that compute it.

Importing this loads no torch; using a name does. `routes` lets models of other libraries use it.

Try it: ``studio attention --shape 1,4096,8,64 --bias spacetime:grid=16x16x16,window=8x8x8,tile=4x4x4``
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studio.attention.backend import Backend
    from studio.attention.bias import Bias, Blocks, Causal, Dense, Lengths
    from studio.attention.cache import KVCache
    from studio.attention.current import DispatchSettings, record_backends
    from studio.attention.dispatch import Dispatch, attend, attend_rows
    from studio.attention.probe import Availability, availability
    from studio.attention.problem import Problem
    from studio.attention.spacetime import SpaceTime
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
    "DispatchSettings": "current",
    "SpaceTime": "spacetime",
    "Spans": "spans",
    "Table": "table",
    "attend": "dispatch",
    "attend_rows": "dispatch",
    "attend_spans": "spans",
    "availability": "probe",
    "record_backends": "current",
}
__all__ = [
    "Availability",
    "Backend",
    "Bias",
    "Blocks",
    "Causal",
    "Dense",
    "Dispatch",
    "DispatchSettings",
    "KVCache",
    "Lengths",
    "Problem",
    "SpaceTime",
    "Spans",
    "Table",
    "attend",
    "attend_rows",
    "attend_spans",
    "availability",
    "record_backends",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
