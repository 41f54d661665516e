"""Generator, State, Rng, Trainer: what a plugin author writes. A generator describes; the host holds and runs the loop.

Simple form: `generate` makes the media in one step. Stepped form: `start` makes a State, `step` moves several states
one step on, `finish` makes the media. Generators hold no weights, threads or caches: `load` returns the model, and
the host lends it to every call. This module knows nothing of engines, devices or plugins' discovery.

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
import inspect
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol

from typing_extensions import TypeVar

from studio.inputs import Flag
from studio.inputs import Inputs as BaseInputs
from studio.media import Media, Text
from studio.spec import OPTIONS, ModelRef

if TYPE_CHECKING:
    import random

    import torch

_HOST_NAMES = (*OPTIONS, "n", "output", "json")
UNSAVED = "studio_unsaved"
_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,49}$")


class Rng:
    """A request's own randomness. All noise is drawn on the CPU, so that a seed means the same on every device.

    `torch` is a `torch.Generator` and `python` a `random.Random`; both are made when first used. Drawing changes them:
    draw in `start`, or, in a step that must leave its states as they were, from ``rng.fork(state.position)``.

    `seed` is from 0 to 2**64 - 1; ValueError for others. `torch_seed` is what to seed any generator of torch with:
    torch looks at the low 32 bits only, so it is the seed itself below 2**32, and 32 bits that mix all of it (sha256)
    from there on.
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
        """Return a fresh generator that depends on the seed and the key alone (sha256), leaving this one as it is."""
        digest = hashlib.sha256(f"{self.seed}/{key!r}".encode()).digest()
        made = Rng(int.from_bytes(digest[:8], "big"))
        made.torch_seed = made.seed & 0xFFFFFFFF  # the low bits of a hash are mixed already
        return made

    def state_dict(self) -> dict[str, Any]:
        """The whole state as JSON values, to be taken up again by `from_state_dict`."""
        python = self._python.getstate() if self._python else None
        return {
            "seed": self.seed,
            "torch_seed": self.torch_seed,
            "torch": bytes(self._torch.get_state().tolist()).hex() if self._torch else None,
            "python": [python[0], list(python[1]), python[2]] if python else None,
        }

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, Any]) -> Rng:
        """Take up what `state_dict` gave; later draws are the same."""
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

    `position` counts the steps done, `steps` those in all; `notices` tells the user what the generator had to do (a
    prompt was cut …) and goes into the recipe. Fields hold tensors and JSON-able values, so that a state can be saved;
    one that is declared with `unsaved()` may hold anything.
    """

    position: int = 0
    steps: int = 1
    notices: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether `finish` may be called."""
        return self.position >= self.steps


def unsaved() -> Any:
    """Declare a field of a State that is left out when it is saved, because it can be made again (a cache, say).

    A state that is taken up again has there what `start` makes.
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
    """Makes one kind of media from inputs.

    Give `name` (lower case, digits, ``-`` and ``_``), `output` (a media class), `Inputs`, a docstring whose first line
    says what it does, and either `generate` or `start`, `step` and `finish`. `version` goes into every recipe: raise it
    when equal inputs give other media. At most `max_batch` states share a step. A call that takes longer than
    `time_limit_s` seconds is taken to hang. `streams` promises that `load` builds all that has weights by
    `studio.module`, so that the host may stream a model that is larger than the memory for it.

    Its types may be named: ``class Invert(studio.Generator[None, Inputs, State])`` has a type checker know what `load`
    returns, the class of the inputs, and that of the states.
    """

    name: ClassVar[str] = ""
    output: ClassVar[type[Media]] = Media
    Inputs: ClassVar[type[BaseInputs]] = BaseInputs
    version: ClassVar[str] = "1"
    max_batch: ClassVar[int] = 8
    time_limit_s: ClassVar[float] = 600.0
    streams: ClassVar[bool] = False

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        lines = (type(self).__doc__ or "").strip().splitlines()
        return lines[0].strip() if lines else ""

    def weights(self, ref: ModelRef) -> list[Path]:
        """The files that `load` reads; the host hashes them and checks them against a ``SHA256SUMS`` beside them.

        `ref.path` is what a `studio.model_field` of the inputs names, or None for the generator's own weights.
        """
        return []

    def dtype_for(self, device: str) -> str:
        """The dtype to load in when the user names none: ``float32``, ``bfloat16`` or ``float16``."""
        return "float32"

    def load(self, ref: ModelRef, device: str, dtype: str) -> ModelT:
        """Build the model of `ref` on `device` (``cpu``, ``cuda``, ``cuda:1``); the only place that reads weights.

        What it builds follows from `device`, `dtype`, `ref.variant` and the files of `weights` only: generators that
        have this function in common and whose weights and variants are equal share one model. It may be called again,
        after the host has evicted the model to make room.
        """
        return None  # type: ignore[return-value]  # a generator without weights has no model

    def generate(self, model: ModelT, inputs: InputsT, rng: Rng) -> Media:
        """Make the media in one step (simple form)."""
        raise NotImplementedError(f"{type(self).__name__} defines neither `generate` nor `start`, `step` and `finish`")

    def start(self, model: ModelT, inputs: InputsT, rng: Rng) -> StateT:
        """Make the first state; long work (encoding a prompt) belongs here."""
        return _OneStep(inputs=inputs, rng=rng)  # type: ignore[return-value]  # of the simple form

    def start_isolated(self, model: ModelT, inputs: InputsT, rng: Rng) -> StateT:
        """Make the first state of a request whose bytes may depend on nothing but itself (``--invariant``): take
        nothing that other requests have left in the model, such as a prefix cache.
        """
        return self.start(model, inputs, rng)

    def step(self, model: ModelT, states: Sequence[StateT]) -> Sequence[StateT]:
        """Return the next state of each given one, in order; the given states must stay valid.

        All given states have equal batch keys. A position must grow, unless the state becomes done.
        """
        made = []
        for state in states:
            assert isinstance(state, _OneStep)
            media = self.generate(model, state.inputs, state.rng)  # type: ignore[arg-type]  # they are those of `start`
            made.append(_OneStep(position=1, inputs=state.inputs, rng=state.rng, media=media))
        return made  # type: ignore[return-value]  # of the simple form

    def finish(self, model: ModelT, state: StateT) -> Media:
        """Make the media of a state that is done."""
        assert isinstance(state, _OneStep)
        return state.media  # type: ignore[return-value]  # the host checks what it is given

    def finish_many(self, model: ModelT, states: Sequence[StateT]) -> Sequence[Media]:
        """Make the media of several states that are done, in order; all had equal batch keys at their last step.

        Override it where one call for all takes less time than one for each: the host then measures how many pay.
        """
        return [self.finish(model, state) for state in states]

    def delta(self, model: ModelT, state: StateT, start: int) -> str:
        """Return the text that an unfinished state has beyond the first `start` characters, for a generator of text.

        What is returned is shown at once, so it must stay: hold back half a character, and the beginning of what may
        become a stop string. The output of `finish` must begin with all that was returned. The default returns nothing,
        and the text is told when it is finished.
        """
        return ""

    def preview(self, model: ModelT, state: StateT) -> Media | None:
        """Make a rough view of an unfinished state, cheaply, or None. The default is the text of `delta`, if any."""
        return Text(text) if (text := self.delta(model, state, 0)) else None

    def batch_key(self, state: StateT) -> Hashable:
        """States with equal keys may share a step. The default shares none."""
        return ("alone", id(state))

    def shrink(self, model: ModelT, state: StateT) -> StateT | None:
        """After a step ran out of memory by itself: return a state at the same position whose steps take less (in tiles
        or chunks), or None if that cannot be had.
        """
        return None

    def facts(self, model: ModelT, inputs: InputsT) -> dict[str, Any]:
        """More for the recipe, as JSON: noise schedule, sampler, every lossy option. The host adds `attention`."""
        return {}


class Console(Protocol):
    """Where a trainer writes its progress; a `rich.console.Console` is one."""

    def print(self, *objects: Any) -> None:
        """Write a line."""


class Trainer:
    """A training recipe, reachable as ``studio train NAME …``; its flags follow from `Options`."""

    name: ClassVar[str] = ""
    Options: ClassVar[type[BaseInputs]] = BaseInputs

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        lines = (type(self).__doc__ or "").strip().splitlines()
        return lines[0].strip() if lines else ""

    def run(self, options: Any, console: Console) -> None:
        """Do the work; must be resumable where it takes longer than minutes."""
        raise NotImplementedError(f"{type(self).__name__} defines no `run`")


def check(generator: object) -> list[str]:
    """Return the reasons why this is no good generator; an empty list if it is one."""
    if isinstance(generator, type):
        return [f"`{generator.__name__}` is a class; register an instance: `{generator.__name__}()`"]
    if not isinstance(generator, Generator):
        return [f"{type(generator).__name__} is not a studio.Generator"]
    kind = type(generator)
    return [*_check_identity(generator), *_check_types(generator), *_check_load(generator), *_check_form(kind)]


def check_trainer(trainer: object) -> list[str]:
    """Return the reasons why this is no good trainer; an empty list if it is one."""
    if not isinstance(trainer, Trainer):
        return [f"{getattr(trainer, '__name__', type(trainer).__name__)} is not an instance of studio.Trainer"]
    reasons = [] if good_name(trainer.name) else [_bad_name(trainer.name)]
    if not (isinstance(trainer.Options, type) and issubclass(trainer.Options, BaseInputs)):
        reasons.append("`Options` is not a subclass of studio.Inputs")
    if type(trainer).run is Trainer.run:
        reasons.append("defines no `run`")
    return reasons


def good_name(name: object) -> bool:
    """Whether a generator or a trainer may be called that."""
    return isinstance(name, str) and bool(_NAME.match(name))


def _bad_name(name: object) -> str:
    return f"its name is {name!r}; a name is 1 to 50 of a-z, 0-9, `-` and `_`, starting with a letter"


def _check_identity(generator: Generator) -> list[str]:
    reasons = [] if good_name(generator.name) else [_bad_name(generator.name)]
    if not isinstance(generator.version, str) or not generator.version:
        reasons.append(f"its version is {generator.version!r}; a version is text, such as '1'")
    if not isinstance(generator.max_batch, int) or generator.max_batch < 1:
        reasons.append(f"its max_batch is {generator.max_batch!r}; it must be a whole number of at least 1")
    if not isinstance(generator.time_limit_s, int | float) or not generator.time_limit_s > 0:
        reasons.append(f"its time_limit_s is {generator.time_limit_s!r}; it must be a number of seconds above 0")
    if not generator.summary or type(generator).__doc__ == Generator.__doc__:
        reasons.append("has no docstring; its first line tells users what it does")
    return reasons


def _check_types(generator: Generator) -> list[str]:
    reasons = []
    output, inputs = generator.output, generator.Inputs
    if not (isinstance(output, type) and issubclass(output, Media)) or output is Media:
        reasons.append(f"its output is {output!r}; it must be studio.Text, Image, Video, Audio or Embedding")
    if not (isinstance(inputs, type) and issubclass(inputs, BaseInputs)):
        reasons.append("`Inputs` is not a subclass of studio.Inputs")
    else:
        for flag in inputs.flags():
            if not flag.help:
                reasons.append(f"its input `{flag.name}` has no help; declare it with studio.field(help=…)")
            for name in (flag.name, *(name for alias in flag.aliases for name in alias.names)):
                if name in _HOST_NAMES:
                    reasons.append(f"its input `{name}` takes a name that the host uses for every generator")
        reasons += _check_aliases(inputs.flags())
    return reasons


def _check_aliases(flags: Sequence[Flag]) -> list[str]:
    aliases = [name for flag in flags for alias in flag.aliases for name in alias.names]
    names = [*(flag.name for flag in flags), *aliases]
    reasons = [f"its alias `{name}` is also another input" for name in dict.fromkeys(aliases) if names.count(name) > 1]
    return reasons + [f"its alias {name!r} is not a name" for name in aliases if not name.isidentifier()]


def _check_load(generator: Generator) -> list[str]:
    """Plugins of before 0.2 had `load(device, dtype)` and `weights()`."""
    taken = {"load": ("ref", "device", "dtype"), "weights": ("ref",)}
    reasons = []
    for name, wanted in taken.items():
        try:
            inspect.signature(getattr(generator, name)).bind(*wanted)
        except TypeError:
            reasons.append(f"its `{name}` must take ({', '.join(wanted)}), where `ref` is a studio.ModelRef")
    return reasons


def _check_form(kind: type[Generator]) -> list[str]:
    stepped = [name for name in ("start", "step", "finish") if getattr(kind, name) is not getattr(Generator, name)]
    simple = kind.generate is not Generator.generate
    if simple and stepped:
        return [f"defines both `generate` and {', '.join(f'`{name}`' for name in stepped)}; one form is enough"]
    if not simple and len(stepped) != 3:
        missing = [f"`{name}`" for name in ("start", "step", "finish") if name not in stepped]
        return [f"defines no `generate`, and no {', '.join(missing)}"]
    return []
