"""`studio serve`: the HTTP server."""

from __future__ import annotations

import os
import sys
import webbrowser
from typing import TYPE_CHECKING

import click

from studio.cli.lib.output import emit, note
from studio.cli.lib.settings import Settings

if TYPE_CHECKING:
    from studio.jobs.supervisor import Supervisor

PORT = 7860


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Address to listen on. Any but a loopback one needs a token.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True,
              help="Port to listen on; 0 takes a free one.")  # fmt: skip
@click.option("--token", default="", envvar="STUDIO_TOKEN", metavar="TEXT", show_envvar=True,
              help="A token that clients must send, besides those of `studio token`.")  # fmt: skip
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME",
              help="Another name of this server, which clients may use. Repeatable.")  # fmt: skip
@click.option("--allow-origin", "origins", multiple=True, metavar="ORIGIN",
              help="A site whose pages may ask, such as https://chat.example.com. Repeatable.")  # fmt: skip
@click.option("--browser/--no-browser", default=True,
              help="Open the page in a browser, if this is a terminal with a display.")  # fmt: skip
@click.pass_obj
def command(
    settings: Settings,
    host: str,
    port: int,
    token: str,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    browser: bool,
) -> int:
    """Serve all generators over HTTP until Ctrl-C: as a page for browsers, and to clients of other programs.

    Clients of OpenAI, of Stable Diffusion WebUI, of ComfyUI and of Studio can use it.
    """

    def work(supervisor: Supervisor) -> int:
        from studio.server.serve import ServeOptions, serve

        def ready(url: str) -> None:
            emit(url)
            if not settings.quiet:
                note("serving; Ctrl-C ends it")
            if browser and not supervisor.crash and sys.stdout.isatty() and _has_display():
                webbrowser.open(url)

        serve(settings.studio(), ServeOptions(host, port, token, hosts, origins), ready, supervisor)
        return 0

    settings.local = True
    return settings.supervised(work)


def _has_display() -> bool:
    """Whether a browser can open a window."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
