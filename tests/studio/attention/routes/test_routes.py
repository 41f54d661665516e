"""Stock models with random weights give the same on `attend`, and it is `attend` that they ran on."""

from __future__ import annotations

import pytest
import torch

from studio.attention import record_backends
from studio.devices import torch_setup
from studio.errors import UsageError

torch_setup.prepare()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def same(model, bound=2e-5, **inputs):
    """Run, switch, run again; what served the second run."""
    route, model = model
    with torch.inference_mode():
        due = model(**inputs)[0]
        route(model)
        with record_backends() as used:
            made = model(**inputs)[0]
    torch.testing.assert_close(made, due, atol=bound, rtol=bound)
    assert used
    return used


def unet(**more):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=8, norm_num_groups=8, **more,
    ).eval()  # fmt: skip


def diffusers_route(model):
    from studio.attention.routes.diffusers import use

    assert use(model) == []


def transformers_route(model):
    from studio.attention.routes.transformers import use

    use(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stock_unet(dtype):
    inputs = {
        "sample": torch.randn(2, 4, 8, 8, dtype=dtype),
        "timestep": torch.tensor(5),
        "encoder_hidden_states": torch.randn(2, 7, 16, dtype=dtype),
    }
    used = same((diffusers_route, unet().to(dtype)), 2e-5 if dtype == torch.float32 else 5e-2, **inputs)
    assert used == {"sdpa-flash"}


def test_a_stock_unet_with_padded_texts():
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    inputs = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(5)}
    same((diffusers_route, unet()), encoder_hidden_states=torch.randn(2, 7, 16), encoder_attention_mask=mask, **inputs)


def test_a_stock_autoencoder():
    from diffusers import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4).eval()
    same((diffusers_route, model), sample=torch.randn(1, 3, 16, 16))


def test_a_stock_dit():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()
    inputs = {"timestep": torch.tensor([3, 4]), "class_labels": torch.tensor([1, 2])}
    same((diffusers_route, model), hidden_states=torch.randn(2, 4, 8, 8), **inputs)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=32)).eval()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("padded", [False, True])
def test_a_stock_language_model(make, padded):
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 5:] = 0
    same((transformers_route, make()), input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_stock_language_model_writes_the_same(make):
    model = make()
    ids = torch.randint(0, 50, (2, 5))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    due = model.generate(ids, **options)
    transformers_route(model)
    with record_backends() as used:
        assert torch.equal(model.generate(ids, **options), due)
    assert used


def test_dropout_is_refused():
    model = gpt2().train()
    transformers_route(model)
    with pytest.raises(UsageError, match=r"attention dropout is 0.1; `attend` supports none"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_the_towers_of_open_clip():
    import open_clip

    from studio.attention.routes.open_clip import use

    model = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
        text_cfg={"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
    ).eval()
    names = list(model.state_dict())
    pixels, tokens = torch.randn(2, 3, 16, 16), torch.randint(1, 50, (2, 8))
    with torch.no_grad():
        due = model.encode_image(pixels), model.encode_text(tokens)
        assert use(model) == []
        with record_backends() as used:
            made = model.encode_image(pixels), model.encode_text(tokens)
    torch.testing.assert_close(made, due, atol=1e-5, rtol=1e-5)
    assert used
    assert list(model.state_dict()) == names
