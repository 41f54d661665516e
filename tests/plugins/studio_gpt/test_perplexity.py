"""Perplexity: equal to transformers for any windows; quantized weights lose little."""

from __future__ import annotations

import json

import pytest
import torch

import studio
from studio.errors import InputError
from studio_gpt.perplexity import PerplexityGenerator

from .conftest import LINES

TEXT = " ".join(LINES * 6)


def told(generator, model, **inputs):
    state = generator.start(model, generator.Inputs.parse({"text": TEXT, **inputs}), studio.Rng(0))
    while not state.done:
        (state,) = generator.step(model, [state])
    return json.loads(str(generator.finish(model, state)))


def theirs(model, ids, window, stride):
    """As transformers' documentation computes it: a strided window, of which a part is masked by -100."""
    nats, scored, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        given = ids[:, begin:end]
        target = given.clone()
        target[:, : -(end - before)] = -100
        counted = int((target[:, 1:] != -100).sum())
        if counted:
            with torch.no_grad():
                nats += float(model(given, labels=target).loss) * counted
        scored, before = scored + counted, end
        if end == ids.shape[1]:
            break
    return float(torch.tensor(nats / scored, dtype=torch.float64).exp()), scored


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize(("window", "stride"), [(512, 512), (300, 300), (64, 24), (33, 1)])
def test_it_is_what_transformers_computes(name, window, stride, checkpoints):
    path, model = checkpoints(name)
    generator = PerplexityGenerator(path)
    ours = generator.load(studio.ModelRef(variant="loaded"), "cpu", "float32")
    ids = torch.tensor([ours.tokens.encode(TEXT)])
    if stride == 1:
        ids = ids[:, :60]
    text = TEXT if stride > 1 else ours.tokens.decode(ids[0].tolist())
    found = told(generator, ours, text=text, window=window, stride=stride)
    due, scored = theirs(model, ids, window, stride)
    assert (found["tokens"], found["scored"]) == (ids.shape[1], scored)
    assert found["perplexity"] == pytest.approx(due, rel=1e-5)


def test_quantised_weights_lose_little(checkpoints):
    path = checkpoints("llama")[0]
    found = {}
    for kind in ("loaded", "float16", "int8"):
        generator = PerplexityGenerator(path)
        model = generator.load(studio.ModelRef(variant=kind), "cpu", "float32")
        found[kind] = told(generator, model)["nats"]
    assert found["float16"] == pytest.approx(found["loaded"], rel=1e-3)
    assert found["int8"] == pytest.approx(found["loaded"], rel=0.05)


@pytest.mark.parametrize(("inputs", "words"), [
    ({"text": ""}, "has 0 tokens; it must have 2 to 4,000,000"),
    ({"window": 600}, "`window` is 600; it must be from 2 to the context length, 512"),
    ({"window": 32, "stride": 33}, "`stride` is 33 and `window` 32"),
])  # fmt: skip
def test_what_cannot_be_is_refused(inputs, words, checkpoints):
    generator = PerplexityGenerator(checkpoints("llama")[0])
    with pytest.raises(InputError, match=words):
        told(generator, generator.load(studio.ModelRef(), "cpu", "float32"), **inputs)
