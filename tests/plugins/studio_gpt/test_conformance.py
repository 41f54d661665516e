"""The generators of this plugin pass the conformance suite, on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import studio_gpt
from studio.testing import check

GENERATORS = {generator.name: generator for generator in studio_gpt.studio_generators()}

# It prints log-probabilities to the last digit, and that digit depends on what keys and values were computed with.
KNOWN = {
    "text-explain": {"batched as alone", "saved and resumed", "runs on a GPU"},
    "text-perplexity": {"runs on a GPU"},
}


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_it_conforms(name: str, checkpoints: Any) -> None:
    folder: Path = checkpoints("llama")[0]
    asked = {"model": str(folder), "max_tokens": 8}
    known = {flag.name for flag in GENERATORS[name].Inputs.flags()}
    report = check(GENERATORS[name], {key: value for key, value in asked.items() if key in known})
    assert {finding.check for finding in report.failures} <= KNOWN.get(name, set()), report.failures
