from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from studio import torch_setup
from studio.errors import UsageError


def run(code, **environment):
    import os

    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_prepare_imports_nothing_and_can_be_repeated():
    code = """
import sys
from studio import torch_setup
torch_setup.prepare(); torch_setup.prepare()
print("torch" in sys.modules, sum(type(each).__module__ == "studio.torch_setup" for each in sys.meta_path))
"""
    assert run(code) == "False 1"


def test_torchvision_imports_after_prepare():
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    code = """
import sys
from studio import torch_setup
torch_setup.prepare()
import torchvision
print(sum(type(each).__module__ == "studio.torch_setup" for each in sys.meta_path))
"""
    assert run(code) == "0"


def test_stock_libraries_import_by_the_remedy_that_doctor_names():
    code = """
from studio import torch_setup
reason = torch_setup.why_torchvision_needs_help()
exec(reason.rpartition("run: ")[2] if reason else "")
from transformers import CLIPTextModel
import torchvision
print(hasattr(torchvision, "ops"))
"""
    assert run(code) == "True"


def test_the_number_of_threads_is_applied_before_and_after_torch():
    early = "from studio import torch_setup; torch_setup.prepare(); import torch; print(torch.get_num_threads())"
    late = "import torch; from studio import torch_setup; torch_setup.prepare(); print(torch.get_num_threads())"
    assert run(early, STUDIO_THREADS="1") == "1"
    assert run(late, STUDIO_THREADS="1") == "1"


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
            spoilt = torch.inference_mode(False)
            spoilt.__enter__()
            yield torch.is_inference_mode_enabled()
            inference.hold()
            yield torch.is_inference_mode_enabled()
        yield torch.is_inference_mode_enabled()

    with ThreadPoolExecutor(1) as thread:  # of its own: what was spoilt stays so
        assert list(thread.submit(list, modes()).result()) == [True, False, True, False]
    assert not torch.is_inference_mode_enabled()
