"""`--sign CERT --key KEY`: sign the files that `-o` writes (see `studio.media.signing`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from studio.cli.lib.settings import Settings
    from studio.destination import Destination

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--sign", {"metavar": "FILE", "type": click.Path(path_type=Path),
                "help": "Sign the output (C2PA) with this PEM certificate and its chain; needs --key."}),
    ("--key", {"metavar": "FILE", "type": click.Path(path_type=Path), "help": "PEM private key for --sign."}),
)  # fmt: skip


def sign_options() -> list[click.Parameter]:
    """The options, as click parameters."""
    return [click.Option([name], **more) for name, more in _OPTIONS]


def takes_signer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command's function: adds the options as `sign` and `key`."""
    for name, more in reversed(_OPTIONS):
        click.option(name, **more)(function)
    return function


def signed(target: Destination, settings: Settings, params: Mapping[str, Any], suffix: str) -> Destination:
    """The target, to which signed files are written if the options or the data folder's settings say so; `suffix` is of
    files in a folder. Raises UsageError for options that do not fit, before anything runs.
    """
    from studio import configuration
    from studio.errors import UsageError
    from studio.media.signing import Signer

    certificate, key = params.get("sign"), params.get("key")
    if (certificate is None) != (key is None):
        raise UsageError("`--sign` and `--key` belong together", hint="name the certificate and its private key")
    if certificate is not None and target.target is None:
        raise UsageError("`--sign` signs the file that `-o` writes, but there is no `-o`", hint="name the output file")
    if certificate is not None and params.get("no_label"):
        raise UsageError("`--sign` and `--no-label` exclude each other: what is signed is how the output was made",
                         hint="leave out one of the two")  # fmt: skip
    if certificate is None and target.target is not None and not params.get("no_label"):
        certificate, key = configuration.labels(settings.studio().home).signer
    if certificate is None or key is None or target.target is None:
        return target
    signer = Signer(certificate, key)
    signer.check(suffix if target.folder else target.target.suffix.lower())
    return replace(target, signer=signer)
