"""The global options, which every command gets by `@click.pass_obj`, and the `Studio` that they configure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.cli.lib.output import stray_prints_aside

if TYPE_CHECKING:
    from studio.api import Studio
    from studio.generator import Generator
    from studio.jobs.supervisor import Supervisor
    from studio.plugins.commands import PluginCommands

EPILOG = (
    "Global options (--plugin, --home, --device, --memory, --invariant, --trace, --local, --quiet, --debug) are"
    " accepted here as well."
)
PATIENCE_S = 3.0  # how long an interrupted command waits for the step in flight


@dataclass
class Settings:
    """The global options, passed to every command as `ctx.obj`, and the `Studio` that they configure."""

    plugins: tuple[Path, ...] = ()
    home: Path | None = None
    device: str | None = None
    memory: str | None = None
    invariant: bool = False
    trace: Path | None = None
    local: bool = False
    quiet: bool = False
    debug: bool = False
    stuck: bool = False  # the host did not close in time
    found: PluginCommands | None = None  # the commands of plugins, once they were looked for
    _studio: Studio | None = None

    def studio(self) -> Studio:
        """The `Studio`, created once. Nothing heavy is loaded until it is used."""
        if self._studio is None:
            from studio.api import Studio

            self._studio = Studio(
                home=self.home,
                device=self.device,
                plugins=self.plugins,
                memory=self.memory,
                invariant=self.invariant,
                trace=self.trace,
                use_server=self._may_use_server,
            )
            with stray_prints_aside():
                _ = self._studio.plugins  # imports them
        return self._studio

    @property
    def _may_use_server(self) -> bool:
        """Whether a server of the data folder may run the requests: it has its own plugins, devices and memory."""
        own = self.device is not None or self.memory is not None or self.trace is not None
        return not (self.local or own or self.plugins)

    def generator(self, name: str) -> Generator:
        """A generator by name. Raises UnknownName; its hint also lists plugins that could not be loaded."""
        from studio.errors import UnknownName

        host = self.studio()
        try:
            return host.generator(name)
        except UnknownName as error:
            broken = [
                f"; plugin `{each.name}` {each.status}: {each.reason}" for each in host.plugins.reports if each.reasons
            ]
            error.hint = f"{error.hint}{''.join(broken)}"
            raise

    def supervised(self, work: Callable[[Supervisor], int]) -> int:
        """Do a command's work in a supervised process (see `studio.jobs.supervisor`), and return its exit code. The
        `Studio` is created there.
        """
        from studio.cli.main import explain
        from studio.jobs.supervisor import supervise

        def main(supervisor: Supervisor) -> int:
            try:
                return work(supervisor)
            except BaseException as error:
                return explain(error, debug=self.debug)
            finally:
                self.close()

        return supervise(main)

    def close(self) -> None:
        """Cancel unfinished requests and close the `Studio`; stop waiting after `PATIENCE_S`, or at another Ctrl-C."""
        if self._studio is None:
            return
        closing = threading.Thread(target=self._studio.close, daemon=True)
        closing.start()
        with suppress(KeyboardInterrupt):
            closing.join(PATIENCE_S)
        self.stuck = closing.is_alive()
        if self.stuck:
            self._studio.abandon()
