"""Hypothesis without deadlines: the machine may be busy with something else."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("studio", deadline=None)
settings.load_profile("studio")
