"""`studio token`: the tokens that clients of the server send."""

from __future__ import annotations

import click

from studio.cli.lib.output import emit, emit_json, table
from studio.cli.lib.settings import Settings


@click.group("token")
def command() -> None:
    """Create, list and revoke the tokens that clients of `studio serve` send.

    Once there is one, every request needs one. Only hashes are stored.
    """


@command.command("create")
@click.argument("name")
@click.pass_obj
def create(settings: Settings, name: str) -> None:
    """Create the token NAME and print it. It cannot be shown again."""
    from studio.server.tokens import AccessTokens

    emit(AccessTokens(settings.studio().home).create(name))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def show(settings: Settings, as_json: bool) -> None:
    """List the tokens by name."""
    from studio.server.tokens import AccessTokens

    found = AccessTokens(settings.studio().home).all()
    if as_json:
        emit_json([{"name": each.name, "created": each.created} for each in found])
    elif found:
        table(("name", "created"), [(each.name, each.created) for each in found])


@command.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(settings: Settings, name: str) -> None:
    """Revoke the token NAME; a running server refuses it at once."""
    from studio.server.tokens import AccessTokens

    AccessTokens(settings.studio().home).revoke(name)
