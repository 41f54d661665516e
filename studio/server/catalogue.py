"""Which generator serves a request: chosen by what generators declare, and by the name of a model.

A `Role` is what an interface needs of a generator: the kind of its output, and inputs that it must and may have. A
model's name is a generator's (``image``), a generator's with a model (``text/smollm2``), a downloaded model's
(``smollm2``), or one of `ALIASES`.

Try it: ``curl http://127.0.0.1:7860/v1/models``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from studio import models
from studio.api import Studio
from studio.errors import StudioError, UnknownName, UsageError
from studio.generator import Generator
from studio.inputs import Flag
from studio.media import Audio, Embedding, Image, Media, Text, Video
from studio.spec import ModelRef


@dataclass(frozen=True)
class Role:
    """What an interface needs of a generator.

    Attributes:
        noun: what is generated, for messages.
        output: the kind of media.
        needs: inputs that the generator must declare.
        usual: inputs that it must declare besides to be chosen without being named.
        gives: inputs that the interface can give; the generator may require no others.
        lacks: inputs that it must not declare, as its output is then something else.
    """

    noun: str
    output: type[Media]
    needs: frozenset[str]
    usual: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()

    def fits(self, generator: Generator, *, unnamed: bool = False) -> bool:
        """Whether a generator can serve, or with `unnamed` whether it can without being named."""
        flags = flags_of(generator)
        required = {name for name, flag in flags.items() if flag.required}
        wanted = self.needs | self.usual if unnamed else self.needs
        declares = wanted <= flags.keys() and not self.lacks & flags.keys()
        return generator.output is self.output and declares and required <= self.needs | self.gives


_LOGPROBS = frozenset({"top"})
CHAT = Role("chat answers", Text, frozenset({"prompt", "chat", "turns", "system"}), lacks=_LOGPROBS)
COMPLETION = Role("text", Text, frozenset({"prompt", "max_tokens"}), lacks=_LOGPROBS)
EXPLAINED = Role("text with log-probabilities", Text, COMPLETION.needs | _LOGPROBS)
EMBEDDING = Role("embeddings of text", Embedding, frozenset({"text"}))
PICTURE = Role("images", Image, frozenset({"prompt"}), frozenset({"size", "steps"}))
EDIT = Role("edited images", Image, frozenset({"prompt", "image"}), frozenset({"size", "steps", "strength"}))
CLIP = Role("videos", Video, frozenset({"prompt"}), frozenset({"size", "frames"}))
SPEECH = Role("speech", Audio, frozenset({"text", "voice"}))
TRANSCRIPT = Role("transcripts", Text, frozenset({"audio"}))
ROLES = (CHAT, COMPLETION, EMBEDDING, PICTURE, EDIT, CLIP, SPEECH, TRANSCRIPT)

ALIASES = ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5")
"""Names of models for pictures that clients have built in. They stand for the usual generator."""


@dataclass(frozen=True)
class Choice:
    """A generator and the model that it loads; an empty `model` is the generator's own."""

    generator: Generator
    model: str = ""

    @property
    def name(self) -> str:
        """The name of the model as clients write it."""
        return f"{self.generator.name}/{self.model}" if self.model else self.generator.name

    @property
    def values(self) -> dict[str, Any]:
        """The input that selects the model."""
        field = model_input(self.generator)
        return {field: self.model} if self.model and field else {}

    def takes(self, name: str) -> bool:
        """Whether the generator has an input of that name, or with that alias."""
        flags = flags_of(self.generator)
        return name in flags or any(name in alias.names for flag in flags.values() for alias in flag.aliases)


class Catalogue:
    """The generators of a Studio, as clients name them."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._fitting: dict[tuple[str, str], bool] = {}

    def choose(self, role: Role, name: str | None) -> Choice:
        """The generator for a role. Raises UnknownName for an unknown model, UsageError for one of another role."""
        if not name or (name in ALIASES and role.output is Image):
            return self._usual(role)
        generators = self._studio.generators
        head, _, model = name.partition("/")
        if head in generators and (not model or (models.is_source(model) and model_input(generators[head]))):
            choice = Choice(generators[head], model)
            if not role.fits(choice.generator):
                message = f"`{name[:100]}` does not generate {role.noun}"
                raise UsageError(message, hint=f"models that do: {', '.join(self.names(role)) or 'none'}")
            return choice
        found = next((each for each in self.choices(role) if each.model == name), None)
        if found is None:
            raise UnknownName("model", name[:100], self.names(role))
        return found

    def explained(self, choice: Choice) -> Choice:
        """The generator that reports the log-probabilities of the same model. Raises UsageError if there is none."""
        for each in self._studio.generators.values():
            if EXPLAINED.fits(each) and type(each).load is type(choice.generator).load:
                return Choice(each, choice.model)
        raise UsageError(f"`{choice.name}` does not report log-probabilities", hint="leave out `logprobs`")

    def names(self, role: Role) -> list[str]:
        """The models of a role."""
        return [each.name for each in self.choices(role)]

    def choices(self, role: Role) -> Iterator[Choice]:
        """The generators of a role, and each with the downloaded models that it can load."""
        for generator in self._studio.generators.values():
            if role.fits(generator, unnamed=True):
                yield Choice(generator)
                yield from (Choice(generator, name) for name in self.models_of(generator))

    def models_of(self, generator: Generator) -> list[str]:
        """The downloaded models that a generator can load."""
        return [name for name in self.downloaded() if self._loads(generator, name)]

    def _usual(self, role: Role) -> Choice:
        found = next((each for each in self._studio.generators.values() if role.fits(each, unnamed=True)), None)
        if found is None:
            needs = ", ".join(f"`{name}`" for name in sorted(role.needs | role.usual))
            hint = f"install a plugin whose generator has the inputs {needs}"
            raise UsageError(f"no generator makes {role.noun}", hint=hint)
        return Choice(found)

    def downloaded(self) -> list[str]:
        """Short names, else sources, of the downloaded models."""
        library = models.Models(self._studio.home)
        short = {str(each.source): name for name, each in models.known().items()}
        ready = (each for each in library.entries() if library.state(models.parse(each)) == "ready")
        return [short.get(source, source) for source in ready]

    def _loads(self, generator: Generator, model: str) -> bool:
        """Whether a downloaded model has the files that the generator reads."""
        if model_input(generator) is None:
            return False
        key = (generator.name, model)
        if key not in self._fitting:
            try:
                with models.home(self._studio.home):
                    generator.weights(models.locate(ModelRef(source=model)))
                self._fitting[key] = True
            except StudioError:
                self._fitting[key] = False
        return self._fitting[key]


def flags_of(generator: Generator) -> dict[str, Flag]:
    """The declared inputs by name."""
    return {flag.name: flag for flag in generator.Inputs.flags()}


def model_input(generator: Generator) -> str | None:
    """The input that selects the model, or None."""
    return generator.Inputs.model_input()
