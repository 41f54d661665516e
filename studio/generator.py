"""Generator, State, Rng, Trainer: the classes for plugin authors. The host runs the loop.

Simple form: `generate` returns the output in one step. Stepped form: `start` returns a State, `step` advances a batch
of states by one step, `finish` returns the output. Generators hold no weights, threads or caches: `load` returns the
model, and the host passes it to every call.

Try it::

    class Invert(studio.Generator):
        "Turn a picture into its negative."
        name, output = "invert", studio.Image

        class Inputs(studio.Inputs):
            image: studio.Image = studio.field(help="the picture")

        def generate(self, model, inputs, rng):
            return studio.Image(PIL.ImageOps.invert(inputs.image.pil))
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol

from typing_extensions import TypeVar

from studio.inputs import Inputs as BaseInputs
from studio.media import Media, Text
from studio.spec import ModelRef

if TYPE_CHECKING:
    import random

    import torch

UNSAVED = "studio_unsaved"


class Rng:
    """The random number generator of a request. Noise is drawn on the CPU, so a seed gives equal noise on every device.

    `torch` is a `torch.Generator` and `python` a `random.Random`; both are created on first use. Drawing changes their
    state: draw in `start`, or in a step, which must not mutate its states, from ``rng.fork(state.position)``.

    `seed` is from 0 to 2**64 - 1, else ValueError. `torch_seed` is the seed for any torch generator: torch uses only
    the low 32 bits, so it is the seed itself below 2**32, and otherwise a 32-bit hash (sha256) of it.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"the seed is {seed}, but must be a whole number from 0 to 2**64 - 1")
        self.seed = seed
        self.torch_seed = seed if seed < 1 << 32 else int.from_bytes(hashlib.sha256(b"%d" % seed).digest()[:4], "big")
        self._torch: torch.Generator | None = None
        self._python: random.Random | None = None

    @property
    def torch(self) -> torch.Generator:
        """The CPU generator of torch, seeded with `torch_seed`."""
        if self._torch is None:
            import torch

            self._torch = torch.Generator("cpu").manual_seed(self.torch_seed)
        return self._torch

    @property
    def python(self) -> random.Random:
        """The standard library's generator, seeded with `seed`."""
        if self._python is None:
            import random

            self._python = random.Random(self.seed)
        return self._python

    @property
    def drew_torch(self) -> bool:
        """Whether `torch` was asked for."""
        return self._torch is not None

    def fork(self, key: int | str) -> Rng:
        """Return a new generator that depends only on the seed and the key (sha256), without changing this one."""
        digest = hashlib.sha256(f"{self.seed}/{key!r}".encode()).digest()
        made = Rng(int.from_bytes(digest[:8], "big"))
        made.torch_seed = made.seed & 0xFFFFFFFF  # the low bits of a hash are mixed already
        return made

    def state_dict(self) -> dict[str, Any]:
        """The whole state as JSON values, for `from_state_dict`."""
        python = self._python.getstate() if self._python else None
        return {
            "seed": self.seed,
            "torch_seed": self.torch_seed,
            "torch": bytes(self._torch.get_state().tolist()).hex() if self._torch else None,
            "python": [python[0], list(python[1]), python[2]] if python else None,
        }

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, Any]) -> Rng:
        """Restore from `state_dict`; later draws are the same."""
        rng = cls(int(saved["seed"]))
        rng.torch_seed = int(saved.get("torch_seed", rng.seed & 0xFFFFFFFF))  # states of older versions had no more
        if saved["torch"] is not None:
            import torch

            rng.torch.set_state(torch.tensor(list(bytes.fromhex(saved["torch"])), dtype=torch.uint8))
        if saved["python"] is not None:
            version, numbers, gauss = saved["python"]
            rng.python.setstate((version, tuple(numbers), gauss))
        return rng


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """One request's progress. Subclass it (``@dataclass(frozen=True, kw_only=True, eq=False)``) with your own fields.

    `position` counts the finished steps of `steps`; `notices` are messages for the user (a prompt was truncated …),
    which are also written to the recipe. Fields hold tensors and JSON-serializable values, so that a state can be
    saved; a field declared with `unsaved()` may hold anything.
    """

    position: int = 0
    steps: int = 1
    notices: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether `finish` may be called."""
        return self.position >= self.steps

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of this request for the recipe of its output, as JSON, besides those of `Generator.facts`: for text
        `tokens`, with the numbers of `prompt` and `completion` tokens, and why it `ended`.
        """
        return {}


def unsaved() -> Any:
    """Declare a field of a State that is not saved, because it can be recomputed (a cache, for example).

    On resume the field holds what `start` produced.
    """
    return field(metadata={UNSAVED: True})


ModelT = TypeVar("ModelT", default=Any)
InputsT = TypeVar("InputsT", bound=BaseInputs, default=Any)
StateT = TypeVar("StateT", bound=State, default=Any)


@dataclass(frozen=True, kw_only=True, eq=False)
class _OneStep(State):
    """The state of the simple form: inputs before its only step, media after it."""

    inputs: BaseInputs
    rng: Rng
    media: Media | None = None


class Generator(Generic[ModelT, InputsT, StateT]):
    """Generates one kind of media from inputs.

    Define `name` (lower case, digits, ``-`` and ``_``), `output` (a media class), `Inputs`, a docstring whose first
    line is the summary, and either `generate` or `start`, `step` and `finish`. `version` is written to every recipe:
    raise it when equal inputs give a different output. At most `max_batch` states are batched in a step.
    `time_limit_s` is the timeout of a call in seconds. `streams` promises that `load` builds all modules with weights
    with `studio.module`, so that the host can stream (offload) a model that is larger than the free memory.
    `generative` is false for a tool that only arranges or draws its inputs: its output is labelled as made by AI only
    if an input is.

    Types can be given as ``class Invert(studio.Generator[None, Inputs, State])``: the model that `load` returns, the
    inputs, and the states.
    """

    name: ClassVar[str] = ""
    output: ClassVar[type[Media]] = Media
    Inputs: ClassVar[type[BaseInputs]] = BaseInputs
    version: ClassVar[str] = "1"
    max_batch: ClassVar[int] = 8
    time_limit_s: ClassVar[float] = 600.0
    streams: ClassVar[bool] = False
    generative: ClassVar[bool] = True

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        lines = (type(self).__doc__ or "").strip().splitlines()
        return lines[0].strip() if lines else ""

    def weights(self, ref: ModelRef) -> list[Path]:
        """The files that `load` reads; the host hashes them and checks them against a ``SHA256SUMS`` beside them.

        `ref.path` is the path from a `studio.model_field` of the inputs, or None for the generator's own weights.
        """
        return []

    def dtype_for(self, device: str) -> str:
        """The default dtype: ``float32``, ``bfloat16`` or ``float16``."""
        return "float32"

    def load(self, ref: ModelRef, device: str, dtype: str) -> ModelT:
        """Build the model of `ref` on `device` (``cpu``, ``cuda``, ``cuda:1``); the only method that reads weights.

        The model may depend only on `device`, `dtype`, `ref.variant` and the files of `weights`: generators with the
        same `load` function, weights and variant share one model. `load` may be called again after the host has evicted
        the model to free memory.
        """
        return None  # type: ignore[return-value]  # a generator without weights has no model

    def generate(self, model: ModelT, inputs: InputsT, rng: Rng) -> Media:
        """Generate the output in one step (simple form)."""
        raise NotImplementedError(f"{type(self).__name__} defines neither `generate` nor `start`, `step` and `finish`")

    def start(self, model: ModelT, inputs: InputsT, rng: Rng) -> StateT:
        """Return the first state; expensive preparation (encoding a prompt, prefill) belongs here."""
        return _OneStep(inputs=inputs, rng=rng)  # type: ignore[return-value]  # of the simple form

    def start_isolated(self, model: ModelT, inputs: InputsT, rng: Rng) -> StateT:
        """Return the first state of an ``--invariant`` request: do not use a prefix cache or other shared results."""
        return self.start(model, inputs, rng)

    def step(self, model: ModelT, states: Sequence[StateT]) -> Sequence[StateT]:
        """Return the next state of each given state, in order, without mutating the given states.

        All given states have equal batch keys. A position must increase, unless the state becomes done.
        """
        made = []
        for state in states:
            assert isinstance(state, _OneStep)
            media = self.generate(model, state.inputs, state.rng)  # type: ignore[arg-type]  # they are those of `start`
            made.append(_OneStep(position=1, inputs=state.inputs, rng=state.rng, media=media))
        return made  # type: ignore[return-value]  # of the simple form

    def finish(self, model: ModelT, state: StateT) -> Media:
        """Return the output of a finished state."""
        assert isinstance(state, _OneStep)
        return state.media  # type: ignore[return-value]  # the host checks what it is given

    def finish_many(self, model: ModelT, states: Sequence[StateT]) -> Sequence[Media]:
        """Return the outputs of several finished states, in order; all had equal batch keys at their last step.

        Override it where one batched call is faster than single calls: the host then measures the best batch size.
        """
        return [self.finish(model, state) for state in states]

    def delta(self, model: ModelT, state: StateT, start: int) -> str:
        """Return the text that an unfinished state has beyond the first `start` characters, for a generator of text.

        Returned text cannot change later: hold back an incomplete character, and what may become a stop string. The
        output of `finish` must start with all returned text. By default the text is reported only when it is complete.
        """
        return ""

    def preview(self, model: ModelT, state: StateT) -> Media | None:
        """Return a cheap preview of an unfinished state, or None. The default is the text of `delta`, if any.

        It is media of the output's type, or a picture.
        """
        return Text(text) if (text := self.delta(model, state, 0)) else None

    def batch_key(self, state: StateT) -> Hashable:
        """States with equal keys can be batched in one step. By default no states are batched."""
        return ("alone", id(state))

    def shrink(self, model: ModelT, state: StateT) -> StateT | None:
        """Recover from out of memory in a step of one state: return a state at the same position whose steps need less
        memory (by tiling or chunking), or None if that is not possible.
        """
        return None

    def facts(self, model: ModelT, inputs: InputsT) -> dict[str, Any]:
        """Facts for the recipe, as JSON: noise schedule, sampler, every lossy option. The host adds `attention`."""
        return {}


class Console(Protocol):
    """The console to which a trainer writes its progress, such as a `rich.console.Console`."""

    def print(self, *objects: Any) -> None:
        """Write a line."""


class Trainer:
    """A training recipe, run by ``studio train NAME …``; its flags follow from `Options`.

    Attributes:
        starter: the command, outside the package, that trains the model that ships with the plugin, if there is one.
            A recipe with a `starter` and no `run` is not listed: running it is refused with that command.
        starter_options: options that only the starter's command has; `studio train` refuses them in the same way.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[BaseInputs]] = BaseInputs
    starter: ClassVar[str] = ""
    starter_options: ClassVar[tuple[str, ...]] = ()

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        lines = (type(self).__doc__ or "").strip().splitlines()
        return lines[0].strip() if lines else ""

    @property
    def runs(self) -> bool:
        """Whether it can be run; if not, it only names the `starter`'s command."""
        return type(self).run is not Trainer.run

    def run(self, options: Any, console: Console) -> None:
        """Train. A run that takes longer than minutes must be resumable."""
        raise NotImplementedError(f"{type(self).__name__} defines no `run`")
