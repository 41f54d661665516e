"""The sample plugin, as a path."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def sample_plugin() -> Path:
    return Path(__file__).parent / "sample_plugin.py"
