"""Models on one device: loaded when first needed, held once, dropped when room is needed and loaded again.

Weights are hashed before they are loaded, and checked against a ``SHA256SUMS`` file that lies in their folder or in
one of the two above it. Hashes are kept per process by (path, size, time of change). Generators that share a `load`
function and a `variant`, and whose weights have equal content, share the model. What a model holds stands in the
ledger; which one leaves is decided in `residency`. This module knows nothing of requests.

Try it: ``python -c "from studio.engine.memory.model_cache import *; print(hash_weights([Path('model.safetensors')]))"``
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio import devices
from studio.attention.serving import Serving
from studio.caching import cached_property
from studio.devices import torch_setup
from studio.devices.memory import trim
from studio.engine.calls.call import Calling, ask
from studio.engine.memory.components import Part, Parts
from studio.engine.memory.eviction import Candidate, choose_victims
from studio.engine.memory.ledger import Ledger, least_streamed_bytes, tensor_bytes, weight_bytes
from studio.engine.observe.watcher import Watcher
from studio.engine.request import Request
from studio.errors import OutOfMemory, WeightsError
from studio.generator import Generator
from studio.units import show_bytes
from studio.weights.checksums import hash_weights, sha256_once
from studio.weights.loading import Streaming, hosted

_KEPT_PART = 4  # of a model's parts: the most that it may have besides, and keep on the device while they wait
_STREAMED_PART = 16  # of the budget: the most that a group of layers takes, unless a layer is larger


class NoRoom(Exception):
    """There is no room for a model now; there may be later."""


@dataclass(eq=False)
class Model:
    """A model and what the recipe says of it: `weights` maps file names to sha256.

    `value` is None while it is neither `resident` nor `put_off` to host memory; `size` is in bytes, `return_s` what its
    last way onto the device took. `whole` is what its files come to; where it is `streamed`, `size` is the layers that
    stay and the groups of the others that are there at a time. `saved` are the bytes by which packing made it smaller:
    loading it takes these besides. It holds `parts`, which others may share, and `own` bytes of tensors besides, which
    stay on the device while the parts are put off. `attention` serves calls that it is lent to.
    """

    value: Any
    device: str
    dtype: str
    weights: dict[str, str] = field(default_factory=dict)
    name: str = ""
    size: int = 0
    resident: bool = True
    used: float = 0.0
    return_s: float = 0.0
    whole: int = 0
    saved: int = 0
    streamed: bool = False
    put_off: bool = False
    own: int = 0
    parts: list[Part] = field(default_factory=list)
    attention: Serving | None = None

    @property
    def exclusive(self) -> list[Part]:
        """Parts on the device that no other model there uses."""
        return [
            part for part in self.parts if part.on_device and not any(user.resident for user in part.users - {self})
        ]

    @property
    def freed(self) -> int:
        """Bytes that come free when it is dropped."""
        return self.own + sum(part.size for part in self.exclusive)

    @property
    def may_wait(self) -> bool:
        """Whether it is worth putting off: what it has besides its parts is little."""
        return bool(self.parts) and self.own * _KEPT_PART <= sum(part.size for part in self.parts)


_Key = tuple[Generator, tuple[str, str], str]  # generator, its weights and variant, dtype
Rank = Callable[[Model], int | None]  # how much a model would be missed; None: it must stay


def _all_may_leave(model: Model) -> int | None:
    return 0


class Models:
    """The models on one device. `dtype` overrides what generators choose; `host` is the ledger of host memory, where
    models may be put off to; `attention` serves the calls that they are lent to.
    """

    def __init__(
        self,
        device: str,
        dtype: str | None = None,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.perf_counter,
        host: Ledger | None = None,
        attention: Serving | None = None,
    ) -> None:
        self.attention = attention
        self.device, self._dtype, self._clock = device, dtype, clock
        self.ledger = ledger or Ledger()
        self.parts = Parts(device, self.ledger, sha256_once, host)
        self.watcher = Watcher()
        self.reserve: Callable[[Generator, str], int] = lambda generator, dtype: 0
        """Bytes that a generator's calls are known to take besides weights and states, at the least."""
        self._models: dict[Hashable, Model] = {}
        self._of: dict[_Key, Model] = {}
        self._claims: dict[_Key, int] = {}

    @cached_property
    def label(self) -> str:
        """The device's name with its hardware: what was measured on one card does not hold for another."""
        return devices.device(self.device).label

    def dtype_for(self, request: Request) -> str:
        """The dtype to use: the request's, else the user's, else the generator's choice."""
        return request.spec.dtype or self._dtype or request.generator.dtype_for(self.device)

    def _key(self, request: Request) -> _Key:
        return request.generator, request.weights.key, self.dtype_for(request)

    def loaded(self, request: Request) -> bool:
        """Whether `get` would return at once."""
        found = self._of.get(self._key(request))
        return found is not None and found.resident

    def load_s(self, request: Request) -> float | None:
        """What loading the model took here when it was last done, in seconds, or None."""
        found = self._of.get(self._key(request))
        return None if found is None else found.return_s

    def claim(self, request: Request) -> int:
        """Bytes that the request's weights take there, by their files' headers: streamed, if the whole and what calls
        take are above the budget and the generator streams. Raises as `weights` does.
        """
        key = self._key(request)
        if key in self._of:
            return self._of[key].size
        if key not in self._claims:
            files = request.generator.weights(request.weights)
            try:
                self._claims[key] = self._size(request.generator, files, self.dtype_for(request))[0]
            except OSError:
                return 0  # missing or unreadable: `get` tells which, and why
        return self._claims[key]

    def get(self, request: Request, limit_s: float = 600.0, rank: Rank = _all_may_leave) -> Calling[Model]:
        """Return the model, loading it if need be; others leave for it as `rank` allows.

        Raises NoRoom, WeightsError, OutOfMemory, or whatever the generator's `load` raises.
        """
        key = self._key(request)
        model = self._of.get(key)
        if model is None or not model.resident:
            model = yield from self._identify(request, limit_s)
            _check_hashes(request, model.weights)
            if model.put_off:
                self._bring_back(model, rank)
            elif not model.resident:
                yield from self._load(model, request, limit_s, rank)
            self._of[key] = model
        _check_hashes(request, model.weights)
        self.parts.wait(model.parts)
        model.return_s = self.parts.return_s(model.parts) or model.return_s
        model.used = self._clock()
        return model

    @property
    def any_put_off(self) -> bool:
        """Whether there is a model in host memory."""
        return self.parts.host is not None and self.parts.host.used > 0

    def prefetch(self, request: Request) -> None:
        """If the model was put off and there is room for it, begin to copy it back while others compute."""
        found = self._of.get(self._key(request))
        if found is not None and found.put_off:
            with suppress(NoRoom):
                self._bring_back(found, lambda model: None)

    def missing(self, request: Request) -> int:
        """Bytes that come onto the device if the model is wanted: none if it is there, no parts that are shared."""
        found = self._of.get(self._key(request))
        if found is None:
            return self.claim(request)
        return 0 if found.resident else self._to_come(found)

    def _to_come(self, model: Model) -> int:
        """Bytes that come onto the device with a model that is not there; what is packed comes whole."""
        whole = model.size - model.own if model.put_off else model.size + model.saved
        return whole - self.parts.there(model.weights.values())

    def make_room(self, size: float, rank: Rank = _all_may_leave) -> bool:
        """Let models leave until `size` bytes are free; False, and none leaves, if that cannot be had."""
        need = size - self.ledger.free
        if need <= 0:
            return True
        now = self._clock()
        candidates = [
            Candidate(model, model.freed - self._stays(model), rank_of, now - model.used, model.return_s)
            for model in self._models.values()
            if model.resident and model.size and (rank_of := rank(model)) is not None
        ]
        victims = choose_victims(candidates, need)
        if victims is not None:
            self._leave(victims)
            return True
        return self._leave_together([each.what for each in candidates], need)

    def _stays(self, model: Model) -> int:
        """Bytes that stay on the device when the model leaves for host memory."""
        return model.own if self.parts.host is not None and model.may_wait else 0

    def _leave_together(self, models: Sequence[Model], need: float) -> bool:
        """Let all these leave, if `need` bytes come free so: what two of them share goes with both. If it takes that,
        drop them, with what they and those that were put off keep on the device.
        """
        keeping = [model for model in self._models.values() if model.put_off and model.own]
        all_of, stays = self._all_of(models), sum(self._stays(model) for model in models)
        if all_of - stays >= need:
            self._leave(models)
        elif all_of + sum(model.own for model in keeping) >= need:
            for model in (*keeping, *models):
                self._drop(model)
            give_back(self.device)
        else:
            return False
        return True

    def _all_of(self, models: Sequence[Model]) -> int:
        leaving = set(models)
        parts = {part for model in leaving for part in model.parts if part.on_device}
        gone = [part for part in parts if not any(user.resident for user in part.users - leaving)]
        return sum(model.own for model in leaving) + sum(part.size for part in gone)

    def drop_all(self, rank: Rank) -> int:
        """Let every model go that may; returns how many went."""
        leaving = [each for each in self._models.values() if each.resident and each.size and rank(each) is not None]
        self._leave(leaving)
        return len(leaving)

    def drop_recordings(self) -> bool:
        """Give up the memory that recorded launches keep; False if there were none."""
        device = self.parts.device
        if not device.recordings:
            return False
        device.drop_recordings(short=True)
        give_back(self.device)
        return True

    def resident(self) -> list[Model]:
        """The models that are on the device."""
        return [model for model in list(self._models.values()) if model.resident]

    def clear(self) -> None:
        """Let go of every model."""
        for model in self._models.values():
            self.ledger.release(model)
            self.parts.leave(model.parts, model)
        self._models.clear()
        self._of.clear()

    def _identify(self, request: Request, limit_s: float) -> Calling[Model]:
        """Find the model by the content of its weights, or make one that is not loaded yet."""
        generator, dtype = request.generator, self.dtype_for(request)

        def look() -> tuple[dict[str, str], int, int]:
            files = generator.weights(request.weights)
            return hash_weights(files), *self._size(generator, files, dtype)

        hashes, size, whole = yield from ask(generator.name, look, limit_s)
        function = getattr(generator.load, "__func__", generator.load)
        alike = (function, request.weights.variant, tuple(sorted(hashes.values())), dtype, size < whole)
        key = alike if hashes else self._key(request)
        if key not in self._models:
            self._models[key] = Model(
                None, self.device, dtype, hashes, generator.name, size, resident=False, whole=whole,
                streamed=size < whole, attention=self.attention,
            )  # fmt: skip
        return self._models[key]

    def _size(self, generator: Generator, files: Sequence[Path], dtype: str) -> tuple[int, int]:
        """Bytes to make room for, and those of the whole; they differ where the model is to be streamed."""
        whole, budget = weight_bytes(files, dtype), self.ledger.budget
        if not generator.streams or budget is None:
            return whole, whole
        beside = self.reserve(generator, dtype) or whole  # of a step never made: as much again
        if whole + beside <= budget:
            return whole, whole
        at_once = 2 if self.parts.device.pins else 1
        return min(whole, least_streamed_bytes(files, dtype, at_once)), whole

    def _load(self, model: Model, request: Request, limit_s: float, rank: Rank) -> Calling[None]:
        generator = request.generator
        while (need := self._to_come(model)) > self.ledger.free:  # who leaves may take along what was to be shared
            if not self.make_room(need, rank):
                raise NoRoom
        begun = self._clock()
        torch_setup.prepare()
        how = Streaming(limit=(self.ledger.budget or 0) // _STREAMED_PART) if model.streamed else None

        def load() -> tuple[Any, list[Part]]:
            with self.parts.collecting() as parts, hosted(self.parts, how):
                return generator.load(request.weights, self.device, model.dtype), list(dict.fromkeys(parts))

        try:
            model.value, model.parts = yield from ask(generator.name, load, limit_s)
        except BaseException:
            self.parts.forget_unused()
            raise
        self.parts.bring_back(model.parts)
        model.resident, model.return_s = True, self._clock() - begun
        self.parts.use(model.parts, model)
        self._check_claim(model, rank, how.passing if how else 0)
        self.watcher.loaded(model.name, self.device, model.size, begun, self._clock())

    def _check_claim(self, model: Model, rank: Rank, comes: int) -> None:
        """Count what was loaded, and what `comes` and goes; a model that holds more than its files say is believed, or
        refused. Where its weights are parts nothing is left out, and files that were not loaded do not count.
        """
        counted = tensor_bytes(model.value, self.device) + comes
        claimed, model.saved = model.size + model.saved, sum(part.saved for part in model.parts)
        model.size = counted if model.parts else max(claimed, counted)
        model.own = max(0, model.size - sum(part.size for part in model.parts))
        self.ledger.hold(model, model.own)
        if counted <= claimed:
            return
        if not self.make_room(0, lambda each: None if each is model else rank(each)):
            self._drop(model)
            give_back(self.device)
            message = (
                f"the model of `{model.name}` takes {show_bytes(counted)}, though its files come to"
                f" {show_bytes(claimed)}, and does not fit into the budget of {show_bytes(self.ledger.budget or 0)}"
            )
            raise OutOfMemory(model.name, message, hint="give it more with `--memory`, or use a smaller model")

    def _bring_back(self, model: Model, rank: Rank) -> None:
        """Copy what was put off back onto the device. Raises NoRoom."""
        model.resident, model.put_off = True, False  # so that nothing of it is let go of for its own sake
        size = sum(part.size for part in model.parts if not part.on_device)
        if not self.make_room(size, lambda each: None if each is model else rank(each)):
            model.resident, model.put_off = False, True
            raise NoRoom
        begun = self._clock()
        self.parts.bring_back(model.parts)
        if not self.parts.device.queues:
            model.return_s = self._clock() - begun
        self.watcher.loaded(model.name, self.device, model.size, begun, self._clock())

    def _leave(self, models: Sequence[Model]) -> None:
        """Put models off to host memory where they fit, and drop the others."""
        for model in models:
            if self._host_room(model):
                self.parts.put_off(model.exclusive)
                model.resident, model.put_off = False, True
                self._tell(model, "host")
            else:
                self._drop(model)
        if models:
            give_back(self.device)

    def _host_room(self, model: Model) -> bool:
        """Whether a model can be put off; those that were put off longest ago are dropped for it."""
        host = self.parts.host
        size = sum(part.size for part in model.exclusive)
        if host is None or not model.may_wait or (host.budget is not None and size > host.budget):
            return False
        for other in sorted((each for each in self._models.values() if each.put_off), key=lambda each: each.used):
            if size <= host.free:
                break
            self._drop(other)
        return size <= host.free

    def _drop(self, model: Model) -> None:
        model.value, model.resident, model.put_off, model.own = None, False, False, 0
        self.ledger.release(model)
        self.parts.leave(model.parts, model)
        model.parts = []
        self._tell(model, "dropped")
        for other in [each for each in self._models.values() if each.put_off]:
            stranded = [part for part in other.exclusive if part.on_device]  # they stayed for the model's sake
            if sum(part.size for part in stranded) > (self.parts.host.free if self.parts.host else 0):
                self._drop(other)
            else:
                self.parts.put_off(stranded)

    def _tell(self, model: Model, place: str) -> None:
        self.watcher.evicted(model.name, self.device, place, model.size, self._clock())


def give_back(device: str) -> None:
    """Return what was freed to the device or the system: Python's cycles, torch's cache, the C library's heap."""
    gc.collect()
    devices.device(device).release_cached()
    trim()


def _check_hashes(request: Request, found: Mapping[str, str]) -> None:
    wanted = request.spec.model.sha256
    if wanted and wanted != found:
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        message = f"the weights are not those that the request names: {', '.join(f'`{name}`' for name in names[:5])}"
        raise WeightsError(Path(names[0]), message, hint="leave `sha256` out to use what is here")
