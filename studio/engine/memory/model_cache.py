"""The model cache of a device: models are loaded when first needed, shared, offloaded, evicted and loaded again.

Weights are hashed before loading, and checked against a ``SHA256SUMS`` file in their folder or one of the two above it.
Hashes are cached per process by (path, size, modification time). Generators with the same `load` function and variant
share a model if their weights have equal content. The ledger counts the memory of models; `eviction` chooses which
models are evicted.

Try it: ``python -c "from studio.engine.memory.model_cache import *; print(hash_weights([Path('model.safetensors')]))"``
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from studio import devices
from studio.attention.current import DispatchSettings
from studio.caching import cached_property
from studio.devices import torch_setup
from studio.devices.memory import trim
from studio.engine.calls.call import Calling, ask
from studio.engine.memory.components import Component, Components
from studio.engine.memory.eviction import Candidate, choose_victims
from studio.engine.memory.ledger import Ledger, least_streamed_bytes, tensor_bytes, weight_bytes
from studio.engine.memory.model import Model, NotEnoughMemory, Rank, any_model
from studio.engine.observe.watcher import Watcher
from studio.engine.request import Request
from studio.errors import OutOfMemory
from studio.generator import Generator
from studio.units import show_bytes
from studio.weights.checksums import check_expected, hash_weights, sha256_once
from studio.weights.loading import Streaming, hosting

_STREAMED_PART = 16  # a streamed group of layers takes at most 1/16 of the budget, unless a layer is larger


_Key = tuple[Generator, Hashable, str]  # generator, the key of its ModelRef, dtype


class ModelCache:
    """The models of one device. `dtype` overrides what generators choose; `host` is the ledger of host memory for
    offload; `attention` dispatches the attention calls of the models.
    """

    def __init__(
        self, device: str, dtype: str | None = None, ledger: Ledger | None = None,
        clock: Callable[[], float] = time.perf_counter, host: Ledger | None = None,
        attention: DispatchSettings | None = None,
    ) -> None:  # fmt: skip
        self.attention = attention
        self.device, self._dtype, self._clock = device, dtype, clock
        self.ledger = ledger or Ledger()
        self.components = Components(device, self.ledger, sha256_once, host)
        self.watcher = Watcher()
        self.reserve: Callable[[Generator, str], int] = lambda generator, dtype: 0
        """The least memory that calls of a generator need besides weights and states, in bytes, as measured."""
        self._models: dict[Hashable, Model] = {}
        self._of: dict[_Key, Model] = {}
        self._claims: dict[_Key, tuple[int, int]] = {}  # bytes, and those of them for layers that pass

    @cached_property
    def label(self) -> str:
        """The device's name with its hardware: measurements on one GPU are not valid for another."""
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
        """How long the model's last load took on this device, in seconds, or None."""
        found = self._of.get(self._key(request))
        return None if found is None else found.return_s

    def claim(self, request: Request) -> int:
        """Bytes that the request's weights need, by the headers of their files. They are streamed if weights and calls
        exceed the budget and the generator supports streaming. Raises what `weights` raises.
        """
        key = self._key(request)
        if key in self._of:
            return self._of[key].size
        if key not in self._claims:
            files = request.generator.weights(request.weights)
            try:
                self._claims[key] = self._size(request.generator, files, self.dtype_for(request))[:2]
            except OSError:
                return 0  # missing or unreadable: `get` tells which, and why
        return self._claims[key][0]

    def get(self, request: Request, limit_s: float = 600.0, rank: Rank = any_model) -> Calling[Model]:
        """Return the model, loaded or restored if necessary; other models are evicted as `rank` allows.

        Raises NotEnoughMemory, WeightsError, OutOfMemory, or whatever the generator's `load` raises.
        """
        key = self._key(request)
        model = self._of.get(key)
        if model is None or not model.resident:
            model = yield from self._identify(request, limit_s)
            check_expected(request.spec.model.sha256, model.weights)
            if model.offloaded:
                self._restore(model, rank)
            elif not model.resident:
                yield from self._load(model, request, limit_s, rank)
            self._of[key] = model
        check_expected(request.spec.model.sha256, model.weights)
        self.components.wait(model.components)
        model.return_s = self.components.return_s(model.components) or model.return_s
        model.used = self._clock()
        return model

    @property
    def any_offloaded(self) -> bool:
        """Whether a model is offloaded."""
        return self.components.host is not None and self.components.host.used > 0

    def prefetch(self, request: Request) -> None:
        """Start to restore the model if it is offloaded and fits without evicting another."""
        found = self._of.get(self._key(request))
        if found is not None and found.offloaded:
            with suppress(NotEnoughMemory):
                self._restore(found, lambda model: None)

    def missing(self, request: Request) -> int:
        """Bytes that the device needs for the request's model: 0 if it is resident; shared components do not count."""
        found = self._of.get(self._key(request))
        if found is None:
            claim = self.claim(request)
            return claim - min(self._claims.get(self._key(request), (0, 0))[1], self.components.passing)
        return 0 if found.resident else self._missing_bytes(found)

    def _missing_bytes(self, model: Model) -> int:
        """Bytes that loading or restoring a model puts onto the device; packed layers count with their full size."""
        whole = model.size - model.unshared if model.offloaded else model.size + model.saved
        passing = min(model.passing, self.components.passing)
        return whole - passing - self.components.shared_bytes(model.weights.values())

    def evict_for(self, size: float, rank: Rank = any_model) -> bool:
        """Free `size` bytes: evict models that no request uses, else drop streamed layers, else evict others as well.

        Returns False, without evicting any, if that is impossible.
        """
        need = size - self.ledger.free
        if need <= 0:
            return True
        candidates = self._candidates(rank)
        idle = [each for each in candidates if not each.rank]
        for some, rest in ((idle, need), (candidates, need - self.components.droppable)):
            victims = choose_victims(some, max(0, rest))
            if victims is not None:
                break
        else:
            if not self._evict_together([each.what for each in candidates], need - self.components.droppable):
                return False
            victims = []
        self._evict(victims)
        self.components.drop(size - self.ledger.free)
        return True

    def _candidates(self, rank: Rank) -> list[Candidate[Model]]:
        now = self._clock()
        return [
            Candidate(model, self._combined([model]) - self._staying(model), rank_of, now - model.used, model.return_s)
            for model in self._models.values()
            if model.resident and model.size and (rank_of := rank(model)) is not None
        ]

    def _staying(self, model: Model) -> int:
        """Bytes that stay on the device when the model is offloaded."""
        return model.unshared if self.components.host is not None and model.can_offload else 0

    def _evict_together(self, models: Sequence[Model], need: float) -> bool:
        """Evict all these models if that frees `need` bytes, including components that only they share. If offloading
        does not free enough, discard them, together with offloaded models that left tensors on the device.
        """
        keeping = [model for model in self._models.values() if model.offloaded and model.unshared]
        combined, stays = self._combined(models), sum(self._staying(model) for model in models)
        if combined - stays >= need:
            self._evict(models)
        elif combined + sum(model.unshared for model in keeping) >= need:
            for model in (*keeping, *models):
                self._discard(model)
            release_freed(self.device)
        else:
            return False
        return True

    def _combined(self, models: Sequence[Model]) -> int:
        """Bytes that evicting these models frees."""
        leaving = set(models)
        components = {component for model in leaving for component in model.components if component.on_device}
        gone = [component for component in components if not any(user.resident for user in component.users - leaving)]
        passing = (
            0 if any(model.streamed and model not in leaving for model in self.resident()) else self.components.passing
        )
        own = sum(model.unshared for model in leaving) + sum(component.size for component in gone)
        return own + (passing if any(model.streamed for model in leaving) else 0)

    def evict_all(self, rank: Rank) -> int:
        """Evict all models that `rank` allows. Returns how many."""
        leaving = [each for each in self._models.values() if each.resident and each.size and rank(each) is not None]
        self._evict(leaving)
        return len(leaving)

    def drop_for_speed(self) -> str:
        """Free memory that only saves time, because memory has run out. Returns what it held, or ""."""
        device = self.components.device
        if device.recordings:
            device.drop_recordings(short=True)
            release_freed(self.device)
            return "recorded CUDA graphs"
        if self.components.drop_for_good():
            release_freed(self.device)
            return "streamed layers that had stayed"
        return ""

    def resident(self) -> list[Model]:
        """The models on the device."""
        return [model for model in list(self._models.values()) if model.resident]

    def clear(self) -> None:
        """Delete all models."""
        for model in self._models.values():
            self.ledger.release(model)
            self.components.release(model.components, model)
        self._models.clear()
        self._of.clear()

    def _identify(self, request: Request, limit_s: float) -> Calling[Model]:
        """Find the model by the content of its weights, or create one that is not loaded yet."""
        generator, dtype = request.generator, self.dtype_for(request)

        def look() -> tuple[dict[str, str], int, int, int]:
            files = generator.weights(request.weights)
            return hash_weights(files), *self._size(generator, files, dtype)

        hashes, size, passing, whole = yield from ask(generator.name, look, limit_s)
        function = getattr(generator.load, "__func__", generator.load)
        alike = (function, request.weights.form, tuple(sorted(hashes.values())), dtype, size < whole)
        key = alike if hashes else self._key(request)
        if key not in self._models:
            self._models[key] = Model(
                None, self.device, dtype, hashes, generator.name, size, resident=False, whole=whole,
                streamed=size < whole, passing=passing, attention=self.attention,
            )  # fmt: skip
        return self._models[key]

    def _size(self, generator: Generator, files: Sequence[Path], dtype: str) -> tuple[int, int, int]:
        """Bytes that the model needs on the device, those of them for streamed layers that pass, and the size of all
        its weights, which is larger if the model is streamed.
        """
        whole, budget = weight_bytes(files, dtype), self.ledger.budget
        if not generator.streams or budget is None:
            return whole, 0, whole
        calls = self.reserve(generator, dtype) or whole  # never measured: assume as much as the weights
        if whole + calls <= budget:
            return whole, 0, whole
        rest, largest = least_streamed_bytes(files, dtype)
        passing = largest * (2 if self.components.device.pins_memory else 1)
        return (rest + passing, passing, whole) if rest + passing < whole else (whole, 0, whole)

    def _load(self, model: Model, request: Request, limit_s: float, rank: Rank) -> Calling[None]:
        generator = request.generator
        while (
            need := self._missing_bytes(model)
        ) > self.ledger.free:  # who leaves may take along what was to be shared
            if not self.evict_for(need, rank):
                raise NotEnoughMemory
        begun = self._clock()
        torch_setup.prepare()
        how = self._streaming(model, rank) if model.streamed else None

        def load() -> tuple[Any, list[Component]]:
            with self.components.collecting() as components, hosting(self.components, how):
                return generator.load(request.weights, self.device, model.dtype), list(dict.fromkeys(components))

        try:
            model.value, model.components = yield from ask(generator.name, load, limit_s)
        except BaseException:
            self.components.forget_unused()
            raise
        self.components.restore(model.components)
        model.resident, model.return_s = True, self._clock() - begun
        self.components.use(model.components, model)
        model.passing = how.passing if how else 0
        self._check_claim(model, rank)
        self.watcher.loaded(model.name, self.device, model.size, begun, self._clock())

    def _streaming(self, model: Model, rank: Rank) -> Streaming:
        """How a model is streamed. Models that no request uses make room for its layers to stay."""
        need = model.whole + self.ledger.used - self.components.droppable - (self.ledger.budget or 0)
        idle = [each for each in self._candidates(rank) if not each.rank and not each.what.streamed]
        victims = choose_victims(idle, need) if need > 0 else []
        self._evict([each.what for each in idle] if victims is None else victims)
        return Streaming((self.ledger.budget or 0) // _STREAMED_PART, self.components.streamer)

    def _check_claim(self, model: Model, rank: Rank) -> None:
        """Measure a loaded model. One that is larger than its files is counted with its real size, or rejected if it
        does not fit. Files that were not loaded do not count.
        """
        stays = self.components.streamed_bytes(model.components)
        counted = tensor_bytes(model.value, self.device) - stays + model.passing
        claimed, model.saved = model.size + model.saved, sum(component.saved for component in model.components)
        model.size = counted if model.components else max(claimed, counted)
        shared = model.passing + sum(component.size for component in model.components)
        model.unshared = max(0, model.size - shared)
        self.ledger.hold(model, model.unshared)
        if counted <= claimed:
            return
        if not self.evict_for(0, lambda each: None if each is model else rank(each)):
            self._discard(model)
            release_freed(self.device)
            message = (
                f"the model of `{model.name}` needs {show_bytes(counted)} (its files: {show_bytes(claimed)}) and does"
                f" not fit into the budget of {show_bytes(self.ledger.budget or 0)}"
            )
            raise OutOfMemory(model.name, message, hint="raise `--memory`, or use a smaller model")

    def _restore(self, model: Model, rank: Rank) -> None:
        """Start to copy an offloaded model to the device. Raises NotEnoughMemory."""
        model.resident, model.offloaded = True, False  # so that restoring it does not evict its own components
        size = sum(component.size for component in model.components if not component.on_device)
        if not self.evict_for(size, lambda each: None if each is model else rank(each)):
            model.resident, model.offloaded = False, True
            raise NotEnoughMemory
        begun = self._clock()
        self.components.restore(model.components)
        if not self.components.device.asynchronous:
            model.return_s = self._clock() - begun
        self.watcher.loaded(model.name, self.device, model.size, begun, self._clock())

    def _evict(self, models: Sequence[Model]) -> None:
        """Evict models: offload them to host memory if they fit there, else discard them."""
        for model in models:
            if self._host_room(model):
                self.components.offload(model.exclusive_components)
                model.resident, model.offloaded = False, True
                self._report(model, "host")
            else:
                self._discard(model)
        if models:
            release_freed(self.device)

    def _host_room(self, model: Model) -> bool:
        """Whether the model can be offloaded; least recently used offloaded models are discarded first."""
        host = self.components.host
        size = sum(component.size for component in model.exclusive_components)
        if host is None or not model.can_offload or (host.budget is not None and size > host.budget):
            return False
        for other in sorted((each for each in self._models.values() if each.offloaded), key=lambda each: each.used):
            if size <= host.free:
                break
            self._discard(other)
        return size <= host.free

    def _discard(self, model: Model) -> None:
        model.value, model.resident, model.offloaded, model.unshared = None, False, False, 0
        self.ledger.release(model)
        self.components.release(model.components, model)
        model.components = []
        self._report(model, "dropped")
        for other in [each for each in self._models.values() if each.offloaded]:
            stranded = [
                component for component in other.exclusive_components if component.on_device
            ]  # they stayed for the model's sake
            if sum(component.size for component in stranded) > (
                self.components.host.free if self.components.host else 0
            ):
                self._discard(other)
            else:
                self.components.offload(stranded)

    def _report(self, model: Model, place: str) -> None:
        self.watcher.evicted(model.name, self.device, place, model.size, self._clock())


def release_freed(device: str) -> None:
    """Return freed memory to the device or the system: Python's cycles, torch's cache, the C library's heap."""
    gc.collect()
    devices.device(device).release_cached()
    trim()
