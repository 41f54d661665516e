"""What torch needs before it is used, without importing it: the torchvision trap and threads.

**The torchvision trap.** open_clip depends on torchvision. Beside a CPU build of torch, the torchvision of the
package index cannot load its compiled library, and importing it then fails with ``operator torchvision::nms does not
exist``, taking diffusers and transformers down with it. Declaring the two missing operators first is enough, as nothing
here calls them. `prepare` arranges that this happens when torchvision is first imported, and only if its
own library does not load. This module knows
nothing of models or engines.

Try it: ``python -c "from studio.devices import torch_setup; torch_setup.prepare(); import torchvision"``
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from studio.errors import UsageError

THREADS_VARIABLE = "STUDIO_THREADS"
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # threads that wait for others sleep instead of spin
_PRESSURE = Path("/proc/pressure/cpu")  # Linux: pressure stall information
_CROWDED_PERCENT = 25.0  # of the last ten seconds, in which something waited for a core
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_KEPT_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
# Segments that grow: blocks of unlike sizes leave less of a GPU's memory unused.
_ALLOCATORS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
_usual: list[int] = []  # the count that torch came with, once it was asked
_loaded: ModuleType | None = None  # torch
_declared: list[object] = []  # torch.library.Library objects; the operators live as long as they do


class _BeforeTorchvision:
    """A finder that finds nothing: it acts when torchvision is looked for, and steps aside."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            spec = PathFinder.find_spec(name)
            if spec is not None and spec.submodule_search_locations:
                _declare_missing(spec)


def prepare() -> None:
    """Arrange for torchvision to import, bound what oneDNN keeps, apply ``STUDIO_THREADS``, and let OpenMP threads wait
    passively if the machine is crowded and the user's environment does not say how they wait.

    Cheap, repeatable, imports nothing. oneDNN reads its bound at the first layer, OpenMP when torch is imported.

    Raises UsageError if ``STUDIO_THREADS`` is no whole number of at least 1.
    """
    if "torchvision" not in sys.modules and not any(isinstance(each, _BeforeTorchvision) for each in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())
    for name, value in (*_KEPT_KERNELS.items(), *_ALLOCATORS.items()):
        os.environ.setdefault(name, value)
    if "torch" not in sys.modules and not os.environ.keys() & {*_PASSIVE, "KMP_BLOCKTIME"} and crowded():
        os.environ.update(_PASSIVE)
    if wanted := os.environ.get(THREADS_VARIABLE):
        if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
            raise UsageError(f"{THREADS_VARIABLE} is `{wanted}`; it must be a whole number from 1 to 1024")
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(int(wanted))
        else:
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = wanted


def _declare_missing(spec: ModuleSpec) -> None:
    """Declare ``torchvision::nms`` and ``::qnms`` if torchvision's compiled library does not load."""
    import torch

    if _compiled_operators_load(spec):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _compiled_operators_load(spec: ModuleSpec) -> bool:
    """Whether torchvision's compiled library loads; it does not if built for another torch, or for a CUDA not here."""
    import torch

    places = [Path(place) for place in spec.submodule_search_locations or ()]
    for compiled in [each for place in places for pattern in ("_C*.so", "_C*.pyd") for each in place.glob(pattern)]:
        with suppress(OSError):
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return True
    return False


def why_torchvision_needs_help() -> str | None:
    """Say that stock diffusers and transformers need `prepare` first, or None where they import by themselves.

    Imports torch.
    """
    spec = PathFinder.find_spec("torchvision")
    if spec is None or _compiled_operators_load(spec):
        return None
    return (
        "its compiled operators do not fit this torch; outside Studio, before importing diffusers or transformers, run:"
        " from studio.devices import torch_setup; torch_setup.prepare()"
    )


def _torch() -> Any:
    """torch, where it is loaded to the end, else None. Asked for at every step, so it is remembered."""
    global _loaded
    if _loaded is None:
        torch = sys.modules.get("torch")
        if hasattr(torch, "inference_mode") and hasattr(torch, "get_num_threads"):
            _loaded = torch
    return _loaded


def inference() -> AbstractContextManager[object]:
    """``torch.inference_mode()`` where torch is loaded, else a context that does nothing."""
    torch = _torch()
    return nullcontext() if torch is None else torch.inference_mode()


class Inference:
    """Holds the thread that enters it in ``torch.inference_mode()``, from the first `hold` when torch is loaded, and
    torch's default dtype at what it was then: a call that changes it changes it for itself only.

    For many calls in one thread: to enter the mode and to leave it costs 50 µs where caches are cold.
    """

    def __init__(self) -> None:
        self._held = ExitStack()
        self._dtype: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def hold(self) -> None:
        """See to it that both are as they should be, whatever the last call did."""
        torch = _torch()
        if torch is None:
            return
        if not torch.is_inference_mode_enabled():
            self._held.enter_context(torch.inference_mode())
        dtype = torch.get_default_dtype()
        if self._dtype is None:
            self._dtype = dtype
        elif dtype is not self._dtype:
            torch.set_default_dtype(self._dtype)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crowded() -> bool:
    """Whether other work keeps the cores busy: something waited for a core in a quarter of the last ten seconds. Where
    the system does not tell that, whether the load of the last minute exceeds the cores.
    """
    try:
        found = re.match(r"some avg10=(\d+(?:\.\d+)?)", _PRESSURE.read_text())
    except (OSError, ValueError):
        found = None
    if found:
        return float(found[1]) >= _CROWDED_PERCENT
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > cores()


def threads() -> int | None:
    """How many threads torch computes with in this thread, or None where it is not loaded."""
    torch = _torch()
    return None if torch is None else int(torch.get_num_threads())


def usual_threads() -> int | None:
    """How many torch takes by itself, or ``STUDIO_THREADS`` says; None where torch is not loaded.

    Asked before the count is changed for the first time: a change in one thread is what later threads begin with.
    """
    for name, most in _KEPT_KERNELS.items():
        os.environ.setdefault(name, most)
    if wanted := os.environ.get(THREADS_VARIABLE):
        return int(wanted)
    if not _usual and (count := threads()) is not None:
        _usual.append(count)
    return _usual[0] if _usual else None


def use_threads(count: int | None) -> None:
    """Let torch compute with so many threads in this thread; None leaves it as it is."""
    torch = _torch()
    if count is None or torch is None or torch.get_num_threads() == count:
        return
    usual_threads()  # before the first change
    torch.set_num_threads(count)


def threads_are_free(device: str) -> bool:
    """Whether the host may choose: on a CPU, unless ``STUDIO_THREADS`` has chosen."""
    return device == "cpu" and not os.environ.get(THREADS_VARIABLE)
