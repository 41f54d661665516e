"""The report of ``studio doctor``: versions, devices, memory, threads, attention backends, data folder, plugins.

Nothing is changed or created. Unlike most of the host, it imports torch.

Try it: ``studio doctor --json``
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import studio
from studio import devices
from studio.attention import Availability, availability
from studio.devices import torch_setup
from studio.engine.cost.profile import MEASURED, Profile, ProfileRow
from studio.plugins import PluginReport, Plugins
from studio.versions import libraries


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class DeviceReport(_Frozen):
    """A device: memory in bytes; `reason` says why it is not `usable`, else it is empty."""

    name: str
    description: str
    usable: bool
    reason: str = ""
    memory_total: int | None = None
    memory_free: int | None = None


class HomeReport(_Frozen):
    """The data folder: whether it is writable, the free bytes on its disk, and the reason if it is not writable."""

    path: Path
    writable: bool
    reason: str = ""
    free: int | None = None


class DoctorReport(_Frozen):
    """The report of ``studio doctor``.

    `torchvision` is its problem, or empty; `device` is the default device; `threads` are torch's CPU threads; `steps`
    are the engine's measurements so far, by batch size.
    """

    version: str
    platform: str
    libraries: dict[str, str]
    torchvision: str
    device: str
    devices: tuple[DeviceReport, ...]
    cores: int
    threads: int | None
    attention: tuple[Availability, ...]
    home: HomeReport
    plugins: tuple[PluginReport, ...]
    steps: tuple[ProfileRow, ...] = ()


def examine(device: str | None, home: Path, plugins: Plugins) -> DoctorReport:
    """Collect the report. Raises UsageError for a device that does not exist."""
    chosen = devices.choose_many(device)
    torch_setup.prepare()
    has_torch = importlib.util.find_spec("torch") is not None
    found = tuple(availability(chosen[0])) if has_torch else (Availability("sdpa", False, "torch is not installed"),)
    return DoctorReport(
        version=studio.__version__,
        platform=platform.platform(),
        libraries=libraries(),
        torchvision=(torch_setup.why_torchvision_needs_help() or "") if has_torch else "",
        device=",".join(chosen),
        devices=_devices(),
        cores=torch_setup.cores(),
        threads=torch_setup.threads(),
        attention=found,
        home=_home(home),
        plugins=tuple(plugins.reports),
        steps=tuple(Profile(home / MEASURED, libraries()).rows()),
    )


def _devices() -> tuple[DeviceReport, ...]:
    """The CPU, and every kind of accelerator with its devices, or why there are none."""
    found = [_device("cpu")]
    for kind, description in (
        (devices.Cuda, "NVIDIA or AMD GPU"), (devices.Mps, "Apple GPU, untested"), (devices.Xpu, "Intel GPU, untested")
    ):  # fmt: skip
        found += [_device(name) for name in kind.names()] or [
            DeviceReport(
                name=kind.kind, description=description, usable=False, reason=devices.why_unavailable(kind.kind) or ""
            )
        ]
    return tuple(found)


def _device(name: str) -> DeviceReport:
    each = devices.device(name)
    if reason := each.why_unavailable():
        return DeviceReport(name=name, description=each.kind, usable=False, reason=reason)
    return DeviceReport(
        name=name,
        description=each.description,
        usable=True,
        memory_total=each.total_memory(),
        memory_free=each.free_memory(),
    )


def _home(home: Path) -> HomeReport:
    """Whether the data folder, or the nearest folder above it that exists, can be written."""
    there = next((each for each in (home.absolute(), *home.absolute().parents) if each.exists()), Path("/"))
    if not there.is_dir():
        return HomeReport(path=home, writable=False, reason=f"`{there}` is a file, not a folder")
    writable = os.access(there, os.W_OK | os.X_OK)
    reason = "" if writable else f"you have no permission to write to the folder `{there}`"
    return HomeReport(path=home, writable=writable, reason=reason, free=shutil.disk_usage(there).free)
