"""Waking coroutines from other threads.

Try it: ``pytest tests/studio/engine/test_ticket.py tests/studio/jobs/test_feed.py``
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def future_and_waker() -> tuple[asyncio.Future[None], Callable[[], None]]:
    """A future of the running event loop, and a function that completes it from any thread.

    The function does nothing once the future is done or the loop is closed.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    return future, partial(_wake, loop, future)


def _wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_settle, future)
    except RuntimeError:
        return  # the loop was closed: no coroutine waits there any more


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
