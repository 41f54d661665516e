"""Texts on a device that mixes with nothing, waits where it is asked, and counts: the same as on a CPU, to the bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import studio
from studio.attention import spans
from studio.engine.checkpoints.checkpoint import Checkpoint, pack
from studio.engine.memory.ledger import tensor_bytes
from studio.testing.fake_gpu import FakeGpu
from studio_gpt.config import llama
from studio_gpt.decoding import TextModel
from studio_gpt.explain import AttentionGenerator, ExplainGenerator
from studio_gpt.kv_pool import IDLE_BYTES, KVCachePool
from studio_gpt.perplexity import PerplexityGenerator
from studio_gpt.text import TextGenerator
from tests.studio.engine.checkpoints.test_checkpoint import progress

from .conftest import LINES

LONG = " ".join(LINES * 2)
SCHEMA = json.dumps({"type": "object", "properties": {"ripe": {"type": "boolean"}}, "required": ["ripe"],
                     "additionalProperties": False})  # fmt: skip
ASKED = [
    {"prompt": LINES[0], "temperature": 0, "max_tokens": 9},
    {"prompt": LONG, "temperature": 0.9, "top_k": 20, "max_tokens": 7},
    {"prompt": "a", "temperature": 1.2, "top_p": 0.8, "min_p": 0.01, "max_tokens": 12},
    {"prompt": "a red apple, a red apple, a red", "lookup": 4, "repetition_penalty": 1.2, "max_tokens": 12},
    {"prompt": LINES[1], "json_schema": SCHEMA, "temperature": 1.5, "max_tokens": 40},
]


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu.installed() as gpu:
        yield gpu


def on_cpu(generator: TextGenerator) -> TextModel:
    """The model on the CPU with its products as they are on a GPU, where none is split among threads."""
    model = TextModel.load(generator.found(studio.ModelRef()), "cpu", "float32", "loaded")
    return dataclasses.replace(model, gpt=generator.found(studio.ModelRef()).build("cpu", "float32"))


def begin(generator, model, seed=1, **asked):
    return generator.start(model, generator.Inputs.parse(asked), studio.Rng(seed))


def written(generator, model, asked, save=None):
    """The states of requests that come one by one, stepped together to their ends."""
    states, waiting = [], [begin(generator, model, i, **each) for i, each in enumerate(asked)]
    while waiting or not all(each.done for each in states):
        states += waiting[:1]
        waiting = waiting[1:]
        going = [i for i, each in enumerate(states) if not each.done]
        for i, each in zip(going, generator.step(model, [states[i] for i in going]), strict=True):
            states[i] = each
        if save is not None and len(states) == 2:
            states[0] = save(states[0], asked[0])
    return states


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3"])
def test_a_gpu_writes_and_notes_the_same_bits_as_a_cpu(gpu, checkpoints, name) -> None:
    generator = ExplainGenerator(checkpoints(name)[0])
    asked = [{**each, "top": 3} for each in ASKED]
    here = written(generator, on_cpu(generator), asked)
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    there = written(generator, model, asked)
    assert [each.logprobs for each in there] == [each.logprobs for each in here]
    assert [each.text for each in there] == [each.text for each in here]
    assert "varlen" in model.attention


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_without_the_kernel_for_spans_keys_are_gathered_and_masked(gpu, checkpoints, name) -> None:
    del spans.KERNELS["gpu"]
    generator = ExplainGenerator(checkpoints(name)[0])
    here = written(generator, on_cpu(generator), ASKED)
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    there = written(generator, model, ASKED)
    assert [each.text for each in there] == [each.text for each in here]
    for one, other in zip(there, here, strict=True):
        for (_, a, _), (_, b, _) in zip(one.logprobs, other.logprobs, strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    assert model.attention == {"sdpa-flash"}


@pytest.mark.parametrize("kernel", [True, False])
def test_a_step_waits_once_and_its_launches_do_not_grow_with_the_requests(gpu, checkpoints, kernel) -> None:
    if not kernel:
        del spans.KERNELS["gpu"]
    generator = TextGenerator(checkpoints("gpt2")[0])
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    launched = {}
    for width in (1, 32):
        states = [begin(generator, model, i, **{**ASKED[2], "prompt": LONG[: 40 + i], "temperature": 0.5 + i / 99})
                  for i in range(width)]  # fmt: skip
        while any(len(each.tokens) == each.prompt for each in states):
            with gpu.counting() as counts:
                states = generator.step(model, states)
            assert counts.waited <= 2, counts.waits
        with gpu.counting() as counts:
            generator.step(model, states)
        assert counts.waited == 1, counts.waits
        launched[width] = counts.launched
    assert launched[32] < 1.2 * launched[1]


def test_a_chat_goes_on_from_what_it_has_read(gpu, checkpoints, tmp_path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(checkpoints("llama")[0], folder)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    told = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    generator = TextGenerator(folder)

    def talk(model) -> list[str]:
        turns: list[str] = []
        for said in ("Who was tired?", LINES[1], "and then?"):
            state = begin(generator, model, prompt=said, chat=True, system=LONG, turns=turns, max_tokens=20)
            while not state.done:
                with gpu.counting() as counts:
                    [state] = generator.step(model, [state])
                assert counts.waited <= 1, counts.waits
            turns += [said, state.text]
        assert model.prefix_cache.hits > len(model.tokens.encode(LONG)) // 32
        return turns

    assert talk(generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")) == talk(on_cpu(generator))


UNLIKE = [
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.1, "min_p": 0.02, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_k": 30, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    {"temperature": 0, "logit_bias": {5: -3.0}, "json_schema": SCHEMA},
]
ALL = {"temperature": 0.9, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.3, "top_k": 30,
       "frequency_penalty": 0.2, "logit_bias": {5: -3.0}, "json_schema": SCHEMA}  # fmt: skip


@pytest.mark.parametrize("kernel", [True, False])
def test_launches_do_not_grow_with_requests_that_differ_in_everything(gpu, checkpoints, kernel) -> None:
    """In the lengths of their texts, in how tokens are chosen; and not for one that reads its prompt beside them."""
    if not kernel:
        del spans.KERNELS["gpu"]
    generator = TextGenerator(checkpoints("gpt2")[0])
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    words = (LONG * 4).split()

    def some(count, settings):
        states = [begin(generator, model, i, **{**settings[i % len(settings)], "prompt": " ".join(words[: 1 + i]),
                                                "max_tokens": 60}) for i in range(count)]  # fmt: skip
        while any(len(each.tokens) == each.prompt for each in states):
            states = generator.step(model, states)
        return [each for each in states if not each.done]

    def step(states):
        with gpu.counting() as counts:
            made = generator.step(model, states)
        assert counts.waited == 1, counts.waits
        return counts.launched, made

    [alone] = some(1, [ALL])
    others = some(31, UNLIKE)
    assert len(others) > 25
    assert max(len(each.tokens) for each in others) > 20 * min(len(each.tokens) for each in others)
    one, _ = step([alone])
    together, _ = step([alone, *others])
    assert together < 1.2 * one
    reader = begin(generator, model, 99, prompt=" ".join(words[: len(words) // 3]), max_tokens=9)
    beside, [*_, reading] = step([alone, *others, reader])
    assert len(reading.tokens) == reading.prompt, "its prompt is longer than a chunk"
    assert beside < (1.2 if kernel else 1.25) * one


def test_a_saved_request_goes_on_and_so_does_one_whose_model_was_dropped(gpu, checkpoints, tmp_path) -> None:
    generator = TextGenerator(checkpoints("llama")[0])
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    whole = [each.text for each in written(generator, model, ASKED)]

    def resumed(state, asked):
        (tmp_path / "one.safetensors").write_bytes(pack(progress(), state))
        return Checkpoint.open(tmp_path / "one.safetensors").state(begin(generator, model, 0, **asked), "gpu:0")

    assert [each.text for each in written(generator, model, ASKED, resumed)] == whole
    state = begin(generator, model, 0, **ASKED[0])
    for _ in range(3):
        [state] = generator.step(model, [state])
    again = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    while not state.done:
        [state] = generator.step(again, [state])
        assert state.cache.pool is again.pool
    assert state.text == whole[0]


def test_a_text_is_looked_into_and_scored_with_one_wait(gpu, checkpoints) -> None:
    path = checkpoints("mistral")[0]
    looks = AttentionGenerator(path)
    asked = {"prompt": LINES[0], "layer": 1, "head": 2}
    scores = PerplexityGenerator(path)
    text = {"text": studio.Text(LONG * 3), "window": 400, "stride": 300}
    for generator, inputs in ((looks, asked), (scores, text)):
        found = []
        for model in (on_cpu(generator), generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")):
            state = begin(generator, model, **inputs)
            with gpu.counting() as counts:
                [state] = generator.step(model, [state])
            found.append(state.weights.tolist() if generator is looks else state.nats)
        assert found[0] == found[1]
        assert counts.waited == 1, counts.waits


def test_numbers_that_are_not_finite_are_told(gpu, checkpoints) -> None:
    generator = TextGenerator(checkpoints("gpt2")[0])
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    good = begin(generator, model, **ASKED[0])
    [good] = generator.step(model, [good])
    model.gpt.norm.weight[0] = torch.nan
    with pytest.raises(ArithmeticError, match=r"the logits: 320 of 320 values are NaN"):
        generator.step(model, [good])


@pytest.mark.parametrize("kernel", [True, False])
def test_what_stands_beside_a_request_never_reaches_it(gpu, checkpoints, kernel) -> None:
    if not kernel:
        del spans.KERNELS["gpu"]
    generator = TextGenerator(checkpoints("llama")[0])
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    first, second = (begin(generator, model, i, **ASKED[0]) for i in range(2))
    [alone] = generator.step(model, [first])
    second.cache.kv.fill_(torch.nan)
    first.cache.kv[:, :, first.prompt :].fill_(torch.nan)
    [beside] = generator.step(model, [first])
    assert beside.tokens == alone.tokens


def test_steps_that_write_are_recorded_and_repeated_until_what_they_read_moves(gpu, checkpoints) -> None:
    gpu.records_graphs = True
    generator = ExplainGenerator(checkpoints("mistral")[0])
    here = written(generator, on_cpu(generator), ASKED)
    model = generator.load(studio.ModelRef(variant="loaded"), "gpu:0", "float32")
    there = written(generator, model, ASKED)
    assert [each.logprobs for each in there] == [each.logprobs for each in here]
    assert model.graphs is not None
    assert len(model.graphs) > 1, "one for each number of requests"
    assert not model.graphs.failed
    [state] = [begin(generator, model, 0, **ASKED[0])]
    for _ in range(6):
        [state] = generator.step(model, [state])
    with gpu.counting() as counts:
        generator.step(model, [state])
    assert counts.launches["graph"] == 1
    assert counts.launched < 20
    other = begin(generator, model, 1, **{**ASKED[0], "max_tokens": 400, "prompt": LONG})  # the pool grows
    [after] = generator.step(model, [state])
    assert len(model.graphs) == 0
    again = begin(generator, on_cpu(generator), 0, **ASKED[0])
    cpu = on_cpu(generator)
    while len(again.tokens) < len(after.tokens):
        [again] = generator.step(cpu, [again])
    assert again.logprobs == after.logprobs
    for _ in range(3):
        [after] = generator.step(model, [after])
    model.gpt.embed.weight = torch.nn.Parameter(model.gpt.embed.weight.detach().clone(), requires_grad=False)
    generator.step(model, [state])
    assert len(model.graphs) == 0, "weights that came back are elsewhere"
    del other


ROOMS = st.lists(st.one_of(st.integers(1, 300), st.just("drop")), max_size=25)


@settings(max_examples=40)
@given(asked=ROOMS)
def test_spans_never_overlap_and_keep_what_they_hold(asked) -> None:
    pool = KVCachePool(llama(vocab=9, layers=1, heads=1, width=2), torch.float32, torch.device("cpu"))
    held = []
    for i, room in enumerate(asked):
        if room == "drop":
            del held[i % 2 : i % 2 + 1]
            continue
        span = pool.allocate(room)
        span.kv.fill_(i)
        held.append((span, i))
        assert span.kv.shape[2] == room
    for span, i in held:
        assert bool((span.kv == i).all())
    lent = sum(span.room for span, _ in held)
    assert pool.kv.shape[2] >= lent
    held, span = [], None
    size = pool.kv.shape[2]
    pool.allocate(max(size, 1))
    assert pool.kv.shape[2] == max(size, 1), "all of it was given back"


def test_the_ledger_counts_a_request_by_its_share_of_the_pool(gpu) -> None:
    pool = KVCachePool(llama(vocab=9, layers=1, heads=1, width=8), torch.float32, torch.device("gpu:0"))
    one, other = pool.allocate(100), pool.allocate(50)
    assert tensor_bytes({"cache": one}, "gpu:0") == 100 * 2 * 8 * 4
    assert tensor_bytes([one, other, pool], "gpu:0") == 150 * 2 * 8 * 4
    huge = pool.allocate(IDLE_BYTES // 64 + 1)
    del one, other
    assert pool.kv.nbytes > IDLE_BYTES
    del huge
    assert pool.kv.nbytes == 0, "what nobody uses is given up"
