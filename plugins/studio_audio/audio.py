"""The generator `audio`: sounds and music by an audio pipeline of diffusers (Stable Audio, ACE-Step, AudioLDM 2 …).

It has no own weights: `model` is required. Importing this loads no torch; `load` does.

Try it: ``studio audio "a dog barks" --model FOLDER --seconds 5 -o dog.flac``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

import studio

if TYPE_CHECKING:
    from studio.diffusion.stepping import GuestState, PipelineModel

_SECONDS = ("audio_end_in_s", "audio_length_in_s", "audio_duration", "audio_duration_s", "duration")
"""The pipelines' arguments for the length in seconds."""


class AudioGenerator(studio.PipelineGenerator):
    """Generate sound or music from a prompt with a model of diffusers."""

    name = "audio"
    output = studio.Audio

    class Inputs(studio.Inputs):
        """The inputs of `studio audio`."""

        prompt: str = studio.field(help="prompt", min_length=1, max_length=2000)
        model: str = studio.model_field("an audio pipeline of diffusers (with its own defaults)")
        base: str = studio.addition_field(
            "base", help="for a `model` in one file, a folder of diffusers with what the file lacks", many=False
        )
        lora: list[str] = studio.addition_field("lora", help="a LoRA for `model`: a file, a folder or a pulled model, "
                                                "with `:WEIGHT` if it is not 1")  # fmt: skip
        negative: str = studio.field("", help="negative prompt", max_length=2000, aliases=("negative_prompt",))
        lyrics: str = studio.field("", help="lyrics, for models that sing", max_length=20_000)
        seconds: float | None = studio.field(None, gt=0, le=600, help="length of the sound")
        steps: int | None = studio.field(
            None,
            ge=1,
            le=1000,
            help="denoising steps; more are slower, with more detail",
            aliases=("num_inference_steps",),
        )
        guidance: float | None = studio.field(
            None, ge=0, le=30, help="guidance scale: how closely to follow the prompt", aliases=("guidance_scale",)
        )
        sampler: str = studio.field("", help="sampler (ODE solver): any that fits the model")

        @model_validator(mode="after")
        def _needs_a_model(self) -> Self:
            if not self.model:
                raise ValueError("`model` is missing: give a folder of an audio pipeline of diffusers, or a pulled one")
            return self

    def start(self, model: PipelineModel, inputs: Any, rng: studio.Rng) -> GuestState:
        """Begin the pipeline's call. Raises InputError for inputs that it does not take."""
        from studio.diffusion import stepping

        return stepping.start(model, self.arguments(model, inputs), rng, inputs, sampler=inputs.sampler)

    def arguments(self, model: PipelineModel, inputs: Any) -> Mapping[str, Any]:
        """The arguments of the pipeline's call. Raises InputError for inputs that it does not take."""
        from studio.diffusion.arguments import arguments, guidance_argument, parameters

        takes = parameters(model.pipe)
        seconds = next((name for name in _SECONDS if name in takes), None)
        return {"output_type": "np"} | arguments(model.pipe, {
            "prompt": ("prompt", inputs.prompt), "negative": ("negative_prompt", inputs.negative or None),
            "lyrics": ("lyrics", inputs.lyrics or None), "seconds": (seconds, inputs.seconds),
            "steps": ("num_inference_steps", inputs.steps),
            "guidance": (guidance_argument(model.pipe), inputs.guidance),
        })  # fmt: skip
