"""The command `studio video PROMPT`: the generator `video`."""

from __future__ import annotations

from studio.cli.lib.making import GeneratorCommand

command = GeneratorCommand("video", generator="video")
