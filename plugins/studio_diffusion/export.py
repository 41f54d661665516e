"""From trained parts to a folder that stock diffusers loads: `StableDiffusionPipeline.from_pretrained(folder)`.

Weights are float16 safetensors with a `SHA256SUMS` beside `model_index.json`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel


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
    """Bring each latent channel to mean 0 and deviation 1 over `pictures`, in place, reconstructions unchanged.

    The statistics are folded into the 1x1 convolutions beside the latents, so that the stock pipeline needs no shift.
    """
    z = encode(vae, pictures)  # (N, C, h, w)
    # The latents that the convolutions make are not yet times the scaling factor; only the mean needs to know.
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
    """The stock noise schedule that our sampler `dpmpp-2m` equals."""
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0,
                                       num_train_timesteps=1000, solver_order=2, steps_offset=1)  # fmt: skip


def save(
    folder: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: Path
) -> None:
    """Write the folder anew, whole: parts into a folder beside it, then the swap."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name, module in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
        module.to("cpu", torch.float16).save_pretrained(part / name)
        config = json.loads((part / name / "config.json").read_text("utf-8"))
        config.pop("_name_or_path", None)  # where it lay when it was trained is nobody's business
        (part / name / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    scheduler().save_pretrained(part / "scheduler")
    shutil.copytree(tokenizer, part / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "image_encoder": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (part / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    checksums(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def checksums(folder: Path) -> None:
    """Write `SHA256SUMS` (the form of coreutils) for the folder's weights."""
    files = sorted(folder.rglob("*.safetensors"))
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n", "utf-8")
