"""The command `studio audio PROMPT`: the generator `audio`."""

from __future__ import annotations

from studio.cli.lib.making import GeneratorCommand

command = GeneratorCommand("audio", generator="audio")
