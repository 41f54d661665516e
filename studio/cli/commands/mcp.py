"""`studio mcp`: the server for agents, over standard input and output."""

from __future__ import annotations

import click

from studio.cli.lib.settings import EPILOG, Settings


@click.command("mcp", epilog=EPILOG)
@click.pass_obj
def command(settings: Settings) -> None:
    """Serve agents with the Model Context Protocol over standard input and output.

    Name `studio mcp` as the command of a server in your MCP client. It ends when the client closes the connection.
    """
    from studio.server.mcp.server import run

    run(settings.studio())
