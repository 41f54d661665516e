"""Every pipeline class that builds tiny keeps every property, as docs/pipelines.md says; the default run takes some."""

from __future__ import annotations

import pytest

import studio
from studio.diffusion import stepping
from studio.diffusion.schedulers import SAMPLERS, fitting
from studio.diffusion.stepping import resuming
from studio.engine.checkpoints.encoding import decode_state, encode_state

from . import conformance, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries: many of these classes are old
QUICK = {
    "StableDiffusionAdapterPipeline",
    "StableDiffusionSAGPipeline",
    "ZImagePipeline",
    "FluxKontextPipeline",
    "EasyAnimatePipeline",
    "StableAudioPipeline",
}

BROKEN = {"ChromaInpaintPipeline": "plain", "BriaPipeline": "guest"}
"""The check that fails: diffusers' own call of the first reads a setting that its transformer lacks, and the second
compares the exact class of its scheduler."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in tiny.TINY]
)
def test_a_pipeline_keeps_every_property(name: str) -> None:
    if name.startswith("Kolors"):
        pytest.importorskip("sentencepiece")
    with tiny.one_thread():
        row = conformance.check(name)
    if name in BROKEN:
        assert set(row.failed) == {BROKEN[name]}, "docs/pipelines.md is out of date"
        return
    assert not row.failed
    assert row.resumes == (name in resuming()), f"`resumes.json` is wrong about `{name}`"


@pytest.mark.parametrize("sampler", [pytest.param(name, marks=() if name in {"flow-lcm", "dpmpp-2m-sde"} else
                                                  pytest.mark.slow) for name in SAMPLERS])  # fmt: skip
def test_a_saved_state_of_each_sampler_resumes_to_the_same_bytes(sampler: str) -> None:
    with tiny.one_thread():
        bench = conformance.Bench("FluxPipeline" if sampler.startswith("flow") else "StableDiffusionPipeline")
        if sampler not in fitting(bench.pipe):
            pytest.skip("it does not fit the pipeline, or its package is not installed")
        given = {"output_type": "np", **bench.arguments(1)}
        states = [stepping.start(bench.model, given, studio.Rng(1), sampler=sampler)]
        while not states[-1].done:
            states += stepping.step(bench.model, states[-1:])
        output = bench.finish(states[-1])
        for state in states[1:-1]:
            fresh = stepping.start(bench.model, given, studio.Rng(1), sampler=sampler)
            assert conformance.same(bench.finish(decode_state(*encode_state(state), fresh, "cpu")), output)
