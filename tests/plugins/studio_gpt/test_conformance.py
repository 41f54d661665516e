"""The generators of this plugin pass the conformance suite, on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import studio_gpt
from studio.testing import check

GENERATORS = {generator.name: generator for generator in studio_gpt.studio_generators()}


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_it_conforms(name: str, checkpoints: Any) -> None:
    folder: Path = checkpoints("llama")[0]
    asked = {"model": str(folder), "max_tokens": 8}
    known = {flag.name for flag in GENERATORS[name].Inputs.flags()}
    check(GENERATORS[name], {key: value for key, value in asked.items() if key in known}).raise_if_failed()
