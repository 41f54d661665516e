"""Parts of tiny pipelines: networks with random weights, and what a request gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studio.devices import torch_setup

torch_setup.prepare()
import diffusers  # noqa: E402  # it imports torchvision, which may be broken

Arguments = Callable[[int], dict[str, Any]]
Builder = Callable[[], tuple[Any, Arguments]]


class Given:
    """What request number i gives: random tensors and pictures, steps and guidance, unlike for unlike numbers."""

    def __init__(self, i: int) -> None:
        self.steps, self.guidance = 2 + i % 2, 3.0 + i
        self._draw = torch.Generator().manual_seed(i)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._draw)

    def image(self, size: int = 32) -> Image.Image:
        pixels = torch.randint(0, 256, (size, size, 3), generator=self._draw, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())

    def text(self) -> str:
        words = torch.randint(0, 26, (3, 2), generator=self._draw).tolist()
        return " ".join("".join(chr(97 + letter) for letter in word) for word in words)

    def images(self, count: int, size: int = 32) -> list[Image.Image]:
        return [self.image(size) for _ in range(count)]

    def mask(self, size: int = 32) -> Image.Image:
        rows = int(torch.randint(size // 4, size, (), generator=self._draw))
        pixels = np.zeros((size, size), np.uint8)
        pixels[:rows] = 255
        return Image.fromarray(pixels)


def pipeline(name: str, parts: Mapping[str, Any], given: Callable[[Given], Mapping[str, Any]]) -> tuple[Any, Arguments]:
    """The pipeline of class `name`, and its arguments; parts that it needs and `parts` lacks are None."""
    kind = getattr(diffusers, name)
    wanted = inspect.signature(kind.__init__).parameters
    missing = {key: None for key, each in wanted.items() if key != "self" and each.default is each.empty}
    pipe = kind(**{**missing, **{key: value for key, value in parts.items() if key in wanted}})
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    return pipe, lambda i: dict(given(Given(i)))


def kinds(make: Callable[..., tuple[Any, Arguments]], names: Mapping[str, Any]) -> dict[str, Builder]:
    """Builders of the pipelines of a family: `make(name, given)` for each name and what its requests give."""
    return {name: functools.partial(make, name, given) for name, given in names.items()}


def unet(**changed: Any) -> Any:
    """A U-Net of Stable Diffusion's form."""
    return diffusers.UNet2DConditionModel(**{
        "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 32,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, **changed})  # fmt: skip


def sdxl_unet(**changed: Any) -> Any:
    """A U-Net of Stable Diffusion XL's form, for a pooled embedding of 32."""
    return unet(**{"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                   "projection_class_embeddings_input_dim": 80, "use_linear_projection": True, **changed})  # fmt: skip


def kl(latent_channels: int = 4, widths: Sequence[int] = (8, 8), **changed: Any) -> Any:
    """An autoencoder that halves the sides for each width but the first."""
    return diffusers.AutoencoderKL(**{
        "block_out_channels": tuple(widths), "latent_channels": latent_channels, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths), "sample_size": 32,
        "up_block_types": ("UpDecoderBlock2D",) * len(widths), **changed})  # fmt: skip


def plain_kl(latent_channels: int = 4, widths: Sequence[int] = (4,), **changed: Any) -> Any:
    """An autoencoder of the form that FLUX and SD 3 use."""
    return kl(latent_channels, widths, **{"use_quant_conv": False, "use_post_quant_conv": False, "norm_num_groups": 1,
                                          "shift_factor": 0.0609, "scaling_factor": 1.5035, **changed})  # fmt: skip


def clip_words() -> Any:
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, bos_token=words[0], eos_token=words[1],
                         unk_token=words[1], pad_token=words[1])  # fmt: skip


def clip_text(*, projected: bool = False, **changed: Any) -> Any:
    """A CLIP text encoder, with the projection of its pooled output or without."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(**{
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
        "projection_dim": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **changed})  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def clip_vision(**changed: Any) -> Any:
    """A CLIP image encoder with a projection."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**{
        "hidden_size": 32, "projection_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
        "intermediate_size": 32, "patch_size": 16, **changed}))  # fmt: skip


def clip_images(size: int = 32) -> Any:
    """What prepares pictures for `clip_vision`."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=size, size=size)


def letters() -> Any:
    """A tokenizer of single letters, with the special tokens that most pipelines ask for."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "<s>", " ", "▁", *(chr(code) for code in range(97, 123))]
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",
        model_max_length=64)  # fmt: skip
