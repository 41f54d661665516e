"""The ladder: what is tried, one rung at a time, when a call ran out of memory.

Recorded launches go, and are soon recorded again; idle models leave; the batch is halved, for good; the generator is
asked for a state that needs less (`shrink`: tiles, chunks); the models of other requests leave, to be loaded again when
it is their turn. The rung that was taken is told to those whose step it was, and stands in their recipes. This module
knows nothing of the loop.

Try it: ``pytest tests/studio/engine/test_memory.py``
"""

from __future__ import annotations

from studio.engine.admission import Room
from studio.engine.calls.call import Calling, ask
from studio.engine.calls.failures import check_state
from studio.engine.entry import Entry

MOST_DROPS = 4  # how often models may be dropped for a request between two of its steps
MOST_SHRINKS = 4  # how often a request's state may be made smaller


def climb(room: Room, batch: list[Entry]) -> Calling[str]:
    """Take the next rung that may help a batch, and say which; empty where none is left."""
    lead = batch[0]
    if rung := drop_recordings(room, lead):
        return rung
    if lead.drops < MOST_DROPS and room.models.drop_all(room.idle):
        lead.drops += 1
        return "idle models were dropped"
    if len(batch) > 1 and lead.group is not None:
        return f"the width was reduced to {room.halve(lead.group, len(batch))}"
    if (yield from _shrink(lead)):
        return "it goes on in smaller pieces"
    return drop_models(room, lead)


def drop_recordings(room: Room, entry: Entry) -> str:
    """Drop recorded launches, which keep memory to themselves; say so, or nothing where there were none."""
    if entry.drops >= MOST_DROPS or not room.models.drop_recordings():
        return ""
    entry.drops += 1
    return "recorded launches were dropped"


def drop_models(room: Room, entry: Entry) -> str:
    """Drop recorded launches, or idle models, or, where there are none, those of others; say which, or nothing.

    Others come back when it is their turn: two that run out of memory each time would drop each other's for ever, so a
    request may do so only a few times before it must get a step further.
    """
    if rung := drop_recordings(room, entry):
        return rung
    if entry.drops >= MOST_DROPS:
        return ""
    entry.drops += 1
    if room.models.drop_all(room.idle):
        return "idle models were dropped"
    return "the models of others were dropped" if room.models.drop_all(room.all_but(entry)) else ""


def _shrink(entry: Entry) -> Calling[bool]:
    """Ask the generator for a state that needs less; one that cannot, or fails at it, is asked no more."""
    generator, model, state = entry.request.generator, entry.lent, entry.state
    if entry.shrunk >= MOST_SHRINKS:
        return False
    entry.shrunk += 1
    try:
        smaller = yield from ask(entry.name, lambda: generator.shrink(model, state), entry.limit_s)
        if smaller is None:
            entry.shrunk = MOST_SHRINKS
            return False
        entry.state = check_state(smaller)
    except Exception:  # the out-of-memory error that led here is the one to tell
        entry.shrunk = MOST_SHRINKS
        return False
    return True
