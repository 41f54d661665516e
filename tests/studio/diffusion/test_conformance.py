"""Every pipeline class that builds tiny keeps every property, as docs/pipelines.md says; the default run takes some."""

from __future__ import annotations

import pytest

from studio.diffusion.stepping import resuming

from . import conformance, tiny

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
QUICK = {
    "StableDiffusionAdapterPipeline",
    "StableDiffusionSAGPipeline",
    "StableDiffusion3ControlNetPipeline",
    "PixArtSigmaPipeline",
    "ZImagePipeline",
    "FluxKontextPipeline",
    "LTXPipeline",
    "StableAudioPipeline",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in tiny.TINY]
)
def test_a_pipeline_keeps_every_property(name: str) -> None:
    with tiny.one_thread():
        row = conformance.check(name)
    assert not row.failed
    assert row.resumes == (name in resuming()), f"`resumes.json` is wrong about `{name}`"
