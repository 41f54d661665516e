"""The products of few rows: each kernel against float64, what quantising may cost, and what must not be lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from studio.errors import UnknownName
from studio.testing.fake_gpu import FakeGpu
from studio_gpt.config import Config
from studio_gpt.kernels import FEW, Half, Int4, Int8, Int8Weights, Kernel, Short, Split
from studio_gpt.kv_cache import ContiguousKVCache, Segment
from studio_gpt.model import GPT
from studio_gpt.quantized_linear import KINDS, kernel_summary, quantize, size

KERNELS = (Split, Half, Int8, Int8Weights, Int4)
# Error against float64 over what the sum of so many random products is expected to be; all numbers are normal.
BOUNDS = {Split: 2e-6, Half: 1e-3, Int8: 0.03, Int8Weights: 0.03, Int4: 0.2}


def drawn(outputs: int, inputs: int, bias: bool, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    for parameter in linear.parameters():
        nn.init.normal_(parameter, generator=generator)
    return linear


def packed(kernel: type[Kernel], linear: nn.Linear) -> nn.Module:
    if reason := kernel.refuses(linear):
        pytest.skip(reason)
    return kernel(linear)


@torch.no_grad()
def lost(got: Tensor, linear: nn.Linear, x: Tensor) -> float:
    x, weight = x.double(), linear.weight.double()
    right = x @ weight.T if linear.bias is None else x @ weight.T + linear.bias.double()
    return float((got.double() - right).norm() / (x**2 @ (weight**2).T).sqrt().norm())


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 64),
    outputs=st.integers(2, 150),
    groups=st.integers(1, 5),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_close_to_float64(kernel, rows, outputs, groups, bias, seed) -> None:
    linear = drawn(outputs, 32 * groups, bias, seed)
    if kernel.refuses(linear):
        assert kernel is Split
        return
    x = torch.randn(rows, 32 * groups, generator=torch.Generator().manual_seed(seed + 1))
    with torch.inference_mode():
        got = kernel(linear)(x)
    assert got.shape == (rows, outputs)
    assert got.is_contiguous()
    assert lost(got, linear, x) < BOUNDS[kernel]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("inputs", [1, 7, 33])
def test_inputs_of_any_count(kernel, inputs: int) -> None:
    linear = drawn(64, inputs, bias=True)
    if kernel is Int4:
        assert "multiple of 32" in kernel.refuses(linear)
        return
    module, x = packed(kernel, linear), torch.randn(5, inputs)
    with torch.inference_mode():
        assert lost(module(x), linear, x) < BOUNDS[kernel]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [1, 3, FEW + 1])
def test_shapes_strides_and_dtypes(kernel, rows: int) -> None:
    module = packed(kernel, drawn(48, 64, bias=True))
    x = torch.randn(64, rows).t()  # columns first
    with torch.inference_mode():
        plain = module(x.contiguous())
        torch.testing.assert_close(module(x), plain)
        assert module(x.contiguous()[None, :, None]).shape == (1, rows, 1, 48)
        assert module(x[0]).shape == (48,)
        assert module(x[:0]).shape == (0, 48)
        if kernel is not Split:
            half = module(x.bfloat16())
            assert half.dtype == torch.bfloat16
            torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("kernel", [Half, Int8])
def test_a_row_does_not_depend_on_the_rows_beside_it(kernel) -> None:
    module = packed(kernel, drawn(96, 160, bias=True))
    x = torch.randn(40, 160) * torch.logspace(-3, 3, 40)[:, None]
    with torch.inference_mode():
        together = module(x)
        for row in (0, 17, 39):
            assert torch.equal(module(x[row : row + 1]), together[row : row + 1])
        for count in range(1, 40):
            assert torch.equal(module(x[:count]), together[:count])


def test_the_largest_products_of_int8_are_not_cut_off() -> None:
    linear = nn.Linear(64, 32, bias=False)
    nn.init.ones_(linear.weight)
    with torch.inference_mode():
        torch.testing.assert_close(packed(Int8, linear)(torch.ones(2, 64)), torch.full((2, 32), 64.0))


@pytest.mark.parametrize("kernel", [Int8, Int8Weights, Int4])
def test_rows_of_zeros_and_what_is_not_finite(kernel) -> None:
    module = packed(kernel, drawn(32, 64, bias=False))
    x = torch.zeros(3, 64)
    x[1, 5] = float("nan")
    with torch.inference_mode():
        got = module(x)
    assert not got[0].any()
    assert got[1].isnan().all()
    assert not got[2].any()


def test_refusals_have_reasons() -> None:
    linear = drawn(31, 64, bias=False)
    assert "equal parts" in Split.refuses(drawn(37, 8, bias=False)) or not torch.backends.mkl.is_available()
    assert Split.refuses(linear.bfloat16())
    linear.float().weight.data[3, 3] = 1e5
    assert "65504" in Half.refuses(linear) or "FBGEMM" in Half.refuses(linear)
    linear.weight.data[3, 3] = float("nan")
    assert "NaN or infinite" in Int4.refuses(linear)


def tiny() -> GPT:
    torch.manual_seed(0)
    return GPT(Config(vocab=96, context=64, layers=2, heads=4, width=64)).eval()


def logits(model: GPT, count: int) -> Tensor:
    cache = ContiguousKVCache(model.config, 64, torch.float32, torch.device("cpu"))
    return model.decode([Segment(list(range(count)), 0, cache, num_logits=count)])


@pytest.mark.parametrize("weights", KINDS)
def test_a_model_keeps_its_answers(weights: str) -> None:
    plain, fast = tiny(), tiny()
    report = quantize(fast, weights)
    assert set(report.kernels) == {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert report.before == size(plain)
    assert report.after == size(fast)
    assert "x9" in kernel_summary(fast)
    bound = 3 * max(BOUNDS[kernel] for kernel in KINDS[weights] if kernel is not Short)
    for count in (1, 9):
        right = logits(plain, count)
        assert float((logits(fast, count) - right).norm() / right.norm()) < bound


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu:
        yield gpu


@pytest.mark.parametrize("short", ["float16", "bfloat16"])
def test_on_a_gpu_float16_is_the_dtype_that_it_multiplies_fastest(gpu, monkeypatch, short: str) -> None:
    monkeypatch.setattr(gpu, "fast_dtype", lambda: short)
    linear = drawn(48, 64, bias=True).to("gpu:0")
    x = torch.randn(5, 64) * torch.logspace(-6, 30, 5)[:, None]  # beyond what float16 holds
    with torch.no_grad():
        module = Short(linear)
        assert module.weight.dtype == getattr(torch, short)
        assert lost(module(x.to("gpu:0")).cpu(), drawn(48, 64, bias=True), x) < 0.01
    linear.weight.data.mul_(1e4)
    assert ("the maximum of float16 is 65504" in Short.refuses(linear)) == (short == "float16")
    assert "are torch.float16 already" in Short.refuses(linear.half())
    assert Short.refuses(drawn(4, 4, False)) == "it is only for GPUs"
    monkeypatch.setattr(gpu, "fast_dtype", lambda: "float32")
    assert "no dtype that is faster than float32" in Short.refuses(linear.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
def test_on_a_gpu_int8_overflows_in_no_dtype_and_few_rows_write_no_weight_out(gpu, dtype, rows: int) -> None:
    linear = drawn(48, 64, bias=False)
    x = torch.full((rows, 64), 100.0)
    linear.weight.data.abs_()  # 127 * 64 * 100 is beyond float16; the product is not
    with torch.no_grad():
        there = Int8Weights(linear).to("gpu:0")
        with gpu.counting() as counts:
            y = there(x.to("gpu:0", dtype))
        assert y.dtype == dtype
        assert lost(y.cpu(), linear, x) < BOUNDS[Int8Weights]
    assert ("_weight_int8pack_mm" in counts.launches) == (rows <= FEW)


def test_int4_is_refused_on_cards_without_the_kernel_and_the_user_is_told(gpu, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert Int4.refuses(OnCuda()) == "int4 needs compute capability 8.0; the card has 7.5"
    report = quantize(nn.Sequential(drawn(32, 64, True)).to("gpu:0"), "int4")
    assert report.missed.startswith("1 of 1 matrices are in int8-weights, not `int4`: torch has no int4")
    assert not quantize(tiny(), "int4").missed
    assert not quantize(tiny().bfloat16(), "float16").missed


class OnCuda(nn.Linear):
    """A module that says that it is on a card."""

    class Weight:
        device = torch.device("cuda:0")

    def __init__(self) -> None:
        super().__init__(64, 32)
        del self.weight
        object.__setattr__(self, "weight", self.Weight())


def test_tied_weights_stay_one() -> None:
    model = tiny()
    report = quantize(model)
    assert report.before == report.after
    assert model.head.weight is model.embed.weight


def test_an_unknown_kind_names_the_known() -> None:
    with pytest.raises(UnknownName, match="int8-dynamic"):
        quantize(tiny(), "int8-dynamik")
