"""Hypothesis without deadlines: the machine may be busy with something else. torch, set up before it is imported."""

from __future__ import annotations

from hypothesis import settings

from studio.devices import torch_setup

settings.register_profile("studio", deadline=None)
settings.load_profile("studio")
torch_setup.prepare()
