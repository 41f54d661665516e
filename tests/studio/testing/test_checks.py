"""The conformance suite: every built-in generator passes it, and for each check a generator that breaks it fails it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.plugins import OWN, Plugins
from studio.testing import CHECKS, Conformance, check
from studio.testing.samples import bad_values, good_values
from studio.testing.subject import apart

BUILT_IN = Plugins.discover()
OWN_GENERATORS = sorted(  # those of `gpt` and `audio` are checked on tiny models, in tests/plugins
    name
    for report in BUILT_IN.reports
    if report.origin.startswith(OWN) and report.name not in ("audio", "gpt")
    for name in report.generators
)
SMALL: dict[str, dict[str, Any]] = {
    "image": {"prompt": "a red apple", "steps": 3, "size": "64x64"},
    "ddpm": {"steps": 3},
    "video": {"prompt": "a dog bouncing", "steps": 3, "frames": 2, "size": "64x64"},
    "dcgan-walk": {"frames": 12, "stops": 2},  # of several steps in tests/plugins/studio_dcgan
}
WAITS = {  # for a GPU within a step, at the most; they may only fall. Those of CLIP and DCGAN read what they made
    "image": 0, "ddpm": 0, "video": 0, "dcgan": 2, "dcgan-walk": 2, "embed": 1, "embed-pictures": 1, "clip-rank": 1,
    "clip-label": 2, "clip-describe": 1, "grid": 0, "template": 0,
}  # fmt: skip
RECORDED = ("image", "ddpm", "video")  # and `text`


@pytest.mark.parametrize("name", OWN_GENERATORS)
def test_every_built_in_generator_conforms(name: str) -> None:
    report = check(BUILT_IN.generators[name], SMALL.get(name))
    report.raise_if_failed()
    assert [finding.check for finding in report.findings] == list(CHECKS)
    numbers = {finding.check: finding.numbers for finding in report.findings}["runs on a GPU"]
    assert numbers["apart"] == 0
    assert numbers["waits"] <= WAITS[name]
    assert numbers["pageable"] == numbers["not_recorded"] == 0
    assert numbers["recordings"] >= (2 if name in RECORDED else 0), "of one request and of eight"
    assert numbers["width"] == 1 or numbers["launches_wide"] < 1.2 * numbers["launches"]


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ('{"a": [1.0, -200.0]}', '{"a": [1.0, -199.0]}', 0.005),
        ('{"a": 0.25, "b": "x"}', '{"a": 0.5, "b": "x"}', 0.25),
        ('{"a": 0.25, "b": "x"}', '{"a": 0.25, "b": "y"}', 1),
        ('{"a": 0.25}', '{"b": 0.25}', 1),
        ("[1, 2]", "[1, 3]", 1),
        ("[1, 2]", "[1]", 1),
        ("[1.0]", "[1]", 1),
        ("[NaN]", "[NaN ]", 1),
        ("0.1", "a word", 1),
        ("[" * 100_000, "[" * 100_001, 1),
        ("a word", "another", 1),
    ],
)
def test_texts_that_are_json_are_as_far_apart_as_their_numbers(one: str, other: str, distance: float) -> None:
    assert apart(studio.Text(one), studio.Text(other)) == pytest.approx(distance)
    assert apart(studio.Text(one), studio.Text(one)) == 0


class Steps(studio.Inputs):
    steps: int = studio.field(4, ge=1, le=100, help="steps to make")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum(studio.State):
    total: int
    bag: Any = ()


class Good(studio.Generator):
    """Add up what the seed says."""

    name = "good"
    output = studio.Text
    Inputs = Steps

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sum:
        return Sum(steps=inputs.steps, total=rng.seed)

    def step(self, model: Any, states: Sequence[Sum]) -> list[Sum]:
        return [replace(each, position=each.position + 1, total=each.total * 3 + each.position) for each in states]

    def finish(self, model: Any, state: Sum) -> studio.Text:
        return studio.Text(str(state.total))

    def batch_key(self, state: Sum) -> str:
        return "all"


class TestGood(Conformance):
    generator = Good()


class Unlimited(Good):
    """Take any number."""

    class Inputs(studio.Inputs):
        steps: int = studio.field(4, help="steps to make")


class Lax(Good):
    """Take what it is given."""

    class Inputs(Steps):
        @classmethod
        def parse(cls, values: Any) -> Any:
            return cls(steps=4)


class Random(Good):
    """Look at the clock."""

    def finish(self, model: Any, state: Sum) -> studio.Text:
        return studio.Text(str(time.perf_counter_ns()))


class Mixing(Good):
    """Let neighbours in."""

    def step(self, model: Any, states: Sequence[Sum]) -> list[Sum]:
        return [replace(each, position=each.position + 1, total=each.total + len(states)) for each in states]


class Changing(Good):
    """Change what it is given."""

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sum:
        return Sum(steps=inputs.steps, total=0, bag=[])

    def step(self, model: Any, states: Sequence[Sum]) -> list[Sum]:
        for each in states:
            each.bag.append(each.position)
        return [replace(each, position=each.position + 1, total=len(each.bag)) for each in states]


class Unsavable(Good):
    """Hold what cannot be saved."""

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sum:
        return Sum(steps=inputs.steps, total=0, bag=object())


class Forgetful(Good):
    """Declare as unsaved what cannot be made again."""

    @dataclass(frozen=True, kw_only=True, eq=False)
    class State(studio.State):
        total: int = studio.unsaved()

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Any:
        return self.State(steps=inputs.steps, total=0)


class Hoarding(Good):
    """Keep every state."""

    kept: list[Any] = []  # noqa: RUF012 (what it does wrong)

    def step(self, model: Any, states: Sequence[Sum]) -> list[Sum]:
        self.kept += states
        return super().step(model, states)


class Heavy(Good):
    """Hold more than its files say."""

    def load(self, ref, device: str, dtype: str) -> Any:
        import torch

        return {"table": torch.zeros(1 << 20)}


class Stranded(Good):
    """Keep a state on the CPU and the model on the device."""

    def load(self, ref, device: str, dtype: str) -> Any:
        import torch

        return torch.ones(2, device=device)

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sum:
        import torch

        return Sum(steps=inputs.steps, total=0, bag=torch.ones(2))

    def step(self, model: Any, states: Sequence[Sum]) -> list[Sum]:
        return [replace(each, position=each.position + 1, bag=each.bag + model) for each in states]

    def finish(self, model: Any, state: Sum) -> studio.Text:
        return studio.Text(str(state.bag.tolist()))


class Placed(Good):
    """Compute another thing on a GPU."""

    def load(self, ref, device: str, dtype: str) -> Any:
        return device

    def finish(self, model: Any, state: Sum) -> studio.Text:
        return studio.Text(str(model))


class Raising(Good):
    """Leave the program."""

    def start(self, model: Any, inputs: Any, rng: studio.Rng) -> Sum:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("generator", "failing", "words"),
    [
        (Unlimited(), "inputs declared", "without a lower and an upper limit: `steps`"),
        (Lax(), "bad inputs refused", "5 of 5 bad values were accepted: `steps` (no integer)"),
        (Random(), "seed decides", "two runs with seed 0 differ"),
        (Mixing(), "batched as alone", "a batch of 3 changes the output by other content"),
        (Changing(), "states stay valid", "a second step from state 2 gives another output"),
        (Unsavable(), "saved and resumed", "`bag` is a object; a state may hold tensors"),
        (Forgetful(), "saved and resumed", "saved at step 2 and resumed, it gives another output"),
        (Hoarding(), "cancels", "states are still referenced after the request"),
        (Heavy(), "memory", "the model takes 4.0 MiB, but the files in `weights` have 0 B"),
        (Stranded(), "runs on a GPU", "add: expected all tensors to be on the same device, but found gpu:0 and cpu"),
        (Placed(), "runs on a GPU", "the output on the fake GPU differs from the CPU's: 100.00% of the range"),
        (Raising(), "seed decides", "SystemExit: 3 (test_checks.py:"),
    ],
    ids=lambda value: getattr(value, "name", None) and type(value).__name__,
)
def test_what_is_wrong_is_found(generator: studio.Generator, failing: str, words: str) -> None:
    report = check(generator)
    found = {finding.check: finding.detail for finding in report.failures}
    assert words in found[failing]
    assert not report.passed
    with pytest.raises(AssertionError, match=f"`good` does not conform:\n(.*\n)*  {failing}: "):
        report.raise_if_failed()


def test_a_plugin_that_imports_torch_is_found(tmp_path: Path) -> None:
    good = Path(__file__).parent.parent / "sample_plugin.py"
    text = f"import torch\n{good.read_text(encoding='utf-8')}".replace("from __future__ import annotations\n", "")
    (tmp_path / "eager.py").write_text(text)
    for path, status in ((good, "passed"), (tmp_path / "eager.py", "failed")):
        report = check(Plugins.discover([path], entry_points=False).generators["counter"])
        [finding] = [each for each in report.findings if each.check == "imports no torch"]
        assert finding.status == status
        assert status == "passed" or "importing it loads torch" in finding.detail


def test_numbers_are_reported() -> None:
    report = check(Good())
    report.raise_if_failed()
    numbers = {finding.check: dict(finding.numbers) for finding in report.findings}
    assert numbers["inputs declared"] == {"inputs": 1, "numbers": 1}
    assert numbers["batched as alone"] == {"width": 3, "apart": 0.0}
    assert numbers["cancels"] == {"steps_after": 0, "bytes_kept": 0}
    assert numbers["memory"]["claimed"] == 0
    assert report.as_json()["passed"] is True


class Wide(studio.Inputs):
    whole: int = studio.field(help="a number", ge=2, lt=9, multiple_of=2)
    part: float = studio.field(help="a number", gt=0, le=1)
    text: str = studio.field(help="words", min_length=3, max_length=12)
    one: str = studio.field(help="a choice", choices=("a", "b"))
    many: list[int] = studio.field(help="numbers")
    picture: studio.Image = studio.field(help="a picture")
    film: studio.Video | None = studio.field(None, help="a video")
    sound: studio.Audio = studio.field(help="a sound")
    words: studio.Text = studio.field(help="words")
    place: studio.Embedding = studio.field(help="a vector")


def test_samples_are_accepted_and_each_bad_value_is_refused() -> None:
    good = good_values(Wide, {})
    Wide.parse(good)
    bad = list(bad_values(Wide))
    assert {name for name, _, _ in bad} >= {"whole", "part", "text", "one", "many", "picture", "film", "sound"}
    for name, why, value in bad:
        with pytest.raises(studio.StudioError):
            print(Wide.parse({**good, name: value}), name, why)


@given(st.integers(-50, 50), st.integers(0, 40), st.sampled_from([1, 2, 5]))
def test_a_sample_of_a_number_is_within_its_limits(low: int, reach: int, step: int) -> None:
    kind = type(
        "Drawn",
        (studio.Inputs,),
        {
            "__annotations__": {"x": int},
            "x": studio.field(help="x", ge=low * step, le=(low + reach) * step, multiple_of=step),
        },
    )
    kind.parse(good_values(kind, {}))


def test_importing_it_loads_no_torch_and_no_pytest() -> None:
    import subprocess

    code = "import sys, studio.testing; print([name for name in ('torch', 'pytest', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
