"""Set-up of torch before its first use, without importing it: the torchvision workaround, threads, inference mode.

open_clip depends on torchvision. With a CPU build of torch, torchvision from the package index cannot load its compiled
library, and importing it fails with ``operator torchvision::nms does not exist``, which also breaks diffusers and
transformers. Declaring the two missing operators first is enough, as nothing here calls them. `prepare` does so when
torchvision is first imported, if its library does not load.

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
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # waiting threads sleep instead of spin
_PRESSURE = Path("/proc/pressure/cpu")  # Linux: pressure stall information
_CROWDED_PERCENT = 25.0  # of the last ten seconds in which a task waited for a core
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_KEPT_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
# Expandable segments: less fragmentation of GPU memory.
_ALLOCATORS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
_usual: list[int] = []  # torch's default number of threads, once it is known
_loaded: ModuleType | None = None  # torch
_declared: list[object] = []  # torch.library.Library objects; the operators live as long as they do


class _BeforeTorchvision:
    """An import hook that finds nothing: it runs the workaround when torchvision is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            spec = PathFinder.find_spec(name)
            if spec is not None and spec.submodule_search_locations:
                _declare_missing(spec)


def prepare() -> None:
    """Install the torchvision workaround, limit oneDNN's cache, apply ``STUDIO_THREADS``, and make OpenMP threads wait
    passively if the machine is busy and the environment does not say how they wait.

    Cheap and repeatable; imports nothing. oneDNN reads its limit at the first layer, OpenMP when torch is imported.

    Raises UsageError if ``STUDIO_THREADS`` is not an integer from 1 to 1024.
    """
    if "torchvision" not in sys.modules and not any(isinstance(each, _BeforeTorchvision) for each in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())
    for name, value in (*_KEPT_KERNELS.items(), *_ALLOCATORS.items()):
        os.environ.setdefault(name, value)
    if "torch" not in sys.modules and not os.environ.keys() & {*_PASSIVE, "KMP_BLOCKTIME"} and crowded():
        os.environ.update(_PASSIVE)
    if wanted := os.environ.get(THREADS_VARIABLE):
        if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
            raise UsageError(f"{THREADS_VARIABLE} is `{wanted}`; it must be an integer from 1 to 1024")
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
    """Whether torchvision's compiled library loads; it does not if built for another torch or a missing CUDA."""
    import torch

    places = [Path(place) for place in spec.submodule_search_locations or ()]
    for compiled in [each for place in places for pattern in ("_C*.so", "_C*.pyd") for each in place.glob(pattern)]:
        with suppress(OSError):
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return True
    return False


def why_torchvision_needs_help() -> str | None:
    """Why diffusers and transformers cannot be imported without `prepare`, or None if they can. Imports torch."""
    spec = PathFinder.find_spec("torchvision")
    if spec is None or _compiled_operators_load(spec):
        return None
    return (
        "its compiled operators do not fit this torch; outside Studio, before importing diffusers or transformers, run:"
        " from studio import torch_setup; torch_setup.prepare()"
    )


def _torch() -> Any:
    """torch if it is completely loaded, else None. Cached, as every step needs it."""
    global _loaded
    if _loaded is None:
        torch = sys.modules.get("torch")
        if hasattr(torch, "inference_mode") and hasattr(torch, "get_num_threads"):
            _loaded = torch
    return _loaded


def inference() -> AbstractContextManager[object]:
    """``torch.inference_mode()`` if torch is loaded, else a context that does nothing."""
    torch = _torch()
    return nullcontext() if torch is None else torch.inference_mode()


class Inference:
    """Keeps its thread in ``torch.inference_mode()`` from the first `hold` after torch is loaded, and restores torch's
    default dtype after each call that changes it.

    For many calls in one thread: entering and leaving the mode costs 50 µs if caches are cold.
    """

    def __init__(self) -> None:
        self._held = ExitStack()
        self._dtype: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def hold(self) -> None:
        """Restore both, whatever the last call did."""
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
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crowded() -> bool:
    """Whether other processes keep the cores busy: tasks waited for a core in a quarter of the last ten seconds, or, if
    the system does not measure that, the load of the last minute exceeds the number of cores.
    """
    try:
        found = re.match(r"some avg10=(\d+(?:\.\d+)?)", _PRESSURE.read_text())
    except (OSError, ValueError):
        found = None
    if found:
        return float(found[1]) >= _CROWDED_PERCENT
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > cores()


def threads() -> int | None:
    """The number of threads that torch uses in this thread, or None if torch is not loaded."""
    torch = _torch()
    return None if torch is None else int(torch.get_num_threads())


def usual_threads() -> int | None:
    """torch's default number of threads, or ``STUDIO_THREADS``; None if torch is not loaded.

    Must be called before the first change: later threads inherit a change.
    """
    for name, most in _KEPT_KERNELS.items():
        os.environ.setdefault(name, most)
    if wanted := os.environ.get(THREADS_VARIABLE):
        return int(wanted)
    if not _usual and (count := threads()) is not None:
        _usual.append(count)
    return _usual[0] if _usual else None


def use_threads(count: int | None) -> None:
    """Set torch's number of threads in this thread; None leaves it unchanged."""
    torch = _torch()
    if count is None or torch is None or torch.get_num_threads() == count:
        return
    usual_threads()  # before the first change
    torch.set_num_threads(count)


def threads_are_free(device: str) -> bool:
    """Whether the host may choose the number of threads: on a CPU, unless ``STUDIO_THREADS`` is set."""
    return device == "cpu" and not os.environ.get(THREADS_VARIABLE)
