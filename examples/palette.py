"""A command and a method without a generator: `studio palette FILE`, and `Studio.palette`."""

import click

import studio
from studio.cli.lib.output import emit, emit_json


def palette(host, picture, *, n=4):
    """The n main colours of a picture as `#rrggbb`, the most frequent first."""
    few = picture.pil.convert("RGB").quantize(n).convert("RGB")
    found = sorted(few.getcolors(), reverse=True)
    return ["#{:02x}{:02x}{:02x}".format(*colour) for _, colour in found]


@click.command()
@click.argument("file")
@click.option("-n", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N", help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(settings, file, n, as_json):
    """Print the main colours of the picture FILE, the most frequent first."""
    host = settings.studio()
    colours = host.palette(host.load(file), n=n)
    if as_json:
        emit_json(colours)
    else:
        for each in colours:
            emit(each)


@studio.hookimpl
def studio_commands():
    return [studio.Command("palette", "Print the main colours of a picture.", ":command")]


@studio.hookimpl
def studio_methods():
    return [studio.Method("palette", ":palette")]
