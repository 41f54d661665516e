"""A generator over a diffusers pipeline, for plugin authors. Importing this loads no torch.

Try it::

    class Mine(studio.PipelineGenerator):
        "Draw with a pipeline of diffusers."
        name, output, folder = "mine", studio.Image, Path("my-model")

        class Inputs(studio.Inputs):
            prompt: str = studio.field(help="prompt")
            steps: int = studio.field(20, ge=1, le=1000, help="denoising steps")

        def arguments(self, model, inputs):
            return {"prompt": inputs.prompt, "num_inference_steps": inputs.steps}
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.devices.precision import fast_dtype
from studio.generator import Generator, InputsT, Rng
from studio.media import Media
from studio.spec import ModelRef

if TYPE_CHECKING:
    from studio.diffusion.stepping import GuestState, PipelineModel


class PipelineGenerator(Generator["PipelineModel", InputsT, "GuestState"]):
    """A generator that runs the call of a diffusers pipeline; the host steps, batches, previews and resumes it.

    Define `arguments`, and `folder` or `load`; `media` if the pipeline's output needs more than conversion. A `load`
    that builds modules without `studio.module` needs ``streams = False``.
    """

    streams = True
    folder: Path | None = None
    """The model's folder in diffusers' layout, unless the request names another with a `studio.model_field`."""

    def arguments(self, model: PipelineModel, inputs: InputsT) -> Mapping[str, Any]:
        """The arguments of the pipeline's call, without the random generator and `output_type`."""
        raise NotImplementedError(f"{type(self).__name__} defines no `arguments`")

    def media(self, model: PipelineModel, inputs: InputsT, result: Any) -> Media:
        """The output from what the pipeline returned, with values of pixels in [0, 1]."""
        from studio.diffusion.results import as_media

        return as_media(self.output, model.pipe, result)

    def weights(self, ref: ModelRef) -> list[Path]:
        """The files of the model and its additions. Raises WeightsError."""
        from studio.diffusion.additions import Additions
        from studio.diffusion.folders import weight_files

        return weight_files(self._folder(ref), Additions.of(ref))

    def dtype_for(self, device: str) -> str:
        """bfloat16 where the hardware supports it, else float32."""
        return fast_dtype(device)

    def load(self, ref: ModelRef, device: str, dtype: str) -> PipelineModel:
        """Load the pipeline of the folder with its additions. Raises WeightsError."""
        from studio.diffusion.additions import Additions
        from studio.diffusion.folders import load

        return load(self._folder(ref), device, dtype, Additions.of(ref))

    def start(self, model: PipelineModel, inputs: InputsT, rng: Rng) -> GuestState:
        """Begin the pipeline's call: encode the prompts, sample the noise."""
        from studio.diffusion import stepping

        return stepping.start(model, {"output_type": "np", **self.arguments(model, inputs)}, rng, inputs)

    def step(self, model: PipelineModel, states: Sequence[GuestState]) -> Sequence[GuestState]:
        """One denoising step of each request."""
        from studio.diffusion import stepping

        return stepping.step(model, states)

    def finish(self, model: PipelineModel, state: GuestState) -> Media:
        """Decode the latents."""
        return self.finish_many(model, [state])[0]

    def finish_many(self, model: PipelineModel, states: Sequence[GuestState]) -> list[Media]:
        """Decode the latents of all states in one batch."""
        from studio.diffusion import stepping

        results = stepping.finish(model, states)
        return [self.media(model, state.inputs, result) for state, result in zip(states, results, strict=True)]

    def preview(self, model: PipelineModel, state: GuestState) -> Media | None:
        """Decode the clean sample that the last step predicted."""
        from studio.diffusion import stepping

        found = stepping.preview(model, state)
        return None if found is None else self.media(model, state.inputs, found)

    def batch_key(self, state: GuestState) -> Hashable:
        """Requests that wait for equal calls of a module share a step."""
        return state.key

    def facts(self, model: PipelineModel, inputs: InputsT) -> dict[str, Any]:
        """The pipeline, its scheduler, its steps and guidance, and how a saved state is resumed."""
        from studio.diffusion import arguments, stepping

        given = (getattr(inputs, name, None) for name in ("steps", "guidance"))
        return arguments.facts(model.pipe, *given) | stepping.facts(model)

    def _folder(self, ref: ModelRef) -> Path:
        found = ref.path or self.folder
        assert found is not None, "a generator without a `folder` defines `load`, or has a `studio.model_field`"
        return found
