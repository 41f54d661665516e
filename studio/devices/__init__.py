"""Devices: the CPU, CUDA (also ROCm builds of torch), MPS and XPU behind one protocol, and which one to use.

A device knows its memory, its fast dtype, how to wait for queued work and how to copy asynchronously. Nothing here
loads torch until a device needs it. Other kinds of device can be added with `register`; `studio.testing.fake_gpu` adds
one that runs on the CPU and catches mistakes that only a GPU would show.

Try it: ``python -c "from studio import devices; print(devices.device(devices.choose(None)).description)"``
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from studio.devices.accelerator import Mps, Xpu
from studio.devices.cpu import Cpu
from studio.devices.cuda import Cuda
from studio.devices.device import Device
from studio.devices.staging import Copy
from studio.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Copy",
    "Cpu",
    "Cuda",
    "Device",
    "Mps",
    "Xpu",
    "choose",
    "choose_many",
    "device",
    "names",
    "unusable_devices",
]
__all__ += ["download", "register", "upload", "why_unavailable"]

_NAME = re.compile(r"([a-z]+)(?::([0-9]{1,2}))?")
_kinds: dict[str, type[Device]] = {"cpu": Cpu, "cuda": Cuda, "mps": Mps, "xpu": Xpu}
_devices: dict[str, Device] = {}


def register(kind: str, made_by: type[Device]) -> None:
    """Add a kind of device; `made_by` is called with a name such as ``gpu:0``."""
    _kinds[kind] = made_by


def device(name: str) -> Device:
    """The device with a name that `choose` returned; one object per name.

    Raises UsageError for a name that is not a device.
    """
    name = _full(name)
    if name not in _devices:
        _devices[name] = _kinds[name.partition(":")[0]](name)
    return _devices[name]


def upload(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
    """A tensor on a torch device: itself if it is there, else a copy, without a wait if possible.

    See `Device.upload`. For an unknown kind of device torch copies.
    """
    if tensor.device == where:
        return tensor
    return device(str(where)).upload(tensor) if where.type in _kinds else tensor.to(where)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in host memory: itself if it is there, else a copy, through pinned memory if possible. The thread waits
    for it. For an unknown kind of device torch copies.
    """
    if tensor.device.type == "cpu":
        return tensor
    where = tensor.device
    return device(str(where)).to_host([tensor])[0] if where.type in _kinds else tensor.cpu()


def names() -> tuple[str, ...]:
    """All usable accelerators, best first: ``cuda:0``, ``cuda:1`` …; empty if there is only the CPU."""
    for kind in (Cuda, Xpu, Mps):
        if found := tuple(name for name in kind.names() if not kind(name).why_unavailable()):
            return found
    return ()


def unusable_devices() -> tuple[str, ...]:
    """A notice for each GPU that the driver sees and that cannot be used, for users who did not choose a device."""
    found = [(name, Cuda(name).why_unavailable()) for name in Cuda.names()]
    return tuple(f"the device `{name}` is not used: {reason}" for name, reason in found if reason)


def choose(wanted: str | None) -> str:
    """Check a device's name and complete it (``cuda`` is ``cuda:0``), or choose: the first accelerator, else the CPU.

    Raises UsageError for a name that is not a device, and for a device that is missing or cannot be used.
    """
    if wanted is None:
        return next(iter(names()), "cpu")
    if reason := why_unavailable(wanted):
        raise UsageError(f"the device `{wanted}` cannot be used: {reason}", hint="use `--device cpu`")
    return _full(wanted)


def choose_many(wanted: str | None) -> tuple[str, ...]:
    """Check a list of devices, separated by commas, or choose: every accelerator that can be used, else the CPU.

    Raises UsageError as `choose` does, and for a device that is named twice.
    """
    if wanted is None:
        return names() or ("cpu",)
    chosen = tuple(choose(each.strip()) for each in wanted.split(","))
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"the devices are `{wanted}`; each may be named only once", hint="remove the repeated name")
    return chosen


def why_unavailable(name: str) -> str | None:
    """Why a device cannot be used, or None if it can. Raises UsageError for a name that is not a device."""
    return device(name).why_unavailable()


def _full(name: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in _kinds or (match[1] == "cpu" and match[2]):
        kinds = ", ".join(f"`{kind}`" for kind in _kinds)
        raise UsageError(f"the device is `{name}`; it must be {kinds}, optionally with a number such as `cuda:1`")
    return "cpu" if match[1] == "cpu" else f"{match[1]}:{int(match[2] or 0)}"
