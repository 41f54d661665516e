"""EfficientNet-Lite0's weights under timm's names."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from recipes.clip import efficientnet
from studio_clip import convert


def test_the_trunk_is_the_packages_network() -> None:
    """timm's network with the renamed weights has the features of the implementation that the weights are from."""
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in original.state_dict().items():
            if value.is_floating_point() and "_bn" in name:
                value.copy_(torch.rand_like(value) + 0.5)
    trunk = open_clip.CLIP(**convert.config(_text_config(), convert.TOWERS["efficientnet"])).visual.trunk.eval()
    trunk.load_state_dict(efficientnet.to_timm(original.state_dict(), trunk))
    for size in (128, 224):
        x = torch.randn(2, 3, size, size)
        with torch.inference_mode():
            wanted = original.extract_features(x)
            torch.testing.assert_close(trunk.forward_features(x), wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(trunk(x), wanted.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_refused() -> None:
    trunk = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match="1 tensors of EfficientNet-Lite0 do not fit the 2"):
        efficientnet.to_timm({"weight": torch.zeros(3, 2)}, trunk)


def _text_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                          max_position_embeddings=8, projection_dim=4, bos_token_id=7, eos_token_id=8,
                          pad_token_id=8)  # fmt: skip
