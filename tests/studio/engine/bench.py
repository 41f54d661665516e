"""The engine's loop on a bench: with an injected clock, every event kept, and memory as the test says."""

from __future__ import annotations

from studio.engine.cost.profile import Profile
from studio.engine.loop import MAX_RUNNING, Loop
from studio.engine.memory.ledger import Ledger
from studio.engine.memory.model_cache import ModelCache
from studio.engine.request import Request
from studio.engine.scheduling.tracked import TrackedRequest
from studio.recipe import PluginRef

PLUGIN = PluginRef(name="tests", version="1")


def ask(generator, inputs=None, seed=1, **options):
    """A request with these values for the generator's inputs, and these options of a JobSpec."""
    return Request.of(generator, generator.Inputs.parse(inputs or {}), seed, PLUGIN, **options)


class Ideal(Profile):
    """As if every width had been measured, and took the same time."""

    def seconds(self, group):
        return dict.fromkeys(range(1, 65), 0.01)

    def sure(self, group):
        return range(1, 65)


class Bench:
    """A loop on a device with a ledger of `budget` bytes; `options` are those of `Loop`.

    It is the loop's memory probe too: `last` is the peak of the latest call, which a test's generators set.
    """

    def __init__(self, *, budget=None, device="cpu", max_running=MAX_RUNNING, profile=None, **options):
        self.now, self.last = 0.0, 0
        self.events = {}
        self.ledger = Ledger(budget)
        self.models = ModelCache(device, ledger=self.ledger, clock=self.clock)
        self.loop = Loop(
            self.models, self.complete, self.clock, max_running, profile=profile or Ideal(), probe=self, **options
        )

    def clock(self):
        """Seconds; each look takes some."""
        self.now += 0.01
        return self.now

    def complete(self, entry, media):
        """What is made is not stored."""
        return lambda: media

    def begin(self, *, first=False):
        self.last = 0

    def peak(self):
        return self.last

    def resident(self):
        return None

    def recorded(self):
        return 0

    def accept(self, request):
        """Accept a request; its events are in `events`."""
        events = []
        entry = TrackedRequest(request, events.append, accepted=self.clock())
        self.events[entry] = events
        self.loop.accept(entry)
        return entry

    def tick(self):
        """Do one thing; whether there was one."""
        return self.loop.tick()

    def drain(self, ticks=10_000):
        """Tick until nothing is left to do; the last event of each request."""
        for _ in range(ticks):
            if not self.tick():
                return [events[-1] for events in self.events.values()]
        raise AssertionError("the loop does not come to an end")
