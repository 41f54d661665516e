"""TrackedRequest: one accepted request inside the loop, with its state and its bookkeeping.

Try it: ``pytest tests/studio/engine/test_loop.py``
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from studio import devices
from studio.engine.calls.failures import InvalidReturn
from studio.engine.cost.profile import Group, shape_of
from studio.engine.events import Delta, Event
from studio.engine.memory.model import Model
from studio.engine.request import Request, Timing
from studio.generator import Generator, Rng, State
from studio.media import Text

_RECENT = 10  # end times of the latest steps, from which the time left is estimated


@dataclass(eq=False)
class TrackedRequest:
    """One accepted request inside the loop. `cancelled` may be set by another thread; only the loop sets the rest.

    `number` rises in the order of acceptance. `threads` is the number of CPU threads of its steps and finish, None to
    leave that to torch. `isolated_steps` counts the steps that it still makes unbatched after a batch failed.
    """

    request: Request
    emit: Callable[[Event], None]
    accepted: float
    number: int = 0
    timing: Timing = field(default_factory=Timing)
    cancelled: bool = False
    released: bool = False  # it holds no memory any more; its output may still be on its way to the store
    ended: bool = False
    paused: bool = False  # its state was saved to continue later, so it stays when the request ends
    model: Model | None = None
    rng: Rng | None = None
    state: State | None = None
    done: bool = False  # as its latest state says
    facts: Mapping[str, Any] = field(default_factory=dict)  # from the generator, for the recipe
    key: Hashable = None
    group: Group | None = None
    threads: int | None = None
    isolated_steps: int = 0
    batch_failures: int = 0
    previews_failed: bool = False
    stage_steps: int = -1  # since its batch key last changed; -1 until then
    gave_way: bool = False  # the last step of its lane was led by a request that catches up with it
    emitted: list[str] = field(default_factory=list)  # the streamed text, in pieces
    emitted_length: int = 0  # in characters
    shrunk: int = 0
    evictions: int = 0  # of models for this request, since its last step
    width_min: int = 0
    width_max: int = 0
    notices: list[str] = field(default_factory=list)
    late: list[tuple[str, Any]] = field(default_factory=list)  # unread sums of its states on the device, see finite
    last_notice: str = ""  # a notice for the end, so that it does not interrupt streamed text
    attention: set[str] = field(default_factory=set)  # names of the attention backends of its calls
    started: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))  # end times of its latest steps
    name: str = field(init=False)  # of the generator
    client: str = field(init=False)  # the client that it belongs to
    background: bool = field(init=False)  # low priority
    streams: bool = field(init=False)  # its text is emitted as it is generated
    lane: str = field(init=False)  # requests of one client in one lane finish in order of arrival

    def __post_init__(self) -> None:
        spec = self.request.spec
        self.name, self.client, self.background = spec.generator, spec.client, spec.priority == "background"
        self.streams = spec.stream and issubclass(self.request.generator.output, Text)
        self.lane = self.name

    @property
    def model_value(self) -> Any:
        """The loaded model, as generators get it."""
        return self.model.value if self.model else None

    def emit_text(self, piece: str) -> None:
        """Emit new text."""
        if piece:
            self.emit(Delta(self.emitted_length, piece))
            self.emitted.append(piece)
            self.emitted_length += len(piece)

    def emit_rest(self, text: str) -> None:
        """Emit the rest of the complete text. Raises InvalidReturn if it does not start with the emitted text."""
        if not text.startswith(emitted := "".join(self.emitted)):
            raise InvalidReturn(
                f"returned a text that does not begin with the {len(emitted):,} characters that `delta` gave"
            )
        self.emit_text(text[len(emitted) :])

    @property
    def limit_s(self) -> float:
        """The timeout of one call for it, in seconds."""
        return self.request.spec.time_limit_s or self.request.generator.time_limit_s

    def eta_s(self, state: State) -> float:
        """Estimated seconds for the remaining steps, at the pace of the latest ones."""
        recent = self.recent
        return (recent[-1] - recent[0]) / (len(recent) - 1) * max(0, state.steps - state.position)


def group_of(entry: TrackedRequest) -> Group:
    """The profile group of a running request's next step. States of generators that do not batch have one shape."""
    generator = entry.request.generator
    shape = "" if type(generator).batch_key is Generator.batch_key else shape_of(entry.key)
    model = entry.model
    device, dtype = (devices.device(model.device).label, model.dtype) if model else ("", "")
    return Group(generator.name, generator.version, shape, device, dtype, entry.threads)
