"""What ``studio doctor`` tells: versions, devices, memory, threads, attention backends, the data folder, plugins.

It looks and changes nothing (no folder is made). Unlike the rest of the host it imports torch, to ask it.

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
from studio import torch_setup
from studio.attention import Availability, availability
from studio.engine.measured import MEASURED, Measured, Row
from studio.engine.provenance import libraries
from studio.plugins import PluginReport, Plugins


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class DeviceReport(_Frozen):
    """A device: memory in bytes; `reason` says why it is not `usable`, and is empty where it is."""

    name: str
    description: str
    usable: bool
    reason: str = ""
    memory_total: int | None = None
    memory_free: int | None = None


class HomeReport(_Frozen):
    """The data folder: whether it can be written, bytes free on its disk, why not writable."""

    path: Path
    writable: bool
    reason: str = ""
    free: int | None = None


class DoctorReport(_Frozen):
    """All that ``studio doctor`` prints.

    `torchvision` says what is wrong with it, if anything; `device` is the one that would be used; `threads` are torch's
    on the CPU; `steps` is what the engine has measured so far, by width.
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
    steps: tuple[Row, ...] = ()


def examine(device: str | None, home: Path, plugins: Plugins) -> DoctorReport:
    """Look at everything. Raises UsageError for a device that is not here."""
    chosen = torch_setup.choose_devices(device)
    torch_setup.prepare()
    has_torch = importlib.util.find_spec("torch") is not None
    found = tuple(availability(chosen[0])) if has_torch else (Availability("sdpa", False, "torch is not installed"),)
    return DoctorReport(
        version=studio.__version__,
        platform=platform.platform(),
        libraries=libraries(),
        torchvision=(torch_setup.why_torchvision_needs_help() or "") if has_torch else "",
        device=",".join(chosen),
        devices=(_cpu(), *_cuda()),
        cores=torch_setup.cores(),
        threads=torch_setup.threads(),
        attention=found,
        home=_home(home),
        plugins=tuple(plugins.reports),
        steps=tuple(Measured(home / MEASURED, libraries()).rows()),
    )


def _cpu() -> DeviceReport:
    """The processor and the machine's memory, as far as the system tells."""
    total = free = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    name = platform.processor() or platform.machine()
    if meminfo.exists():
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        free = next((int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"), None)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return DeviceReport(name="cpu", description=name, usable=True, memory_total=total, memory_free=free)


def _cuda() -> list[DeviceReport]:
    if reason := torch_setup.why_no_cuda():
        return [DeviceReport(name="cuda", description="NVIDIA GPU", usable=False, reason=reason)]
    import torch

    if not torch.cuda.is_available():
        reason = "torch does not accept this driver or card"
        return [DeviceReport(name="cuda", description="NVIDIA GPU", usable=False, reason=reason)]
    reports = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        reports.append(
            DeviceReport(name=f"cuda:{index}", description=name, usable=True, memory_total=total, memory_free=free)
        )
    return reports


def _home(home: Path) -> HomeReport:
    """Whether the data folder, or the nearest folder above it that exists, can be written."""
    there = next((each for each in (home.absolute(), *home.absolute().parents) if each.exists()), Path("/"))
    if not there.is_dir():
        return HomeReport(path=home, writable=False, reason=f"`{there}` is a file, not a folder")
    writable = os.access(there, os.W_OK | os.X_OK)
    reason = "" if writable else f"the folder `{there}` is not yours to write to"
    return HomeReport(path=home, writable=writable, reason=reason, free=shutil.disk_usage(there).free)
