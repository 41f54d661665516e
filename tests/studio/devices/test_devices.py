"""Which device is used, what is refused, and what is known of one without a card."""

from __future__ import annotations

import pytest
import torch

from studio import devices
from studio.devices import cuda
from studio.errors import UsageError
from studio.training.options import TrainingOptions


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that sees three cards, all of which torch can compute on."""
    monkeypatch.setattr(cuda, "_no_cuda", lambda: None)
    monkeypatch.setattr(cuda, "_ask_driver", lambda: (3, None))
    monkeypatch.setattr(cuda, "_no_kernels", lambda index: None)


def test_what_is_said_of_cuda_agrees_with_torch() -> None:
    assert (devices.why_unavailable("cuda") is None) == torch.cuda.is_available()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_cpu_is_used_and_cuda_refused() -> None:
    assert devices.choose(None) == "cpu"
    assert devices.choose_many(None) == ("cpu",)
    with pytest.raises(UsageError, match="the device `cuda` cannot be used: ") as caught:
        devices.choose("cuda")
    assert caught.value.hint == "use `--device cpu`"


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:", "cuda:100", "CUDA", "", "cuda:0 ", "cuda:-1"])
def test_a_name_that_is_not_a_devices_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="it must be `cpu`, `cuda`, `mps`, `xpu`"):
        devices.choose(name)


@pytest.mark.usefixtures("cards")
def test_names_are_completed_and_each_is_named_once() -> None:
    assert devices.choose("cuda") == "cuda:0"
    assert devices.choose_many(None) == ("cuda:0", "cuda:1", "cuda:2")
    assert devices.choose_many("cuda:1, cpu") == ("cuda:1", "cpu")
    with pytest.raises(UsageError, match="each may be named only once"):
        devices.choose_many("cuda,cuda:0")


@pytest.mark.usefixtures("cards")
def test_a_card_that_is_not_there_is_refused_with_the_number_there_are() -> None:
    with pytest.raises(UsageError, match="`cuda:5` cannot be used: the CUDA driver sees 3 devices, numbered from 0"):
        devices.choose("cuda:5")


@pytest.mark.usefixtures("cards")
def test_a_card_that_torch_has_no_kernels_for_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "this torch cannot compute on it: no kernel image is available"
    monkeypatch.setattr(cuda, "_no_kernels", lambda index: None if index == 2 else reason)
    assert devices.choose(None) == "cuda:2"
    with pytest.raises(UsageError, match="no kernel image is available"):
        devices.choose("cuda:0")


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: out of memory", False),
        ("a device-side assert of my own", False),
    ],
)
def test_errors_that_end_the_context_are_known(text: str, lost: bool) -> None:
    assert devices.Cuda("cuda:0").is_lost(RuntimeError(text)) is lost


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(("asked", "taken"), [("", "cuda:2"), ("cuda", "cuda:2"), ("cuda:1", "cuda:1")])
def test_each_process_of_a_training_run_enters_its_own_card_first(
    asked: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    monkeypatch.setattr(devices.Cuda, "enter", lambda self: entered.append(self.name))
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert TrainingOptions(device=asked).torch_device() == torch.device(taken)
    assert entered == [taken]
