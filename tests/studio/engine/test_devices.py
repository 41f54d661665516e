"""What an engine makes of a device that works later than it is asked, cannot be opened, or is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import studio
from studio.engine import Engine
from studio.engine.calls.call import run_inline
from studio.engine.memory.ledger import Ledger
from studio.engine.memory.model_cache import ModelCache
from studio.errors import DeviceLost, GeneratorFailed, OutOfMemory, TimedOut
from studio.testing.fake_gpu import FakeGpu
from tests.studio.engine.bench import ask
from tests.studio.engine.memory.test_components import PART, files, generator  # noqa: F401  (a fixture)
from tests.studio.engine.test_worker import Waiting
from tests.studio.engine.test_worker import request as waiting

WAIT_S = 500


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu:
        yield gpu


class Adds(studio.Generator):
    """Add one on the device, several times, and say the sum; or fail with a text."""

    name = "adds"
    output = studio.Text

    class Inputs(studio.Inputs):
        steps: int = studio.field(2, ge=1, le=9, help="how often")
        failure: str = studio.field("", help="what a step raises")

    class State(studio.State):
        pass

    def start(self, model, inputs, rng):
        return MemoryNeed(steps=inputs.steps, x=torch.zeros(1, device="gpu:0"), failure=inputs.failure)

    def step(self, model, states):
        for state in states:
            if state.failure:
                raise RuntimeError(state.failure)
        return [MemoryNeed(steps=each.steps, position=each.position + 1, x=each.x + 1, failure="") for each in states]

    def finish(self, model, state):
        return studio.Text(str(state.x.tolist()))


class MemoryNeed(studio.State):
    """What is added up."""

    def __init__(self, *, x, failure, steps, position=0):
        super().__init__(steps=steps, position=position)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "failure", failure)


def submit(engine: Engine, **inputs):
    made = Adds()
    return engine.submit(ask(made, inputs))


def test_requests_run_on_it(gpu: FakeGpu) -> None:
    with Engine("gpu") as engine:
        made = submit(engine, steps=3).result(WAIT_S)
    assert str(made.text) == "[3.0]"
    assert made.recipe is not None
    assert made.recipe.device == "gpu:0"
    assert "float32" not in made.recipe.facts


def test_the_recipe_tells_how_the_device_multiplies_float32(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGpu, "float32", "tf32")
    with Engine("gpu") as engine:
        made = submit(engine).result(WAIT_S)
    assert made.recipe is not None
    assert made.recipe.facts["float32"] == "tf32"


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), RuntimeError("CUDA driver too old")])
def test_a_device_that_cannot_be_opened_ends_requests_with_the_reason(gpu: FakeGpu, error: RuntimeError) -> None:
    gpu.failure = error
    with Engine("gpu") as engine:
        for _ in range(2):  # those that were waiting, and those that come later
            with pytest.raises(DeviceLost, match=f"the device cannot be opened: RuntimeError: {error}") as caught:
                submit(engine).result(WAIT_S)
            assert "--device cpu" in caught.value.hint


def test_an_error_that_ends_the_context_ends_all_requests_with_one_reason(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "is_lost", lambda error: "device-side assert" in str(error))
    with Engine("gpu") as engine:
        tickets = [submit(engine, failure="CUDA error: device-side assert triggered"), submit(engine, steps=9)]
        for ticket in [*tickets, submit(engine)]:
            with pytest.raises(
                DeviceLost, match=r"`gpu:0` failed and this process cannot use it again: .*assert triggered"
            ):
                ticket.result(WAIT_S)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "GET was unable to find an engine to execute this computation",
        "HIP out of memory",
    ],
)
def test_every_text_of_running_out_of_memory_is_known(gpu: FakeGpu, text: str) -> None:
    with Engine("gpu") as engine:
        with pytest.raises(OutOfMemory, match="ran out of memory in step 1"):
            submit(engine, failure=text).result(WAIT_S)
        assert submit(engine).result(WAIT_S).text == "[2.0]", "and the next goes on"
        with pytest.raises(GeneratorFailed, match="failed in step 1"):
            submit(engine, failure="out of patience").result(WAIT_S)


def test_what_is_learned_of_a_step_is_its_run_and_not_its_launch(gpu: FakeGpu, monkeypatch) -> None:
    gpu.seconds_per_launch = 5.0
    monkeypatch.setattr("studio.engine.engine.time.perf_counter", lambda: gpu.clock)
    with Engine("gpu") as engine:
        submit(engine, steps=4).result(WAIT_S)
        [row] = [row for row in engine.profile.rows() if row.call == "step"]
    assert row.median is not None
    assert row.median >= 5.0


def test_bringing_a_model_back_costs_what_the_copies_took(gpu: FakeGpu, files) -> None:  # noqa: F811
    gpu.seconds_per_copy = 7.0
    with torch.no_grad():
        source = ModelCache("gpu:0", ledger=Ledger(100 * PART), host=Ledger(100 * PART))
        made = generator("one", [files["a"]])
        run_inline(source.get(ask(made)))
        source.evict_all(lambda model: 0)
        model = run_inline(source.get(ask(made)))
    assert model.return_s == 7.0


def test_pinned_memory_counts_as_it_is_taken() -> None:
    from studio.devices import Cuda

    device = Cuda("cuda:0")
    assert [device.host_bytes(size) for size in (0, 1, 5, 1 << 20, (1 << 20) + 1)] == [1, 1, 8, 1 << 20, 1 << 21]


class Breaking(Waiting):
    """Wait in a step as `Waiting` does, on a device that cannot be opened again afterwards."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def step(self, model, states):
        if states[0].position == states[0].hangs_at:
            self.gpu.failure = RuntimeError("CUDA error: unknown error")
        return super().step(model, states)


def test_the_thread_that_takes_over_after_a_hang_opens_the_device_too(gpu: FakeGpu) -> None:
    hanging, witness = Waiting(), Waiting()
    with Engine("gpu") as engine:
        stuck, other = engine.submit_many([waiting(hanging, 0.1, hangs_at=1), waiting(witness, steps=50)])
        with pytest.raises(TimedOut, match=r"did not return within 0\.1 s"):
            stuck.result(WAIT_S)
        assert other.result(WAIT_S).text == "50 steps"
        hanging.go.set()
    assert witness.threads[-1] is not hanging.threads[-1]
    assert gpu.entered == {hanging.threads[-1], witness.threads[-1]}


def test_requests_end_with_the_reason_if_the_device_cannot_be_opened_after_a_hang(gpu: FakeGpu) -> None:
    breaking = Breaking(gpu)
    with Engine("gpu") as engine:
        tickets = engine.submit_many([waiting(breaking, 0.1, hangs_at=0), waiting(Waiting(), steps=50)])
        for ticket in [*tickets, submit(engine)]:
            with pytest.raises(DeviceLost, match="cannot be opened: RuntimeError: CUDA error: unknown error"):
                ticket.result(WAIT_S)
        breaking.go.set()
