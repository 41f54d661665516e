"""Deprecations: an old name goes on working for a while, and says once what takes its place.

Knows nothing of what is deprecated; whoever renames something calls `deprecated` where the old name is used.

Try it: ``python -W always -c "from studio.deprecation import deprecated; deprecated('old', 'new', gone_in='2')"``
"""

from __future__ import annotations

import warnings

_told: set[str] = set()


def deprecated(old: str, replacement: str, *, gone_in: str, stacklevel: int = 2) -> None:
    """Warn, once in a process for each `old`, that it goes in version `gone_in` and what to use in its place.

    `stacklevel` is that of `warnings.warn`, counted from the caller; 2 names the place that called the caller.
    """
    if old in _told:
        return
    _told.add(old)
    message = f"{old} is deprecated and goes in {gone_in}; use {replacement}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)
