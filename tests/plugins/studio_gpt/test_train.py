"""A corpus as tokens, and `studio train gpt`: what is learnt, resumed, and read by transformers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.cli.main import run
from studio.errors import InputError
from studio_gpt import corpus, train
from studio_gpt.config import llama
from studio_gpt.corpus import TokenFile
from studio_gpt.load import find
from studio_gpt.model import GPT

LINES = ["the red apple lies on the table", "a green pear lies on the chair", "the blue bird sings in the tree"]
TINY = ["--vocab", "300", "--context", "16", "--layers", "1", "--width", "32", "--heads", "2", "--batch", "4"]


@pytest.fixture(scope="module")
def bpe():
    return corpus.train_tokenizer(LINES * 3, 300)


@pytest.fixture
def data(bpe, tmp_path):
    corpus.encode([f"{line}{corpus.END}" for line in LINES * 60], bpe, tmp_path / "tokens.bin")
    return TokenFile(tmp_path / "tokens.bin", bpe.get_vocab_size(), 16)


def tiny(seed=0):
    shape = llama(vocab=300, context=16, layers=1, heads=2, width=32, hidden=64)
    return GPT(shape).initialise(torch.Generator().manual_seed(seed))


@settings(max_examples=60)
@given(st.text().filter(lambda text: "<|" not in text))
def test_no_text_is_unknown(bpe, text):
    text = text.encode(errors="ignore").decode()
    assert bpe.decode(bpe.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_come_first_and_the_same_texts_give_the_same_tokens(bpe):
    assert [bpe.id_to_token(i) for i in range(4)] == [corpus.END, *corpus.ROLES]
    assert bpe.encode(f"pear{corpus.END}").ids[-1] == 0
    assert corpus.train_tokenizer(LINES * 3, 300).to_str() == bpe.to_str()


def test_files_are_one_row_of_tokens_with_an_end_after_each(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 10)  # in pieces, that end where lines do
    for name, text in (("a.txt", "\n".join(LINES)), ("b.txt", "bird\n")):
        (tmp_path / name).write_text(text)
    files = corpus.text_files([str(tmp_path)])
    assert len(list(corpus.blocks(files))) == len(LINES) + 3
    count = corpus.encode(corpus.blocks(files), bpe, tmp_path / "tokens.bin")
    tokens = np.fromfile(tmp_path / "tokens.bin", np.uint16)
    assert len(tokens) == count
    assert bpe.decode(tokens, skip_special_tokens=False) == f"{chr(10).join(LINES)}{corpus.END}bird\n{corpus.END}"


def test_each_training_row_is_drawn_once_an_epoch_and_no_validation_row(data):
    count = len(data.training)
    epochs = [[data.drawn(epoch * count + i) for i in range(count)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == data.training.tolist()
    assert epochs[0] != epochs[1]
    assert not set(data.training) & set(data.validation)
    row, after = data.rows([3, 4])
    assert row[-1] == after[0]


def test_bad_texts_are_refused_by_name(bpe, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 3)
    with pytest.raises(InputError, match=r"latin.txt` is not UTF-8: .* at byte 3"):
        list(corpus.blocks([tmp_path / "latin.txt"]))
    for nothing in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="not a text file or a folder"):
            corpus.text_files([str(nothing)])
    corpus.encode(["a pear"], bpe, tmp_path / "short.bin")
    with pytest.raises(InputError, match=r"a context of 16 needs 33"):
        TokenFile(tmp_path / "short.bin", 300, 16)


def test_accumulated_parts_are_one_batch(data, tmp_path):
    def moved(**how):
        before, folder = tiny(), tmp_path / str(how)
        after = train.train(tiny(), data, folder, steps=1, warmup=1, peak=1e-3, **how)
        return torch.cat([(a - b).flatten() for a, b in zip(after.parameters(), before.parameters(), strict=True)])

    whole, parts = moved(batch=8), moved(batch=2, accumulate=4)
    assert torch.cosine_similarity(whole, parts, 0) > 0.97  # in bfloat16
    assert torch.cosine_similarity(whole, moved(batch=2), 0) < 0.95  # a quarter of the rows is another step


def test_a_run_that_was_stopped_ends_at_the_same_weights(data, tmp_path):
    class Stopped(TokenFile):
        def drawn(self, sample):
            if sample == 8:  # in the third step
                os.kill(os.getpid(), signal.SIGINT)
            return super().drawn(sample)

    unbroken = train.train(tiny(), data, tmp_path / "a", steps=6, batch=4)
    with pytest.raises(KeyboardInterrupt):
        train.train(tiny(), Stopped(tmp_path / "tokens.bin", 300, 16), tmp_path / "b", steps=6, batch=4)
    with safetensors.safe_open(tmp_path / "b" / "run.safetensors", "pt") as file:
        assert json.loads(file.metadata()["counters"])["step"] == 3
    resumed = train.train(tiny(1), data, tmp_path / "b", steps=6, batch=4)
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))
    assert resumed.head.weight is resumed.embed.weight


def test_the_command_makes_a_model_that_transformers_reads(tmp_path, capfd):
    import transformers

    (tmp_path / "texts.txt").write_text("\n".join(LINES * 60))
    given = ["train", "gpt", "--work", str(tmp_path), "--texts", str(tmp_path / "texts.txt"), *TINY, "--rate", "0.01"]
    assert run([*given, "--steps", "60"]) == 0, capfd.readouterr().err
    assert float(capfd.readouterr().err.split("validation loss ")[1].split()[0]) < 3  # of ln 300 = 5.7
    folder = tmp_path / "gpt" / "model"
    found = find(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
    ids = found.tokens().encode(LINES[0])[:16]
    with torch.no_grad():
        torch.testing.assert_close(
            found.build("cpu", "float32")(torch.tensor([ids])), theirs(torch.tensor([ids])).logits, atol=1e-4, rtol=0
        )
    assert theirs.generation_config.eos_token_id == [0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    chat = [{"role": "user", "content": "a pear"}]
    written = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert written == f"<|user|>a pear{corpus.END}<|assistant|>"
    assert Path(folder / "SHA256SUMS").read_text().endswith("  model.safetensors\n")
