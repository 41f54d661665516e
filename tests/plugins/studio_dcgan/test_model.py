"""The networks against the paper's figure and against the tutorial's layers, written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from studio_dcgan.model import Discriminator, GeneratorNet
from studio_dcgan.train import calibrated


def tutorial(latent: int, width: int) -> nn.Sequential:
    """The generator as PyTorch's tutorial writes it down, layer by layer."""
    w = width
    return nn.Sequential(
        nn.ConvTranspose2d(latent, w * 8, 4, 1, 0, bias=False), nn.BatchNorm2d(w * 8), nn.ReLU(True),
        nn.ConvTranspose2d(w * 8, w * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(w * 4), nn.ReLU(True),
        nn.ConvTranspose2d(w * 4, w * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(w * 2), nn.ReLU(True),
        nn.ConvTranspose2d(w * 2, w, 4, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(True),
        nn.ConvTranspose2d(w, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


def tutorial_critic(width: int) -> nn.Sequential:
    w = width
    return nn.Sequential(
        nn.Conv2d(3, w, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True),
        nn.Conv2d(w, w * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(w * 2), nn.LeakyReLU(0.2, True),
        nn.Conv2d(w * 2, w * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(w * 4), nn.LeakyReLU(0.2, True),
        nn.Conv2d(w * 4, w * 8, 4, 2, 1, bias=False), nn.BatchNorm2d(w * 8), nn.LeakyReLU(0.2, True),
        nn.Conv2d(w * 8, 1, 4, 1, 0, bias=False),
    )  # fmt: skip


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def test_the_papers_figure() -> None:
    """Figure 1 of Radford et al. 2015: 100 latents to 4x4x1024, 8x8x512, 16x16x256, 32x32x128, 64x64x3."""
    generator = GeneratorNet(100, 128)
    x, seen = torch.randn(1, 100, 1, 1), []
    for layer in generator.main:
        x = layer(x)
        if isinstance(layer, nn.ConvTranspose2d):
            seen.append(tuple(x.shape[1:]))
    assert seen == [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 64, 64)]
    kinds = [type(layer).__name__ for layer in generator.main]
    assert kinds == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 4 + ["ConvTranspose2d", "Tanh"]


def test_parameters_at_the_tutorials_size() -> None:
    assert count(GeneratorNet(100, 64)) == count(tutorial(100, 64)) == 3_576_704
    assert count(Discriminator(64)) == count(tutorial_critic(64)) == 2_765_568


@pytest.mark.parametrize("training", [True, False])
def test_equals_the_tutorials_generator(training: bool) -> None:
    torch.manual_seed(0)
    theirs = tutorial(10, 8).train(training)
    mine = GeneratorNet(10, 8).train(training)
    mine.load_state_dict({f"main.{name}": each.clone() for name, each in theirs.state_dict().items()})
    z = torch.randn(4, 10)
    torch.testing.assert_close(mine(z), theirs(z[:, :, None, None]), rtol=0, atol=0)


def test_equals_the_tutorials_discriminator() -> None:
    """But for its last sigmoid, which the loss has here."""
    torch.manual_seed(0)
    theirs, mine = tutorial_critic(8), Discriminator(8)
    mine.load_state_dict({f"main.{name}": each.clone() for name, each in theirs.state_dict().items()})
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(mine(x), theirs(x).flatten(), rtol=0, atol=0)


def test_weights_begin_as_in_the_paper() -> None:
    torch.manual_seed(0)
    for network in (GeneratorNet(100, 32), Discriminator(32)):
        kernels = [m.weight.detach() for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert all(abs(float(w.std()) - 0.02) < 0.002 and abs(float(w.mean())) < 0.002 for w in kernels)


def test_a_class_changes_pictures_and_scores() -> None:
    torch.manual_seed(0)
    generator, discriminator = calibrated(GeneratorNet(7, 8, 3, 5), batches=2), Discriminator(8, 3).eval()
    z = torch.randn(1, 7).repeat(3, 1)
    pictures = generator(z, torch.tensor([0, 1, 1]))
    assert torch.equal(pictures[1], pictures[2])
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-4)
    scores = discriminator(pictures[:1].repeat(3, 1, 1, 1), torch.tensor([0, 1, 1]))
    assert scores.shape == (3,)
    assert scores[1] == scores[2] != scores[0]


def test_the_projection_is_an_inner_product() -> None:
    """Miyato and Koyama 2018, equation 5: the score without a class, and the class's vector times the features."""
    torch.manual_seed(0)
    told = Discriminator(8, 3).eval()
    plain = Discriminator(8).eval()
    plain.main.load_state_dict(told.main.state_dict())
    x, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    assert told.projection is not None
    added = torch.einsum("bd,bdhw->b", told.projection(labels), told.main[:-1](x))
    torch.testing.assert_close(told(x, labels), plain(x) + added)


def test_pixels() -> None:
    torch.manual_seed(0)
    generator = GeneratorNet(7, 8).eval()
    x = torch.randn(2, 7)
    pixels = generator.pixels(x)
    assert pixels.shape == (2, 64, 64, 3)
    assert pixels.dtype == torch.uint8
    want = (generator(x) + 1) * 127.5
    assert (pixels.permute(0, 3, 1, 2).float() - want).abs().max() <= 0.5001
