"""Training speed: pictures per second of `studio train`, compared with a plain PyTorch loop with the same model and
loss.

    python benchmarks/training.py dcgan --rounds 5
    python benchmarks/training.py ddpm --rounds 5

Both sides train a model of the starter's shape on the same random pictures, in bfloat16 autocast if the hardware
supports it, alternately in one process; ratios are medians over rounds. The plain loop has the networks, the loss, the
augmentation and Adam, but no EMA, log, checkpoint or grid of samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import torch

from studio.devices import torch_setup

torch_setup.prepare()

from diffusers import DDPMScheduler  # noqa: E402  (needs prepare)
from torch.nn.functional import binary_cross_entropy_with_logits as bce  # noqa: E402
from torch.nn.functional import mse_loss  # noqa: E402

from studio.devices.precision import autocast  # noqa: E402
from studio.diffusion import noise  # noqa: E402
from studio_dcgan import train  # noqa: E402
from studio_dcgan.augment import augment  # noqa: E402
from studio_dcgan.model import Discriminator, GeneratorNet  # noqa: E402
from studio_diffusion import train_pixel  # noqa: E402

PICTURES, CLASSES = 285, 285


def dcgan_ours(device: torch.device, width: int, batch: int, steps: int, pictures: np.ndarray) -> float:
    """Seconds a step of `studio train dcgan` by the run's own clock, which begins with the first step."""
    labels = [str(index) for index in range(CLASSES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train.train(pictures, labels, folder, device=device, steps=steps, minutes=1e9, batch=batch, width=width)
        with safetensors.safe_open(folder / "run.safetensors", framework="pt") as file:
            return float(json.loads(file.metadata()["counters"])["seconds"]) / steps


def dcgan_plain(device: torch.device, width: int, batch: int, steps: int, pictures: np.ndarray) -> float:
    """Seconds a step of the loop of PyTorch's DCGAN tutorial, with classes and augmentation."""
    generator = GeneratorNet(width=width, classes=CLASSES).to(device).train()
    discriminator = Discriminator(width, CLASSES).to(device).train()
    optimizers = [
        torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), fused=True) for net in (generator, discriminator)
    ]
    rng, ones, zeros = torch.Generator().manual_seed(0), torch.ones(batch), torch.zeros(batch)
    ones, zeros = ones.to(device), zeros.to(device)
    begun = time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(PICTURES, (batch,), generator=rng)
        real = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(device)
        labels, z = rows.to(device), torch.randn(batch, 100, generator=rng).to(device)
        with autocast(device):
            made = generator(z, labels)
            on_real = discriminator(augment(real, rng), labels)
            on_made = discriminator(augment(made.detach(), rng), labels)
        discriminator.zero_grad(set_to_none=True)
        (bce(on_real.float(), ones) + bce(on_made.float(), zeros)).backward()
        optimizers[1].step()
        generator.zero_grad(set_to_none=True)
        for parameter in discriminator.parameters():
            parameter.requires_grad_(False)
        with autocast(device):
            scores = discriminator(augment(made, rng), labels)
        loss = bce(scores.float(), ones)
        loss.backward()
        for parameter in discriminator.parameters():
            parameter.requires_grad_(True)
        optimizers[0].step()
        loss.item()
    return (time.perf_counter() - begun) / steps


def ddpm_ours(device: torch.device, batch: int, steps: int, pictures: np.ndarray) -> float:
    """Seconds a step of `studio train ddpm` by the run's own clock, which begins with the first step."""
    labels = [f"{index:03}" for index in range(CLASSES)]
    schedule = noise.NoiseSchedule(noise.config("cosine", "v"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_pixel.train(pictures, labels, schedule, folder, device=device, steps=steps, minutes=1e9, batch=batch)
        with safetensors.safe_open(folder / "run.safetensors", framework="pt") as file:
            return float(json.loads(file.metadata()["counters"])["seconds"]) / steps


def ddpm_plain(device: torch.device, batch: int, steps: int, pictures: np.ndarray) -> float:
    """Seconds a step of the loop of diffusers' unconditional example, with classes and gradient clipping."""
    model = train_pixel.build(pictures.shape[1], CLASSES + 1).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.99), fused=True)
    scheduler = DDPMScheduler.from_config(noise.config("cosine", "v"))
    rng = torch.Generator().manual_seed(0)
    begun = time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(PICTURES, (batch,), generator=rng)
        x0 = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(device)
        e, t = torch.randn(x0.shape, generator=rng).to(device), torch.randint(1000, (batch,), generator=rng).to(device)
        with autocast(device):
            said = model(scheduler.add_noise(x0, e, t), t, rows.to(device)).sample
        loss = mse_loss(said.float(), scheduler.get_velocity(x0, e, t))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return (time.perf_counter() - begun) / steps


def by_turns(sides: dict[str, Callable[[], float]], batch: int, rounds: int) -> None:
    """Print pictures a second of each side, and how the first compares with the second."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            seconds = side()
            if turn:  # the first round warms up
                taken[name].append(seconds)
    print("| loop | pictures per second |\n|---|---|")
    for name, seconds in taken.items():
        print(f"| {name} | {batch / statistics.median(seconds):.0f} |")
    ours, plain = taken.values()
    ratios = [b / a for a, b in zip(ours, plain, strict=True)]
    print(f"\nours to plain: {statistics.median(ratios):.3f} (median of {rounds} rounds, {min(ratios):.3f} to "
          f"{max(ratios):.3f})")  # fmt: skip


def dcgan(arguments: argparse.Namespace) -> None:
    """The DCGAN starter's training step."""
    device = torch.device(arguments.device)
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, 64, 64, 3), np.uint8)
    shape = (device, arguments.width, arguments.batch, arguments.steps, pictures)
    print(f"DCGAN, width {arguments.width}, batch {arguments.batch}, {torch.get_num_threads()} threads, "
          f"{arguments.steps} steps a turn\n")  # fmt: skip
    by_turns(
        {"`studio train dcgan`": lambda: dcgan_ours(*shape), "plain PyTorch": lambda: dcgan_plain(*shape)},
        arguments.batch, arguments.rounds,
    )  # fmt: skip


def ddpm(arguments: argparse.Namespace) -> None:
    """The DDPM starter's training step."""
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, 32, 32, 3), np.uint8)
    shape = (torch.device(arguments.device), arguments.batch, arguments.steps, pictures)
    print(f"DDPM, batch {arguments.batch}, {torch.get_num_threads()} threads, {arguments.steps} steps a turn\n")
    by_turns(
        {"`studio train ddpm`": lambda: ddpm_ours(*shape), "plain PyTorch": lambda: ddpm_plain(*shape)},
        arguments.batch, arguments.rounds,
    )  # fmt: skip


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["dcgan", "ddpm"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    {"dcgan": dcgan, "ddpm": ddpm}[arguments.part](arguments)


if __name__ == "__main__":
    main()
