from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from studio.devices import torch_setup
from studio.errors import UsageError
from tests import forkserver


def run(code, **environment):
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_prepare_imports_nothing_and_can_be_repeated():
    code = """
import sys
from studio.devices import torch_setup
torch_setup.prepare(); torch_setup.prepare()
print("torch" in sys.modules, sum(type(each).__module__ == "studio.devices.torch_setup" for each in sys.meta_path))
"""
    assert run(code) == "False 1"


CROWDED = """
import os, sys
from pathlib import Path
from studio.devices import torch_setup
torch_setup._PRESSURE = Path({pressure!r})
torch_setup.os.getloadavg = lambda: ({load}, 0.0, 0.0)
torch_setup.prepare()
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("pressure", "load", "set_by_user", "expected"),
    [
        ("some avg10=80.00 avg60=0.00 avg300=0.00 total=1\n", 0.0, {}, "PASSIVE 0 False"),
        ("some avg10=3.10 avg60=90.00 avg300=0.00 total=1\n", 99.0, {}, "None None False"),
        ("some avg10=80.00 avg60=0.00 avg300=0.00 total=1\n", 0.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None False"),
        (None, 1000.0, {}, "PASSIVE 0 False"),
        (None, 0.0, {}, "None None False"),
        ("nonsense", 0.0, {}, "None None False"),
    ],
)
def test_threads_wait_passively_beside_other_work(tmp_path, monkeypatch, pressure, load, set_by_user, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "pressure"
    if pressure is not None:
        file.write_text(pressure)
    assert run(CROWDED.format(pressure=str(file), load=load), **set_by_user) == expected


@pytest.mark.slow
def test_stock_libraries_import_by_the_remedy_that_doctor_names():
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    code = """
import sys
from studio.devices import torch_setup
reason = torch_setup.why_torchvision_needs_help()
exec(reason.rpartition("run: ")[2] if reason else "torch_setup.prepare()")
from transformers import CLIPTextModel
import torchvision
left = sum(type(each).__module__ == "studio.devices.torch_setup" for each in sys.meta_path)
print(hasattr(torchvision, "ops"), left)
"""
    assert run(code) == "True 0"


def test_the_number_of_threads_is_applied_before_and_after_torch():
    early = (
        "from studio.devices import torch_setup; torch_setup.prepare(); import torch; print(torch.get_num_threads())"
    )
    late = "import torch; from studio.devices import torch_setup; torch_setup.prepare(); print(torch.get_num_threads())"
    assert run(early, STUDIO_THREADS="1") == "1"
    assert forkserver.run(["-c", late], env=os.environ | {"STUDIO_THREADS": "3"}).stdout == "3\n"


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999"])
def test_a_bad_number_of_threads_is_refused(value, monkeypatch):
    monkeypatch.setenv("STUDIO_THREADS", value)
    with pytest.raises(UsageError, match="from 1 to 1024"):
        torch_setup.prepare()


def test_inference_mode_where_torch_is_loaded():
    import torch

    with torch_setup.inference():
        assert torch.is_inference_mode_enabled()
    assert torch_setup.threads() == torch.get_num_threads()


def test_a_thread_is_held_in_inference_mode_whatever_a_call_does_to_it():
    import torch

    def modes():
        with torch_setup.Inference() as inference:
            inference.hold()
            yield torch.is_inference_mode_enabled()
            mutated = torch.inference_mode(False)
            mutated.__enter__()
            yield torch.is_inference_mode_enabled()
            inference.hold()
            yield torch.is_inference_mode_enabled()
        yield torch.is_inference_mode_enabled()

    with ThreadPoolExecutor(1) as thread:  # of its own: what was spoilt stays so
        assert list(thread.submit(list, modes()).result()) == [True, False, True, False]
    assert not torch.is_inference_mode_enabled()


def test_how_threads_wait_is_settled_before_an_engine_loads_torch():
    code = """
import os, sys
from studio import devices
from studio.devices import torch_setup
torch_setup.crowded = lambda: True
devices.device("cpu").fast_dtype()
print("torch" in sys.modules, os.environ.get("OMP_WAIT_POLICY"))
"""
    unset = {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "", "KMP_BLOCKTIME": ""}
    program = "import os\n" + "".join(f"os.environ.pop({name!r}, None)\n" for name in unset) + code
    assert run(program) == "True PASSIVE"
