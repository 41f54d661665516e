"""`studio image PROMPT`: the generator `image`."""

from __future__ import annotations

from studio.cli.making import GeneratorCommand

command = GeneratorCommand("image", generator="image", short_help="Make a picture from a prompt.")
