"""A run stopped in every way and resumed is the unbroken run, bit for bit; its log, limits, learning rate, refusals."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from studio.errors import StoreError, StudioError, WeightsError
from studio.training import run as running
from tests import forkserver

from . import tiny

STEPS = 12


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return tiny.finish(tiny.start(tmp_path_factory.mktemp("unbroken"), STEPS))


def assert_equal(made: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert made.keys() == wanted.keys()
    assert {name.partition(".")[0] for name in made} == {"model", "ema", "optimizer"}
    for name, value in wanted.items():
        assert torch.equal(made[name], value), name


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_noise_is_another_for_each_seed_and_step_and_the_same_when_resumed(tmp_path: Path) -> None:
    """Torch reads 32 bits of a seed only, so seeds must be mixed."""
    run = tiny.start(tmp_path, STEPS)
    drawn = {}
    for seed in (0, 1, 2, 1 << 32, 1 << 63):
        for run.step in (0, 1, 4096, 1 << 20):
            drawn[seed, run.step] = tuple(torch.randn(4, generator=run.noise(seed)).tolist())
    assert len(set(drawn.values())) == len(drawn)
    run.step = 1
    assert tuple(torch.randn(4, generator=run.noise(2)).tolist()) == drawn[2, 1]


class Stop(Exception):
    pass


@pytest.mark.parametrize("save_every", [math.inf, -1], ids=["nothing saved", "every step saved"])
@pytest.mark.parametrize("made", [False, True], ids=["before the step", "after the step"])
@pytest.mark.parametrize("how", ["break", "raise"])
def test_left_and_resumed_is_unbroken(
    tmp_path: Path, unbroken: dict[str, Tensor], save_every: float, made: bool, how: str
) -> None:
    """A step that was left is made again from the checkpoint before it, never twice on the same weights."""
    run = tiny.start(tmp_path, STEPS, save_every=save_every)
    try:
        for step in run:
            if step < 7 or made:
                tiny.one_step(run)
            if step == 7:
                if how == "raise":
                    raise Stop
                break
    except Stop:
        pass
    again = tiny.start(tmp_path, STEPS)
    assert again.step == (7 if save_every < 0 else 0)
    assert_equal(tiny.finish(again), unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_step_in_hand(
    tmp_path: Path, unbroken: dict[str, Tensor], number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    run = tiny.start(tmp_path, STEPS)

    def train() -> None:
        for step in run:
            if step == 4:
                signal.raise_signal(number)
            tiny.one_step(run)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert signal.getsignal(number) is before
    assert "stopped at step 5; run the same command to resume" in capsys.readouterr().err
    again = tiny.start(tmp_path, STEPS)
    assert again.step == 5
    assert f"resuming from step 5 of {tmp_path / 'run.safetensors'}" in capsys.readouterr().err
    assert_equal(tiny.finish(again), unbroken)


def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [tiny.__file__, str(tmp_path / "run"), "1000"]
    ends, write = os.pipe()
    with open(ends) as told, (tmp_path / "err").open("w+") as errors:
        process = forkserver.start(command, stdout=write, stderr=errors)
        os.close(write)
        while told.readline().strip() != "3":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT
    run = tiny.start(tmp_path / "run", 1000)
    assert 4 <= run.step < 1000
    assert f"stopped at step {run.step};" in (tmp_path / "err").read_text()


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    """SIGKILL again and again, also within a save: the checkpoint is whole each time and the end is the unbroken's."""
    folder, other = tmp_path / "killed", tmp_path / "unbroken"
    steps, printed = 3 * kills, ""
    for where, times in ((folder, kills), (other, 0)):  # alike, whatever earlier tests left in this process
        ran = forkserver.run([tiny.__file__, str(where), str(steps), str(times), "1"])
        assert ran.returncode == 0, ran.stderr
        printed = printed or ran.stdout
    seen = [json.loads(line)["step"] for line in printed.splitlines() if line != "-"]
    assert seen == sorted(seen)
    assert seen[-1] == steps
    assert_equal(tiny.checkpoint(folder), tiny.checkpoint(other))
    logged = [int(row["step"]) for row in rows(folder)]
    assert all(before < after for before, after in pairwise(logged)), logged
    tiny.start(folder, steps)
    names = ["curve.png", "log.csv", "run.lock", "run.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names, "kills left something"


def test_a_checkpoint_is_one_file(tmp_path: Path) -> None:
    tiny.finish(tiny.start(tmp_path, STEPS))
    names = ["curve.png", "log.csv", "run.lock", "run.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_form_of_a_checkpoint_stays(tmp_path: Path) -> None:
    """Long runs outlive versions: a file written by hand, in the form that is documented, is taken up."""
    source = tiny.start(tmp_path / "source")
    tensors = {f"model.{name}": torch.full_like(value, 2) for name, value in source.model.state_dict().items()}
    tensors |= {f"ema.{name}": torch.full_like(value, 3) for name, value in source.model.state_dict().items()}
    for index, parameter in enumerate(source.model.parameters()):
        tensors |= {
            f"optimizer.{index}.exp_avg": torch.full_like(parameter, 4).detach(),
            f"optimizer.{index}.exp_avg_sq": torch.full_like(parameter, 5).detach(),
            f"optimizer.{index}.step": torch.tensor(6.0),
        }
    (tmp_path / "run").mkdir()
    counters = json.dumps({"step": 6, "seconds": 90.5, "updates": 7})
    safetensors.torch.save_file(tensors, tmp_path / "run" / "run.safetensors", {"counters": counters})
    run = tiny.start(tmp_path / "run")
    assert (run.step, run.seconds, run.ema.updates) == (6, 90.5, 7)
    assert all((value == 2).all() for value in run.model.state_dict().values())
    assert all((value == 3).all() for value in run.ema.module.state_dict().values())
    run.save()
    assert_equal(tiny.checkpoint(run.folder), tensors)


def test_another_shape_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    tiny.finish(tiny.start(tmp_path, STEPS))
    file = tmp_path / "run.safetensors"
    before = file.read_bytes()
    with pytest.raises(WeightsError, match="does not fit the model") as caught:
        tiny.start(tmp_path, STEPS, width=9)
    assert str(file) in caught.value.message
    assert caught.value.hint is not None
    assert "another `--work`" in caught.value.hint
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "empty", "no counters"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    tiny.finish(tiny.start(tmp_path, STEPS))
    file = tmp_path / "run.safetensors"
    data = {"cut": file.read_bytes()[:-9], "empty": b"", "no counters": safetensors.torch.save({"a": torch.ones(1)})}
    file.write_bytes(data[damage])
    with pytest.raises(WeightsError, match="damaged") as caught:
        tiny.start(tmp_path, STEPS)
    assert str(file) in str(caught.value)


def test_log_has_the_mean_of_every_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.start(tmp_path, 10, log_every=3)
    for step in run:
        run.log(loss=torch.tensor(step), odd=-step)
    text = (tmp_path / "log.csv").read_text()
    assert text.startswith("step,seconds,loss,odd\n")
    assert [(row["step"], row["loss"], row["odd"]) for row in rows(tmp_path)] == [
        ("2", "1", "-1"), ("5", "4", "-4"), ("8", "7", "-7"),
    ]  # fmt: skip
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.partition(" · ")[0] for line in said] == [
        "step 0 loss 0 odd 0", "step 2 loss 1 odd -1", "step 5 loss 4 odd -4", "step 8 loss 7 odd -7",
    ]  # fmt: skip
    assert "80.0%" in said[-1]


@pytest.mark.parametrize("torn", ["7,0.4,1", "9", "", "11,0.5,1.2,3"])
def test_rows_beyond_the_checkpoint_and_torn_rows_are_dropped(tmp_path: Path, torn: str) -> None:
    run = tiny.start(tmp_path, STEPS)
    for step in run:
        if step == 6:
            run.save()
        if step == 11:
            break
        tiny.one_step(run)
    with (tmp_path / "log.csv").open("a") as file:
        file.write(torn)
    again = tiny.start(tmp_path, STEPS)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "3", "5"]
    tiny.finish(again)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "3", "5", "7", "9", "11"]
    assert all(math.isfinite(float(value)) for row in rows(tmp_path) for value in row.values())


def test_a_log_that_was_never_written_to_gets_its_header(tmp_path: Path) -> None:
    (tmp_path / "log.csv").touch()
    tiny.finish(tiny.start(tmp_path, 4))
    assert [row["step"] for row in rows(tmp_path)] == ["1", "3"]


def test_ends_after_its_steps_and_goes_on_when_given_more(tmp_path: Path) -> None:
    assert list(tiny.start(tmp_path, 5)) == [0, 1, 2, 3, 4]
    assert list(tiny.start(tmp_path, 5)) == []
    assert list(tiny.start(tmp_path, 7)) == [5, 6]


class Clock:
    """Time that passes as it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_ends_after_its_minutes_over_all_sittings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(running, "time", clock)

    def sitting(seconds: float) -> tuple[int, float]:
        run = tiny.start(tmp_path, 10_000, minutes=seconds / 60)
        made = 0
        for _ in run:
            clock.now += 2
            made += 1
        return made, run.seconds

    assert sitting(5) == (3, 6)
    assert sitting(5) == (0, 6)
    clock.now += 1000  # between sittings
    assert sitting(9) == (2, 10)


def test_learning_rate_rises_in_a_line_and_falls_in_a_cosine(tmp_path: Path) -> None:
    run = tiny.start(tmp_path, 1000)
    values = []
    for run.step in range(1001):
        values.append(run.rate(0.5, warmup=100, floor=0.1))
        assert [group["lr"] for group in run.optimizer.param_groups] == [values[-1]]
    assert values[0] < values[49] < values[99] == max(values)
    assert values[0] == pytest.approx(0.5 / 100)
    assert all(before > after for before, after in pairwise(values[99:]))
    assert values[500] == pytest.approx(0.5 * (1 + 0.1) / 2)  # half way: half of the fall
    assert values[1000] == pytest.approx(0.05)


def test_learning_rate_follows_time_where_time_is_further(tmp_path: Path) -> None:
    run = tiny.start(tmp_path, 1000, minutes=10)
    run.step = 250
    by_steps = run.rate(1.0, warmup=0)
    run.seconds = 300.0
    assert run.done == 0.5
    assert run.rate(1.0, warmup=0) < by_steps
    run.seconds = 9999.0
    assert run.done == 1
    assert run.rate(1.0, warmup=0, floor=0.25) == pytest.approx(0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(tmp_path: Path, value: float) -> None:
    tiny.finish(tiny.start(tmp_path, 5))
    before = (tmp_path / "run.safetensors").read_bytes()
    run = tiny.start(tmp_path, STEPS, save_every=-1)
    made = []

    def train() -> None:
        for step in run:
            made.append(step)
            run.log(loss=value if step == 5 else 1.0)

    with pytest.raises(StudioError, match=rf"`loss` is {value} at step 5; training stopped") as caught:
        train()
    assert made == [5]
    assert str(tmp_path) in caught.value.message
    assert (tmp_path / "run.safetensors").read_bytes() == before
    assert tiny.start(tmp_path, STEPS).step == 5


@pytest.mark.parametrize("which", ["model", "average"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, which: str) -> None:
    """A gradient may be infinite where the loss is not: the next loss tells, but a save may come before."""
    tiny.finish(tiny.start(tmp_path, 5))
    before = (tmp_path / "run.safetensors").read_bytes()
    run = tiny.start(tmp_path, 6)

    def train() -> None:
        for _ in run:
            module = run.model if which == "model" else run.ema.module
            next(module.parameters()).data[0] = math.nan
            run.log(loss=1.0)

    with pytest.raises(StudioError, match=r"the weights `(model|ema)\.0\.weight` are not finite at step 6"):
        train()
    assert (tmp_path / "run.safetensors").read_bytes() == before


def test_a_folder_has_one_trainer(tmp_path: Path) -> None:
    ends, write = os.pipe()
    with open(ends) as told:
        process = forkserver.start([tiny.__file__, str(tmp_path), "100000"], stdout=write, stderr=subprocess.DEVNULL)
        os.close(write)
        told.readline()
        with pytest.raises(StudioError, match=rf"process {process.pid} is training in `{tmp_path}`") as caught:
            tiny.start(tmp_path)
        process.kill()
        process.wait()
    assert caught.value.hint is not None
    assert "--work" in caught.value.hint
    tiny.finish(tiny.start(tmp_path, STEPS))  # the lock of a killed process holds nobody up


def test_a_folder_is_free_once_the_steps_are_over(tmp_path: Path) -> None:
    first = tiny.start(tmp_path, 3)
    tiny.finish(first)
    assert list(tiny.start(tmp_path, 5)) == [3, 4]
    assert list(first) == []  # takes the folder again, and leaves it


def test_a_full_disk_is_named_and_goes_on_once_it_is_freed(
    tmp_path: Path, unbroken: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_FSIZE fails a write in the middle as a full disk does."""
    folder = tmp_path / "run"
    run = tiny.start(folder, STEPS)
    for step in run:
        if step == 3:
            run.save()
            break
        tiny.one_step(run)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder / "run.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write `.*run\.safetensors`: File too large"):
            tiny.finish(tiny.start(folder, STEPS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (folder / "run.safetensors").stat().st_size == size
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert_equal(tiny.finish(tiny.start(folder, STEPS)), unbroken)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = tiny.start(tmp_path, 3, log_every=1)
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(StoreError, match=r"cannot write `.*log\.csv`: Is a directory"):
        tiny.finish(run)


def test_what_an_earlier_version_left_after_a_kill_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".run.safetensors.part").write_bytes(b"x" * 1000)
    tiny.start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("every", [120.0, 5.0])
def test_the_first_minute_is_saved_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(running, "time", clock)
    run = tiny.start(tmp_path, 10_000, save_every=every, minutes=60, log_every=1000)
    saved: list[float] = []
    monkeypatch.setattr(run, "save", lambda draw=True: saved.append(run.seconds))
    for step in run:
        clock.now += 1
        run.log(loss=1.0)
        if step == 300:
            break
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"training in {tmp_path}: step 0 of 10,000, at most 60 min"
    assert said[1] == "step 0 loss 1 · 0.0%"
    assert said[2].startswith("step 10 loss 1 · 0.3%, 60 min left")
    assert len(said) >= 300 // 10
    assert saved[0] <= 7
    gaps = [after - before for before, after in pairwise([0.0, *saved, 300.0])]
    assert all(gap <= 7 + done / 2 for gap, done in zip(gaps, [0.0, *saved], strict=True)), saved
    assert max(gaps) <= every + 2
    assert len([at for at in saved if at < 60]) <= 60 / 5


def test_values_on_a_gpu_are_read_with_their_mean(tmp_path: Path) -> None:
    from studio.testing.fake_gpu import FakeGpu

    with FakeGpu.installed() as gpu:
        run = tiny.start(tmp_path, 10, log_every=5)
        values = [torch.full((), float(step), device="gpu:0") for step in range(10)]
        with gpu.counting() as counts:
            for step in run:
                run.log(loss=values[step])
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("4", "2"), ("9", "7")]
    assert counts.waited <= 3, "the first step, which is told, and two rows"


def test_a_value_on_a_gpu_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    from studio.testing.fake_gpu import FakeGpu

    with FakeGpu.installed():
        run = tiny.start(tmp_path, 10, log_every=5)
        for value in (1.0, float("nan"), 1.0, 1.0):  # the first is told, so read
            run.log(loss=torch.full((), value, device="gpu:0"))
        with pytest.raises(StudioError, match="`loss` is nan"):
            run.log(loss=torch.ones((), device="gpu:0"))


def test_a_loss_that_has_gradients_is_logged_without_a_warning(tmp_path: Path) -> None:
    run = tiny.start(tmp_path, 1, log_every=1)
    torch.set_warn_always(True)  # torch would warn of it once in a process
    try:
        for _ in run:
            run.log(loss=torch.full((), 3.0, requires_grad=True) * 2)
    finally:
        torch.set_warn_always(False)
    assert [row["loss"] for row in rows(tmp_path)] == ["6"]
