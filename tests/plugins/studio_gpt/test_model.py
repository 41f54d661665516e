"""The decoder against transformers: same logits, same greedy tokens, single and batched."""

import pytest
import torch

from studio.errors import UsageError
from studio_gpt.config import Config, llama
from studio_gpt.kv_cache import ContiguousKVCache, Segment
from studio_gpt.load import find, save
from studio_gpt.model import GPT

from .conftest import CHECKPOINTS, VOCAB

CPU = torch.device("cpu")


def draw(rows, length, seed=0):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def build(folder):
    return find(folder).build("cpu", "float32")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_are_those_of_transformers(name, checkpoints):
    folder, theirs = checkpoints(name)
    tokens = draw(2, 50)
    with torch.no_grad():
        torch.testing.assert_close(build(folder)(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


def greedy(model, prompts, steps):
    """Decode prompts of unlike lengths together, each from its own end on."""
    caches = [ContiguousKVCache(model.config, len(prompt) + steps, torch.float32, CPU) for prompt in prompts]
    rows = [list(prompt) for prompt in prompts]
    pieces = [Segment(row, 0, cache) for row, cache in zip(rows, caches, strict=True)]
    for _ in range(steps):
        for row, token in zip(rows, model.decode(pieces).argmax(-1).tolist(), strict=True):
            row.append(token)
        pieces = [Segment(row[-1:], len(row) - 1, cache) for row, cache in zip(rows, caches, strict=True)]
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


FAMILIES = ["gpt2", "llama", "mistral", "qwen2", "qwen3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_256_greedy_tokens_are_those_of_transformers_alone_and_packed(name, checkpoints):
    """Theirs are the likeliest ones at each place of the text that we wrote: one pass of theirs instead of 256."""
    folder, theirs = checkpoints(name)
    model = build(folder)
    prompts = [draw(1, length, seed=length)[0].tolist() for length in (3, 40, 17)]
    made = greedy(model, prompts, 256)
    for prompt, written in zip(prompts, made, strict=True):
        with torch.no_grad():
            best = theirs(torch.tensor([prompt + written])).logits[0].argmax(-1).tolist()
        assert written == best[len(prompt) - 1 : -1]
    assert greedy(model, prompts[:1], 256) == made[:1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_256_greedy_tokens_are_those_of_their_generate(name, checkpoints):
    folder, theirs = checkpoints(name)
    prompt = draw(1, 40, seed=40)
    wanted = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=256, do_sample=False, eos_token_id=None,
        pad_token_id=2,
    )  # fmt: skip
    assert greedy(build(folder), [prompt[0].tolist()], 256)[0] == wanted[0, 40:].tolist()


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3"])
def test_pieces_of_any_length_give_the_logits_of_the_whole(name, checkpoints):
    model = build(checkpoints(name)[0])
    rows = draw(2, 60)
    whole = model(rows)
    caches = [ContiguousKVCache(model.config, 60, torch.float32, CPU) for _ in rows]
    at, made = [0, 0], [[], []]
    for sizes in [(1, 30), (25, 1), (4, 28), (30, 1)]:
        pieces = [
            Segment(row[start : start + size].tolist(), start, cache, size)
            for row, start, size, cache in zip(rows, at, sizes, caches, strict=True)
        ]
        logits = model.decode(pieces).split(sizes)
        assert all(torch.equal(a, b) for a, b in zip(logits, model.decode(pieces).split(sizes), strict=True))
        for i, each in enumerate(logits):
            made[i].append(each)
            at[i] += sizes[i]
    torch.testing.assert_close(torch.stack([torch.cat(each) for each in made]), whole, atol=1e-5, rtol=0)


def test_gradients_flow_to_every_weight():
    for config in (Config(50, layers=2, heads=2, width=16), llama(vocab=50, layers=2, heads=2, width=16, qk_norm=True)):
        model = GPT(config).initialise(torch.Generator().manual_seed(0))
        tokens = torch.randint(0, 50, (2, 9))
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in model.parameters() if each.dim() > 1)


def test_what_does_not_fit_is_refused_with_the_numbers():
    model = GPT(Config(50, context=8, layers=1, heads=2, width=8))
    with pytest.raises(UsageError, match="9 tokens; the context length is 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    cache = ContiguousKVCache(model.config, 4, torch.float32, CPU)
    for segment in (Segment([1] * 5, 0, cache), Segment([], 0, cache), Segment([1], 8, cache)):
        with pytest.raises(UsageError, match="the context of 8 and the KV cache of 4"):
            model.decode([segment])
    with pytest.raises(UsageError, match="`num_logits` is 2; it must be from 0 to the 1 tokens"):
        model.decode([Segment([1], 0, cache, 2)])
    with pytest.raises(UsageError, match="the second must divide"):
        Config(50, heads=3, width=12, kv_heads=2)


@pytest.mark.parametrize("config", [
    Config(40, context=32, layers=2, heads=2, width=16, tied=False),
    llama(vocab=40, context=32, layers=2, heads=4, width=16, kv_heads=2),
    llama(vocab=40, context=32, layers=1, heads=2, width=16, qk_norm=True, qkv_bias=False),
])  # fmt: skip
def test_what_is_saved_is_read_by_us_and_by_transformers(config, tmp_path):
    import transformers

    model = GPT(config).initialise(torch.Generator().manual_seed(1), deviation=0.3).eval()
    save(model, tmp_path)
    tokens = torch.randint(0, 40, (1, 20))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        assert torch.equal(build(tmp_path)(tokens), model(tokens))
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-4, rtol=0)
