"""Modules filled from files and streamed from them: the same bytes, no more memory than told, and errors that help."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import studio
from studio.engine.calls.call import run_inline
from studio.engine.memory.ledger import tensor_bytes, weight_bytes
from studio.errors import WeightsError
from studio.weights.loading import SMALL, Streaming, hosting
from tests.studio.engine.bench import ask

WIDTH = 192  # a square float32 layer of it is above SMALL, a norm far below


class Branch(torch.nn.Module):
    """Layers one after another, then a scale of its own."""

    def __init__(self, shape):
        super().__init__()
        self.inner = torch.nn.ModuleList(build(each) for each in shape)
        self.scale = torch.nn.Parameter(torch.rand(WIDTH))
        self.register_buffer("positions", torch.arange(WIDTH) / WIDTH, persistent=False)

    def forward(self, x):
        for each in self.inner:
            x = x + each(x)
        return x * self.scale + self.positions.to(x.dtype)


LEAVES = {
    "linear": lambda: torch.nn.Linear(WIDTH, WIDTH),
    "norm": lambda: torch.nn.LayerNorm(WIDTH),
    "sequence": lambda: torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.LayerNorm(WIDTH)),
    "encoder": lambda: torch.nn.TransformerEncoderLayer(WIDTH, 4, WIDTH, batch_first=True),
}
TREES = st.recursive(
    st.sampled_from(sorted(LEAVES)), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=6
)


def build(shape):
    return LEAVES[shape]() if isinstance(shape, str) else Branch(shape)


def saved(module, folder):
    file = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@settings(max_examples=15, deadline=None)
@given(st.lists(TREES, min_size=1, max_size=3), st.sampled_from([0, SMALL, 200 << 10, 400 << 10, 1 << 30]),
       st.sampled_from(["float32", "bfloat16"]))  # fmt: skip
def test_streamed_gives_the_loaded_bytes_within_what_it_told(folder, shape, limit, dtype):
    stock = build(shape).eval()
    file = saved(stock, folder)
    place = {"device": "cpu", "dtype": dtype}
    whole = studio.module(lambda: build(shape), [file], **place)
    how = Streaming(limit)
    with hosting(None, how):
        streamed = studio.module(lambda: build(shape), [file], **place)
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    rest, most = tensor_bytes(streamed, "cpu"), [0]
    for each in streamed.modules():
        each.register_forward_pre_hook(lambda *_: most.append(tensor_bytes(streamed, "cpu")))
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(streamed(x), whole(x), rtol=0, atol=0)
        if dtype == "float32":
            torch.testing.assert_close(whole(x), stock(x), rtol=0, atol=0)
    assert max(most) <= rest + how.largest, "more was there than the ledger is told"
    assert tensor_bytes(streamed, "cpu") == rest, "what came has gone"
    assert not any(parameter.is_meta for parameter in whole.parameters())


def test_layers_go_again_when_a_call_fails(folder):
    file = saved(build(["linear", "linear"]), folder)
    with hosting(None, Streaming(0)):
        made = studio.module(lambda: build(["linear", "linear"]), [file], device="cpu", dtype="float32")
    before = tensor_bytes(made, "cpu")
    with pytest.raises(RuntimeError, match="shapes"):
        made(torch.zeros(1, WIDTH + 1))
    assert tensor_bytes(made, "cpu") == before < weight_bytes([file], "float32")


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = torch.nn.Embedding(300, 200), torch.nn.Linear(200, 300, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids):
        return self.out(self.words(ids))


@pytest.mark.parametrize("how", [None, Streaming(0)])
def test_tied_weights_stay_one_tensor(folder, how):
    save_file({"given.weight": torch.randn(300, 200)}, folder / "tied.safetensors")
    with hosting(None, how):
        made = studio.module(Tied, [folder / "tied.safetensors"], device="cpu", dtype="float32",
                             rename=lambda name: name.replace("given", "words"))  # fmt: skip
    assert made.out.weight is made.words.weight
    assert made(torch.arange(3)).shape == (3, 300)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"weight": torch.zeros(3, 2)}, "lack `bias`"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "more": torch.zeros(1)}, "have the unexpected `more`"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, r"`weight` of .* has the shape \[2, 3\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, tensors, reason):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match=reason) as caught:
        studio.module(lambda: torch.nn.Linear(2, 3), [tmp_path / "bad.safetensors"], device="cpu", dtype="float32")
    assert "bad.safetensors" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("value", "dtype"), [(torch.inf, "float32"), (torch.nan, "float32"), (1e6, "float16")])
def test_buffers_that_are_not_finite_are_refused(tmp_path, value, dtype):
    """An infinite variance would give finite numbers: those of a picture without that channel."""
    state = torch.nn.BatchNorm1d(3).state_dict() | {"running_var": torch.tensor([1.0, value, 1.0])}
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match=f"`running_var` of .* non-finite values in {dtype}"):
        studio.module(lambda: torch.nn.BatchNorm1d(3), [tmp_path / "bad.safetensors"], device="cpu", dtype=dtype)


def test_damaged_missing_and_ambiguous_files_are_named(tmp_path):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, good)
    bad.write_bytes(good.read_bytes()[:-4])
    for files, reason in (
        ([bad], "cannot be read as"),
        ([tmp_path / "none"], "cannot be read as"),
        ([good, good], "is in both"),
    ):
        with pytest.raises(WeightsError, match=reason):
            studio.module(lambda: torch.nn.Linear(2, 3), files, device="cpu", dtype="float32")


class Chain(studio.Generator):
    """Run a chain of layers."""

    name, output, streams = "chain", studio.Text, True

    def __init__(self, file):
        self.file = file

    def weights(self, ref):
        return [self.file]

    def load(self, ref, device, dtype):
        return studio.module(lambda: build(["linear"] * 6), [self.file], device=device, dtype=dtype)

    def generate(self, model, inputs, rng):
        with torch.inference_mode():
            return studio.Text(str(model(torch.ones(1, WIDTH)).sum().item()))


def test_a_model_larger_than_the_budget_is_streamed_and_says_so(folder):
    from studio.engine.memory.ledger import Ledger
    from studio.engine.memory.model_cache import ModelCache

    file = saved(build(["linear"] * 6), folder)
    whole, generator = weight_bytes([file], "float32"), Chain(file)
    models = ModelCache("cpu", ledger=Ledger(whole // 2))
    model = run_inline(models.get(ask(generator)))
    assert model.streamed
    assert model.whole == whole
    assert models.ledger.used == model.size == models.claim(ask(generator)) <= whole // 2
    loaded = run_inline(ModelCache("cpu", ledger=Ledger(2 * whole)).get(ask(generator)))
    assert not loaded.streamed
    assert generator.generate(model.value, None, None).text == generator.generate(loaded.value, None, None).text
    assert models.evict_all(lambda _: 0) == 1
    assert models.ledger.used == 0
    assert generator.generate(run_inline(models.get(ask(generator))).value, None, None).text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [0, 200 << 10, 400 << 10])
def test_on_a_device_that_pins_the_next_group_comes_while_one_computes(folder, limit, dtype):
    from studio.testing.fake_gpu import FakeGpu

    shape = ["linear", ["linear", "sequence"], "encoder", "linear"]
    file = saved(build(shape).eval(), folder)
    whole = studio.module(lambda: build(shape), [file], device="cpu", dtype=dtype)
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    with FakeGpu.installed() as gpu, torch.no_grad():
        how, copies = Streaming(limit), []
        with hosting(None, how):
            made = studio.module(lambda: build(shape), [file], device="gpu:0", dtype=dtype)
        beside = gpu.copy_async
        gpu.copy_async = lambda copy: copies.append(1) or beside(copy)
        there = x.to("gpu:0")
        for _ in range(3):
            with gpu.counting() as counts:
                out = made(there)
            assert counts.waited == 0
            torch.testing.assert_close(out.cpu(), whole(x), rtol=0, atol=0)
        groups = sum(1 for each in made.modules() if each._forward_hooks)
    assert groups > 2
    assert len(copies) == 3 * groups + 1, "the first of a fourth round is on its way"
    assert how.passing == 2 * how.largest


def test_groups_that_come_in_another_order_or_within_each_other_are_right(folder):
    from studio.testing.fake_gpu import FakeGpu

    file = saved(build(["linear"] * 4), folder)
    whole = studio.module(lambda: build(["linear"] * 4), [file], device="cpu", dtype="float32").inner
    with FakeGpu.installed(), torch.no_grad():
        with hosting(None, Streaming(0)):
            layers = studio.module(lambda: build(["linear"] * 4), [file], device="gpu:0", dtype="float32").inner
        x = torch.linspace(-1, 1, WIDTH)
        for order in ([0, 1, 2, 3], [0, 2, 1, 1, 3], [3, 3, 0], [0, 1, 2, 3]):
            expected, made = x, x.to("gpu:0")
            for i in order:
                expected, made = whole[i](expected), layers[i](made)
            assert torch.equal(made.cpu(), expected)
        inner = layers[0].register_forward_pre_hook(lambda _, given: (layers[1](layers[2](layers[1](given[0]))),))
        made = layers[0](x.to("gpu:0"))
        inner.remove()
        assert torch.equal(made.cpu(), whole[0](whole[1](whole[2](whole[1](x)))))
        with pytest.raises(RuntimeError, match="shapes"):
            layers[0](torch.zeros(1, WIDTH + 1, device="gpu:0"))
        assert torch.equal(layers[0](x.to("gpu:0")).cpu(), whole[0](x))
