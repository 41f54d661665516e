"""`studio doctor`: what this machine and this installation can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from studio.cli.lib.output import emit, table
from studio.cli.lib.settings import Settings
from studio.units import show_bytes

if TYPE_CHECKING:
    from studio.doctor import DoctorReport
    from studio.engine.cost.profile import ProfileRow


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """Show versions, devices, memory, the data folder and attention backends, and why any is unavailable."""
    report = settings.studio().doctor()
    if as_json:
        emit(report.model_dump_json(indent=2, exclude={"plugins": {"__all__": {"traceback_text"}}}))
    else:
        table(("what", "state", "more"), list(_rows(report)))


def _rows(report: DoctorReport) -> Iterator[tuple[str, str, str]]:
    yield "studio", report.version, report.platform
    for name, version in report.libraries.items():
        if name != "studio":
            yield f"library {name}", version, ""
    if report.torchvision:
        yield "library torchvision", "needs help", report.torchvision
    used = set(report.device.split(","))
    for device in report.devices:
        state = "usable" if device.usable else "not usable"
        chosen = " (used by default)" if used & {device.name, device.name.partition(":")[0]} else ""
        yield f"device {device.name}", state, device.reason or device.description + chosen
        if device.memory_total is not None:
            free = "" if device.memory_free is None else f"{show_bytes(device.memory_free)} free"
            yield f"memory {device.name}", show_bytes(device.memory_total), free
    yield "processor cores", str(report.cores), f"torch uses {_threads(report.threads or report.cores)}"
    for backend in report.attention:
        yield f"attention {backend.name}", "available" if backend.available else "not available", backend.reason
    home = report.home
    free = "" if home.free is None else f", {show_bytes(home.free)} free"
    yield "home", "writable" if home.writable else "not writable", home.reason or f"{home.path}{free}"
    for plugin in report.plugins:
        yield f"plugin {plugin.name}", plugin.status, plugin.reason or ", ".join(plugin.generators)
    for row in report.steps:
        width = "" if row.call == "start" else f" by {row.width}"
        yield f"{row.call} {row.generator} {row.shape}{width}", *_measured(row)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _measured(row: ProfileRow) -> tuple[str, str]:
    """`170.2 ms` and `47.0 a second, 18.1 MiB, cpu, bfloat16, 2 threads`."""
    took = "not timed" if row.median is None else f"{row.median * 1000:.1f} ms"
    facts = [f"{row.width / row.median:.1f} a second"] if row.median else []
    facts += [] if row.peak is None else [show_bytes(row.peak)]
    facts += [row.device, row.dtype, *([_threads(row.threads)] if row.threads else [])]
    return took, ", ".join(facts)
