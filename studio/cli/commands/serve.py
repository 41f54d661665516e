"""`studio serve`: the HTTP server."""

from __future__ import annotations

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
@click.pass_obj
def command(
    settings: Settings, host: str, port: int, token: str, hosts: tuple[str, ...], origins: tuple[str, ...]
) -> int:
    """Serve all generators over HTTP until Ctrl-C: to clients of OpenAI, of Stable Diffusion WebUI, and of Studio."""

    def ready(url: str) -> None:
        emit(url)
        if not settings.quiet:
            note("serving; Ctrl-C ends it")

    def work(supervisor: Supervisor) -> int:
        from studio.server.serve import ServeOptions, serve

        serve(settings.studio(), ServeOptions(host, port, token, hosts, origins), ready, supervisor)
        return 0

    settings.local = True
    return settings.supervised(work)
