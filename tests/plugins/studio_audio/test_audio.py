"""`studio audio`: the sound of diffusers' pipeline, as WAV and FLAC; refused without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.errors import InputError
from studio.spec import JobSpec
from studio.testing import check
from studio_audio.audio import AudioGenerator

from ...studio.diffusion.whole import diffusers, t5, t5_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


@pytest.fixture(scope="module")
def pipe() -> Any:
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = diffusers.StableAudioPipeline(
            transformer=diffusers.StableAudioDiTModel(
                sample_size=4, in_channels=3, num_layers=2, attention_head_dim=4, num_key_value_attention_heads=2,
                out_channels=3, cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8,
                cross_attention_input_dim=4, num_attention_heads=2,
            ),
            scheduler=diffusers.EDMDPMSolverMultistepScheduler(
                solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
            ),
            vae=diffusers.AutoencoderOobleck(
                encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3,
                audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
            ),
            text_encoder=t5(), tokenizer=t5_tokenizer(),
            projection_model=StableAudioProjectionModel(
                text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32
            ),
        )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def test_a_sound_is_that_of_the_pipeline(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    with studio.Studio(home=tmp_path / "home") as host:
        asked = {"prompt": "a dog barks", "steps": 3, "guidance": 4, "seconds": 2.0, "model": str(tmp_path / "model")}
        made = host.submit("audio", seed=3, dtype="float32", invariant=True, **asked).result(300)
        assert made.recipe is not None
        assert host.generate(JobSpec.parse(made.recipe.spec.to_json())) == made
    check(AudioGenerator(), {name: each for name, each in asked.items() if name != "guidance"}).raise_if_failed()
    stock = pipe(
        "a dog barks", num_inference_steps=3, guidance_scale=4, audio_end_in_s=2.0, output_type="np",
        generator=torch.Generator().manual_seed(3),
    ).audios[0]  # fmt: skip
    assert isinstance(made, studio.Audio)
    assert made.rate == 4
    assert made.waveform.shape == stock.shape
    assert stock.shape[0] == 2
    np.testing.assert_allclose(made.waveform, stock, atol=1e-5)
    again = studio.Audio.open(made.save(tmp_path / "dog.wav"))
    assert np.array_equal(again.waveform, made.waveform)


def test_a_model_is_needed() -> None:
    with pytest.raises(InputError, match="`model` is missing: give a folder of an audio pipeline"):
        AudioGenerator.Inputs.parse({"prompt": "a dog barks"})
