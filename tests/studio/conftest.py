"""Hypothesis without deadlines: the machine may be busy with something else. The sample plugin, as a path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("studio", deadline=None)
settings.load_profile("studio")


@pytest.fixture
def sample_plugin() -> Path:
    return Path(__file__).parent / "sample_plugin.py"
