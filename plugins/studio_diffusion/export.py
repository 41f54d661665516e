"""Export trained modules to a folder that diffusers loads as `StableDiffusionPipeline` or `DDPMPipeline`.

Weights are float16 safetensors with a `SHA256SUMS` beside `model_index.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor
from transformers import CLIPTextModel

from studio.files import new_folder
from studio.weights import checksums


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 16) -> Tensor:
    """Mean latents, float32 (N, C, H/8, W/8) on the CPU, of uint8 pictures (N, H, W, 3), times the scaling factor."""
    made = []
    for start in range(0, len(pictures), batch):
        x = torch.from_numpy(np.array(pictures[start : start + batch])).permute(0, 3, 1, 2)
        x = x.to(vae.device, vae.dtype).div(127.5).sub(1)
        made.append(vae.encode(x).latent_dist.mean.float().cpu() * vae.config.scaling_factor)
    return torch.cat(made)


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: np.ndarray) -> None:
    """Normalize each latent channel to mean 0 and deviation 1 over `pictures`, in place; reconstructions do not change.

    The statistics are folded into the 1x1 convolutions next to the latents, so that diffusers needs no shift factor.
    """
    z = encode(vae, pictures)  # (N, C, h, w)
    # The convolutions' latents are not yet scaled, which affects only the mean.
    mean = z.mean((0, 2, 3)).to(vae.device) / vae.config.scaling_factor
    deviation = z.std((0, 2, 3)).to(vae.device)
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()  # the log-variances
    out.bias += torch.einsum("oc,c->o", out.weight[:, :, 0, 0], mean)
    out.weight *= deviation[None, :, None, None]


def scheduler() -> DPMSolverMultistepScheduler:
    """The diffusers scheduler that the sampler `dpmpp-2m` equals."""
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0,
                                       num_train_timesteps=1000, solver_order=2, steps_offset=1)  # fmt: skip


def save(
    folder: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: Path
) -> None:
    """Write the folder of a latent diffusion model, atomically."""
    with _replaced(folder) as part:
        for name, module in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
            _save_module(module, part / name)
        scheduler().save_pretrained(part / "scheduler")
        shutil.copytree(tokenizer, part / "tokenizer")
        index = {
            "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "image_encoder": [None, None],
            "requires_safety_checker": False, "safety_checker": [None, None],
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }  # fmt: skip
        _write_json(part / "model_index.json", index)


def save_pixel(folder: Path, unet: UNet2DModel, schedule: dict[str, Any], labels: Sequence[str]) -> None:
    """Write the folder of a pixel diffusion model, atomically.

    Args:
        schedule: the config of its noise schedule (`noise.config`).
        labels: its class names without the last class, "none"; empty for an unconditional model.
    """
    with _replaced(folder) as part:
        _save_module(unet, part / "unet")
        DDPMScheduler.from_config(schedule).save_pretrained(part / "scheduler")
        index = {
            "_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }  # fmt: skip
        _write_json(part / "model_index.json", index)
        if labels:
            _write_json(part / "labels.json", list(labels))


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which gets checksums and then replaces `folder`."""
    with new_folder(folder) as part:
        yield part
        checksums.write(part)


def _save_module(module: Any, folder: Path) -> None:
    module.to("cpu", torch.float16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("_name_or_path", None)  # a path of the training machine
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
