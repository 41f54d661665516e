"""The parts of gpu.py, by subject: each finds something out of a GPU and writes it into `found` as it goes.

Sizes are those for a card, or tiny for a rehearsal on a CPU. Weights are random, from seeds: nothing is fetched. Times
are milliseconds unless a name ends in `_s`. `run` is until the device has done the work, `launch` until the host has
asked for it, and `event` is between two marks that the device itself passes.
"""

from __future__ import annotations

from studio.devices import torch_setup

torch_setup.prepare()  # before a part loads torch
