"""OOM recovery: the fallbacks that are tried, one at a time, when a call runs out of memory.

In order: drop recorded CUDA graphs (they are soon recorded again), drop streamed layers that had stayed on the device,
evict idle models, halve the batch size for good, ask the generator for a state that needs less (`shrink`: tiles,
chunks), evict the models of other requests. Each fallback is reported to the requests concerned and noted in their
recipes.

Try it: ``pytest tests/studio/engine/test_memory.py``
"""

from __future__ import annotations

from studio.engine.calls.call import Calling, ask
from studio.engine.calls.failures import check_state
from studio.engine.scheduling.admission import Admission
from studio.engine.scheduling.tracked import TrackedRequest

MAX_EVICTIONS = 4  # times that models may be evicted for a request between two of its steps
MAX_SHRINKS = 4  # times that the state of a request may be made smaller


def recover(admission: Admission, batch: list[TrackedRequest]) -> Calling[str]:
    """Apply the next fallback that may help a batch. Returns its description, or "" if none is left."""
    lead = batch[0]
    if fallback := drop_for_speed(admission, lead):
        return fallback
    if lead.evictions < MAX_EVICTIONS and admission.models.evict_all(admission.rank_idle):
        lead.evictions += 1
        return "retrying without idle models"
    if len(batch) > 1 and lead.group is not None:
        return f"retrying with batch size {admission.halve(lead.group, len(batch))}"
    if (yield from _shrink(lead)):
        return "retrying with smaller chunks"
    return evict_models(admission, lead)


def drop_for_speed(admission: Admission, entry: TrackedRequest) -> str:
    """Free memory that only saves time: recorded CUDA graphs, else streamed layers that stay on the device. Returns a
    description, or "" if there was none.
    """
    if entry.evictions >= MAX_EVICTIONS or not (dropped := admission.models.drop_for_speed()):
        return ""
    entry.evictions += 1
    return f"retrying without {dropped}"


def evict_models(admission: Admission, entry: TrackedRequest) -> str:
    """Drop what only saves time, else evict idle models, else those of other requests. Returns a description, or "".

    Two requests that run out of memory each time would evict each other's models for ever, so a request may do this
    only `MAX_EVICTIONS` times before it completes another step.
    """
    if fallback := drop_for_speed(admission, entry):
        return fallback
    if entry.evictions >= MAX_EVICTIONS:
        return ""
    entry.evictions += 1
    if admission.models.evict_all(admission.rank_idle):
        return "retrying without idle models"
    evicted = admission.models.evict_all(admission.rank_for_step(entry))
    return "retrying without the models of other requests" if evicted else ""


def _shrink(entry: TrackedRequest) -> Calling[bool]:
    """Ask the generator for a state that needs less memory; a generator that cannot, or fails, is not asked again."""
    generator, model, state = entry.request.generator, entry.model_value, entry.state
    if entry.shrunk >= MAX_SHRINKS:
        return False
    entry.shrunk += 1
    try:
        smaller = yield from ask(entry.name, lambda: generator.shrink(model, state), entry.limit_s)
        if smaller is None:
            entry.shrunk = MAX_SHRINKS
            return False
        entry.state = check_state(smaller)
    except Exception:  # the out-of-memory error that led here is the one to report
        entry.shrunk = MAX_SHRINKS
        return False
    return True
