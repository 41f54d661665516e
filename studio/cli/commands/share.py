"""`studio share FILE|ID`: copy an output without its recipe and prompt."""

from __future__ import annotations

from pathlib import Path

import click

from studio.cli.lib.output import emit, note
from studio.cli.lib.settings import EPILOG, Settings
from studio.cli.lib.signing import signed, takes_signer


@click.command("share", epilog=EPILOG)
@click.argument("what", metavar="FILE|ID")
@click.option(
    "-o", "--output", metavar="FILE|DIR", help="The copy, of the same format.  [default: NAME-shared beside it]"
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@takes_signer
@click.pass_obj
def command(
    settings: Settings, what: str, output: str | None, force: bool, sign: Path | None, key: Path | None
) -> None:
    """Copy FILE, or the output ID in the store, without recipe, prompt, parameters and other metadata.

    The label that it is made by AI stays. Pixels, frames and samples do not change: nothing is encoded again.
    """
    from studio.cli.lib.destination import choose
    from studio.files import write_atomically
    from studio.media.share import shared_file

    path = Path(what)
    stored = not path.exists()
    if stored:
        path = settings.studio().show(what).path
    data, label = shared_file(path)
    name = f"{path.stem[:12] if stored else path.stem}-shared{path.suffix}"
    suffix = path.suffix.lower()
    place = choose(output or str((Path() if stored else path.parent) / name), 1, suffix, force=force)
    place = signed(place, settings, {"sign": sign, "key": key, "no_label": label is None and sign is None}, suffix)
    assert place.target is not None
    target = place.target / name if place.folder else place.target
    if place.signer is not None:
        data = place.signer.sign(data, suffix, label)
    emit(str(write_atomically(target, data, overwrite=force)))
    if label is None and not settings.quiet:
        note(f"note: `{path}` has no label that it is made by AI, so the copy has none")
