"""The engine: it owns the loop of every generator. `Engine` runs it in a thread, `Loop` is the loop itself, pure."""

from studio.engine.engine import Engine, Ticket
from studio.engine.request import (
    CancelledEvent,
    Event,
    Failed,
    Finished,
    Loading,
    Notice,
    Preview,
    Progress,
    Queued,
    Request,
    Started,
    Timing,
)

__all__ = [
    "CancelledEvent",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "Loading",
    "Notice",
    "Preview",
    "Progress",
    "Queued",
    "Request",
    "Started",
    "Ticket",
    "Timing",
]
