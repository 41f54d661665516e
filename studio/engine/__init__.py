"""The engine: it owns the loop of every generator. `Engine` runs it in a thread, `Loop` is the loop itself, pure."""

from studio.engine.engine import Engine
from studio.engine.events import (
    CancelledEvent,
    Delta,
    Event,
    Failed,
    Finished,
    Loading,
    Notice,
    Preview,
    Progress,
    Queued,
    Started,
)
from studio.engine.request import Request, Timing
from studio.engine.ticket import Ticket

__all__ = [
    "CancelledEvent",
    "Delta",
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
