"""Entry: one accepted request inside the loop, and all that the loop keeps of it.

Try it: ``pytest tests/studio/engine/test_loop.py``
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from studio import devices
from studio.engine.calls.failures import Garbage
from studio.engine.cost.profile import Group, shape_of
from studio.engine.events import Delta, Event
from studio.engine.memory.model_cache import Model
from studio.engine.request import Request, Timing
from studio.generator import Generator, Rng, State
from studio.media import Text

_RECENT = 10  # moments of its latest steps, by which the time left is judged


@dataclass(eq=False)
class Entry:
    """One accepted request inside the loop. `cancelled` may be set by another thread; the rest is the loop's own.

    `number` rises in the order of acceptance. `threads` is what its steps and its finish compute with, None where that
    is left to torch. `alone` counts the steps it still makes by itself after a batch failed.
    """

    request: Request
    emit: Callable[[Event], None]
    accepted: float
    number: int = 0
    timing: Timing = field(default_factory=Timing)
    cancelled: bool = False
    released: bool = False  # it holds nothing any more: what was made of it may still be on its way to the store
    ended: bool = False
    model: Model | None = None
    rng: Rng | None = None
    state: State | None = None
    done: bool = False  # as its state said when it was made
    facts: Mapping[str, Any] = field(default_factory=dict)  # the generator's own, for the recipe
    key: Hashable = None
    group: Group | None = None
    threads: int | None = None
    alone: int = 0
    batch_failures: int = 0
    previews_failed: bool = False
    told: list[str] = field(default_factory=list)  # the text that was streamed, piece by piece
    told_length: int = 0  # in characters
    shrunk: int = 0
    drops: int = 0  # of models, for its sake, since its last step
    width_min: int = 0
    width_max: int = 0
    notices: list[str] = field(default_factory=list)
    late: list[tuple[str, Any]] = field(default_factory=list)  # sums of its states that are on the device, see finite
    last_notice: str = ""  # what the user is told when the media are made, not amidst a text that is streamed
    attention: set[str] = field(default_factory=set)  # names of the backends that served its calls
    started: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))  # when its latest steps ended
    name: str = field(init=False)  # the generator's
    client: str = field(init=False)  # on whose behalf
    background: bool = field(init=False)  # whether it gives way to those that are not
    streams: bool = field(init=False)  # its text is told as it is written
    lane: str = field(init=False)  # requests of one client in one lane are finished in the order they came

    def __post_init__(self) -> None:
        spec = self.request.spec
        self.name, self.client, self.background = spec.generator, spec.client, spec.priority == "background"
        self.streams = spec.stream and issubclass(self.request.generator.output, Text)
        self.lane = self.name

    @property
    def lent(self) -> Any:
        """The model's value, as generators see it."""
        return self.model.value if self.model else None

    def tell_text(self, piece: str) -> None:
        """Tell the user what was written since."""
        if piece:
            self.emit(Delta(self.told_length, piece))
            self.told.append(piece)
            self.told_length += len(piece)

    def tell_rest(self, text: str) -> None:
        """Tell the user the rest of the whole text. Raises Garbage if it does not begin with what was told."""
        if not text.startswith(told := "".join(self.told)):
            raise Garbage(f"returned a text that does not begin with the {len(told):,} characters that `delta` gave")
        self.tell_text(text[len(told) :])

    @property
    def limit_s(self) -> float:
        """How long one call for it may take, in seconds."""
        return self.request.spec.time_limit_s or self.request.generator.time_limit_s

    def eta_s(self, state: State) -> float:
        """How long the steps that are left will take, if they come as the last ones came."""
        recent = self.recent
        return (recent[-1] - recent[0]) / (len(recent) - 1) * max(0, state.steps - state.position)


def group_of(entry: Entry) -> Group:
    """The steps that a running request's next step is alike to. States that share no step have one shape."""
    generator = entry.request.generator
    shape = "" if type(generator).batch_key is Generator.batch_key else shape_of(entry.key)
    model = entry.model
    device, dtype = (devices.device(model.device).label, model.dtype) if model else ("", "")
    return Group(generator.name, generator.version, shape, device, dtype, entry.threads)
