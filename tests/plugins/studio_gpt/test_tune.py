"""Fine-tuning: whose words are learnt, adapters and what they become, and `studio train gpt-chat`."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.cli.main import run
from studio.errors import InputError
from studio.training import agreement
from studio_gpt import corpus, train, tune
from studio_gpt.config import llama
from studio_gpt.model import GPT
from studio_gpt.tokens import Tokens

PAIRS = [("round fruit", "a red apple"), ("it sings", "a blue bird"), ("where to sit", "a brown chair")]
WORDS = st.text("abc é苹", min_size=1, max_size=8)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return corpus.as_tokens(corpus.train_tokenizer([text for pair in PAIRS for text in pair] * 3, 300))


def tiny():
    shape = llama(vocab=300, context=48, layers=1, heads=2, width=32, hidden=64)
    return GPT(shape).initialise(torch.Generator().manual_seed(0))


def chat(asked, answer):
    """A line of a chat JSONL."""
    return json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]})


def samples(tokens, pairs=PAIRS):
    rows = [json.loads(chat(*pair))["messages"] for pair in pairs]
    return [tune.sample(row, tokens, 48) for row in rows]


@settings(max_examples=25)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), st.booleans())
def test_the_assistant_and_its_ends_alone_are_learnt(tokens, turns, told):
    messages = [{"role": "system", "content": "be brief"}] if told else []
    for asked, answer in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    made = tune.sample(messages, tokens, 1000)
    learnt = [token for token, said in zip(made.tokens, made.assistant, strict=True) if said]
    written = tokens.tokenizer.decode(learnt, skip_special_tokens=False)
    assert written == "".join(f"{answer}{corpus.END}" for _, answer in turns)
    assert tune.sample(messages, tokens, len(made.tokens) - 1) == made
    assert tune.sample(messages, tokens, len(made.tokens) - 2) is None


def test_control_tokens_spelt_out_in_a_conversation_are_learnt_as_text(tokens):
    """As they are read when the model answers: a message can neither end a turn nor begin one."""
    control = {*tokens.control(tokens.chat_template).values()}
    for spelt in tokens.control(tokens.chat_template):
        asked, answer = f"a {spelt} b", f"{spelt} c"
        rows = [
            json.loads(chat(*pair))["messages"] for pair in ((asked, answer), ("a", answer), (asked, "c"), ("a", "c"))
        ]
        made = [tune.sample(row, tokens, 1000) for row in rows]
        assert len({tuple(each for each in one.tokens if each in control) for one in made}) == 1
        assert spelt in tokens.tokenizer.decode(made[0].tokens, skip_special_tokens=False)
        learnt = [token for token, said in zip(made[0].tokens, made[0].assistant, strict=True) if said]
        assert sum(each in control for each in learnt) == 1


def test_the_loss_of_a_batch_is_that_of_its_answers_one_by_one(tokens):
    model, made = tiny(), samples(tokens)
    total, count = 0.0, 0
    for each in made:
        with torch.no_grad():
            logprobs = model(torch.tensor([each.tokens]))[0].log_softmax(-1)
        for place in range(1, len(each.tokens)):
            if each.assistant[place]:
                total -= float(logprobs[place - 1, each.tokens[place]])
                count += 1
    assert tune.validate(model, made, batch=2).loss == pytest.approx(total / count, rel=1e-2)  # in bfloat16


@torch.no_grad()
def test_an_answer_begins_right_if_greedy_decoding_says_its_first_phrase():
    model, asked = tiny(), [5, 6, 7]
    written = list(asked)
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):  # as it is judged
            written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
    said = (False,) * 3 + (True,) * 8
    for wrong in range(3, 11):
        spoilt = [*written[:wrong], (written[wrong] + 1) % 300, *written[wrong + 1 :]]
        judged = tune.validate(model, [tune.Sample(tuple(spoilt), said)], [written[5]])
        first = spoilt.index(written[5], 3) if written[5] in spoilt[3:] else 10
        assert judged.right == (wrong > first)
    assert tune.validate(model, [tune.Sample(tuple(each), said) for each in (written, spoilt)]).right == 0.5


def test_a_first_phrase_ends_with_its_comma():
    targets = torch.tensor([[-100, 5, 9, 6, 9, -100], [5, 6, 7, 9, -100, 5], [-100, 5, 6, -100, -100, -100]])
    assert tune.opening(targets, torch.tensor([9])).tolist() == [
        [False, True, True, False, False, False], [True] * 4 + [False] * 2, [False, True, True] + [False] * 3,
    ]  # fmt: skip
    assert torch.equal(tune.opening(targets, torch.tensor([], dtype=torch.long)), targets != tune.IGNORED)


@torch.no_grad()
def test_a_weight_counts_as_so_many_of_the_same_token(tokens):
    model, (one, *_) = tiny(), samples(tokens)
    tokens_, targets = tune.pad([one])
    said = (targets != tune.IGNORED).nonzero()[:, 1]
    alone = []
    for place in said.tolist():
        single = torch.full_like(targets, tune.IGNORED)
        single[0, place] = targets[0, place]
        alone.append(float(tune.loss_of(model, tokens_, single)))
    weights = 1 + 2 * (torch.arange(targets.shape[1]) == said[0])[None]
    wanted = (3 * alone[0] + sum(alone[1:])) / (2 + len(alone))
    assert float(tune.loss_of(model, tokens_, targets, weights)) == pytest.approx(wanted, rel=1e-3)


def test_the_weights_that_judged_best_are_returned(tokens, tmp_path):
    made = samples(tokens)
    kept = made[:1]  # learnt for thirty steps, then unlearnt
    tune.train(tiny(), kept, tmp_path, steps=30, batch=3, peak=2e-2, warmup=1, held_out=kept, validate_every=30)
    (tmp_path / agreement.FILE).unlink()  # else other conversations are refused
    best = tune.validate(tune.train(
        tiny(), made[1:], tmp_path, steps=60, batch=3, peak=2e-2, warmup=1, held_out=kept, validate_every=30
    ), kept)  # fmt: skip
    assert best.right == 1
    last = tune.train(tiny(), made[1:], tmp_path, steps=61, batch=3, peak=2e-2, warmup=1)  # from where that run ended
    assert tune.validate(last, kept).right == 1  # `best.safetensors` is the run's, and still there


def test_probing_fits_the_head_and_nothing_else(tokens):
    made = samples(tokens)
    shape = llama(vocab=300, context=48, layers=1, heads=2, width=32, hidden=64, tied=False)
    model = GPT(shape).initialise(torch.Generator().manual_seed(0)).requires_grad_(False)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    tune.probe(model, made, epochs=60, batch=8, peak=0.1)
    changed = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert changed == {"head.weight"}
    assert tune.validate(model, made).right == 1


def test_every_conversation_is_in_one_batch_of_an_epoch(tokens):
    pairs = [("a" * i, f"{i}") for i in range(1, 12)]
    made = tune.Batches(samples(tokens, pairs), 4)
    for epoch in range(2):
        rows = [row for step in range(3) for row in made.batch(3 * epoch + step)[0]]
        assert sorted(tokens.decode([t for t in row.tolist() if t]) for row in rows) == sorted(
            tokens.decode(list(each.tokens[:-1])) for each in made.samples
        )


def test_a_template_that_rewrites_what_was_said_is_refused():
    bpe = corpus.train_tokenizer(["ab"], 300)
    template = "{% for m in messages %}{{ m.content if loop.last else 'x' }}{% endfor %}"
    forgetful = Tokens(bpe, frozenset({0}), template)
    messages = [{"role": role, "content": role} for role in ("user", "assistant") * 2]
    with pytest.raises(InputError, match="differently when a conversation continues"):
        tune.sample(messages, forgetful, 48)
    with pytest.raises(InputError, match="no chat template"):
        tune.sample(messages, Tokens(bpe, frozenset({0})), 48)


@pytest.mark.parametrize(
    "line", ["{", "[1]", "{}", '{"prompt": "a"}', '{"messages": [{"role": "user"}]}', '{"messages": 3}',
             '{"messages": [{"role": "user", "content": "a"}]}'],
)  # fmt: skip
def test_a_line_that_is_no_conversation_is_named(line, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(f'{{"prompt": "a\u2028b", "completion": "c"}}\n\n{line}\n', "utf-8")
    rows = tune.read(path)
    assert next(rows)[0] == {"role": "user", "content": "a\u2028b"}
    with pytest.raises(InputError, match="line 3 of"):
        list(rows)


ANSWER = {"role": "assistant", "content": "ok"}


def chats(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the content of `user` is null, not text"),
        (5, "the content of `user` is a number, not text"),
        (True, "the content of `user` is true or false, not text"),
        ({"text": "a"}, "the content of `user` is an object, not text"),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}], 'a part of type "image_url"; only parts of type text'),
        ([{"type": "text", "text": None}], 'a part of type "text"; only parts of type text'),
        (["a"], "the content of `user` has a part text; only parts"),
    ],
)
def test_a_content_that_is_not_text_is_refused_with_its_line(content, reason, tmp_path):
    path = chats(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "a"}, ANSWER]},
                 {"messages": [{"role": "user", "content": content}, ANSWER]})  # fmt: skip
    rows = tune.read(path)
    next(rows)
    with pytest.raises(InputError, match=f"line 2 of .* is not a conversation: .*{reason}"):
        next(rows)


@pytest.mark.parametrize("name", ["prompt", "completion"])
@pytest.mark.parametrize("value", [None, 1, {}])
def test_a_prompt_or_completion_that_is_not_text_is_refused(name, value, tmp_path):
    path = chats(tmp_path / "c.jsonl", {"prompt": "a", "completion": "b", name: value})
    with pytest.raises(InputError, match=r"line 1 of .* is not a conversation: the content of"):
        list(tune.read(path))


def test_a_call_of_a_tool_is_refused_and_a_role_that_is_not_text(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    with pytest.raises(InputError, match="the content of `assistant` is null"):
        list(tune.read(chats(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "a"}, call]})))
    with pytest.raises(InputError, match="a role is null, not text"):
        list(tune.read(chats(tmp_path / "c.jsonl", {"messages": [{"role": None, "content": "a"}, ANSWER]})))


def test_parts_of_text_are_lines_and_prompts_may_be_turns(tmp_path):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    path = chats(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": parts}, ANSWER]},
                 {"prompt": [{"role": "user", "content": "a"}], "completion": [ANSWER]},
                 {"prompt": parts, "completion": "b"})  # fmt: skip
    path.write_text("\ufeff" + path.read_text())  # a byte order mark is not part of the first line
    assert list(tune.read(path)) == [
        [{"role": "user", "content": "one\ntwo"}, ANSWER],
        [{"role": "user", "content": "a"}, ANSWER],
        [{"role": "user", "content": "one\ntwo"}, {"role": "assistant", "content": "b"}],
    ]


def test_plain_text_is_learnt_beside_answers(tokens, tmp_path):
    lines = ["the red apple lies on the table", "a green pear lies on the chair"]
    corpus.encode([f"{line}{corpus.END}" for line in lines * 60], tokens.tokenizer, tmp_path / "tokens.bin")
    texts, made = corpus.TokenFile(tmp_path / "tokens.bin", 300, 16), samples(tokens)
    losses = {}
    for rows in (0, 2):
        model = tune.train(
            tiny(), made, tmp_path / str(rows), steps=60, batch=3, peak=2e-2, warmup=1, texts=texts, rows=rows
        )
        losses[rows] = tune.validate(model, made).loss, train.validate(model, texts, 4)
    assert losses[2][0] < tune.validate(tiny(), made).loss - 1
    assert losses[2][1] < losses[0][1] - 1


def test_adapters_learn_and_are_merged(tokens, tmp_path):
    pytest.importorskip("peft")
    before, made = tiny(), samples(tokens)
    adapted = tune.with_lora(tiny(), 4)
    learning = {name for name, each in adapted.named_parameters() if each.requires_grad}
    assert len(learning) == 2 * len(tune.LAYERS)
    assert all("lora_" in name for name in learning)
    after = tune.train(tiny(), made, tmp_path, steps=120, batch=3, lora=4, peak=2e-2, warmup=1)
    assert type(after) is GPT
    assert {*after.state_dict()} == {*before.state_dict()}
    changed = {name for name, each in after.state_dict().items() if not torch.equal(each, before.state_dict()[name])}
    assert changed == {f"blocks.0.{layer}.weight" for layer in tune.LAYERS}
    assert tune.validate(after, made).loss < tune.validate(before, made).loss - 0.5


def test_the_command_teaches_answers(tokens, tmp_path, capfd):
    train.publish(tiny(), tokens, tmp_path / "gpt" / "model")
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(f"{chat(*pair)}\n" for pair in [PAIRS[0], *PAIRS]))  # the first is held out
    given = ["train", "gpt-chat", "--work", str(tmp_path), "--chats", str(chats), "--rate", "0.01", "--batch", "3"]
    done = run([*given, "--steps", "150", "--probe", "9", "--kept", str(chats)])
    told = " ".join(capfd.readouterr().err.split())
    assert done == 0, told
    assert "head only: loss" in told
    assert "100.0% of first phrases right" in told.partition("validation loss")[2]
    folder = tmp_path / "gpt-chat" / "model"
    assert run(["text", PAIRS[1][0], "--chat", "--temperature", "0", "--model", str(folder)]) == 0
    assert PAIRS[1][1] in capfd.readouterr().out
