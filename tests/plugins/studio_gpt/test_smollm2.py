"""Real weights: SmolLM2's GGUF file, if `STUDIO_SMOLLM2` says where it is, against transformers reading the same file.

Its file comes with `studio models pull smollm2`.
"""

import os
from pathlib import Path

import pytest
import torch

from studio_gpt.kv_cache import ContiguousKVCache, Segment
from studio_gpt.load import find

PROMPTS = ["What is the capital of France?", "Write a short story about a red apple.", "Count from one to twenty."]


@pytest.mark.slow
@pytest.mark.skipif("STUDIO_SMOLLM2" not in os.environ, reason="`STUDIO_SMOLLM2` names no GGUF file of SmolLM2")
def test_the_greedy_answers_are_those_of_transformers():
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it alone")
    import transformers

    path = Path(os.environ["STUDIO_SMOLLM2"])
    model, tokens = find(path).build("cpu", "float32"), find(path).tokens()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokens.encode(text)
        assert ids == words(text)["input_ids"]
        cache, made = ContiguousKVCache(model.config, len(ids) + 64, torch.float32, torch.device("cpu")), list(ids)
        piece = Segment(ids, 0, cache)
        while len(made) < len(ids) + 64 and made[-1] not in tokens.ends - {ids[-1]}:
            made.append(int(model.decode([piece]).argmax()))
            piece = Segment(made[-1:], len(made) - 1, cache)
        with torch.no_grad():
            logits = theirs(torch.tensor([made])).logits[0]
        assert made[len(ids) :] == logits.argmax(-1)[len(ids) - 1 : -1].tolist()
        assert tokens.decode(made[len(ids) :]) == words.decode(made[len(ids) :], skip_special_tokens=True)
