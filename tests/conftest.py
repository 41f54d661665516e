"""For every test: a home of its own, so that no test reads or writes what a person has made; and hypothesis without
deadlines, as the machine may be busy with something else.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from studio.devices import torch_setup

settings.register_profile("everyday", deadline=None, max_examples=20)
settings.register_profile("thorough", deadline=None)  # `make test-all`
settings.load_profile("everyday")

# Processes that run tests side by side (pytest-xdist) share the cores: each with all of them would wait for the others.
SHARE = max(1, torch_setup.cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
if torch_setup.cores() > SHARE:
    os.environ["OMP_NUM_THREADS"] = str(SHARE)  # read when torch is imported


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """The engine collects garbage when it needs memory, and need not look through all libraries each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("STUDIO_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else the machine does must not decide what stands in a recipe; test_threads.py takes this back."""
    monkeypatch.setenv(torch_setup.THREADS_VARIABLE, str(SHARE))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background with Ctrl-C ignored, and every child of the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
