"""The generator in the engine: batched, speculative, resumed or with a prefix cache, the output is the same."""

import dataclasses
import json

import pytest
import torch

import studio
from studio import models
from studio.engine import Delta
from studio.engine.checkpoints.checkpoint import Checkpoint, pack
from studio.errors import InputError, ModelError, WeightsError
from studio_gpt.explain import AttentionGenerator, ExplainGenerator
from studio_gpt.text import CHUNK, WEIGHTS, TextGenerator
from tests.studio.engine.checkpoints.test_checkpoint import progress

from .conftest import LINES

LONG = " ".join(LINES * 2)


@pytest.fixture(scope="module")
def made(checkpoints):
    """A generator and its model, both small."""
    generator = TextGenerator(checkpoints("llama")[0])
    return generator, generator.load(studio.ModelRef(), "cpu", "float32")


def fresh(model):
    """The same model with an empty prefix cache."""
    return dataclasses.replace(
        model, prefix_cache=type(model.prefix_cache)(model.config, torch.float32, torch.device("cpu"))
    )


def begin(made, seed=1, model=None, **inputs):
    generator, own = made
    asked = generator.Inputs.parse({"prompt": LINES[0], "max_tokens": 40, **inputs})
    return generator.start(model or own, asked, studio.Rng(seed))


def run(made, state, model=None):
    generator, own = made
    while not state.done:
        (state,) = generator.step(model or own, [state])
    return state


SETTINGS = [
    {"temperature": 0}, {"temperature": 0.9, "top_k": 20}, {"temperature": 1.2, "top_p": 0.8, "min_p": 0.01},
    {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.1, "logit_bias": {40: -5}},
]  # fmt: skip


def test_staggered_requests_of_unlike_lengths_write_what_they_write_alone(made):
    generator, model = made
    prompts = ["a", LINES[0], LONG, LINES[1]]
    states = [begin(made, seed=i, prompt=p, max_tokens=12 + i, **SETTINGS[i]) for i, p in enumerate(prompts)]
    alone = [run(made, begin(made, i, fresh(model), prompt=p, max_tokens=12 + i, **SETTINGS[i]), fresh(model)).tokens
             for i, p in enumerate(prompts)]  # fmt: skip
    here, turn = {}, 0
    while len(here) < len(states) or not all(each.done for each in here.values()):
        if turn < len(states):
            here[turn] = states[turn]  # one more comes with every step
        going = [i for i, each in here.items() if not each.done]
        here.update(zip(going, generator.step(model, [here[i] for i in going]), strict=True))
        turn += 1
    assert [here[i].tokens for i in range(len(states))] == alone


@pytest.mark.parametrize("settings", SETTINGS)
def test_guessing_ahead_changes_nothing_and_takes_fewer_steps(made, settings):
    prompt = "a red apple, a red apple, a red apple"
    plain = run(made, begin(made, prompt=prompt, max_tokens=120, **settings))
    ahead = run(made, begin(made, prompt=prompt, max_tokens=120, lookup=6, **settings))
    assert ahead.tokens == plain.tokens
    assert ahead.text == plain.text
    if settings == {"temperature": 0}:
        assert ahead.position < plain.position


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_saved_request_goes_on_to_the_same_text(made, steps, tmp_path):
    generator, model = made
    asked = {"prompt": LONG, "temperature": 1.0}
    state = begin(made, model=fresh(model), **asked)
    assert len(state.tokens) > CHUNK
    for _ in range(steps):
        (state,) = generator.step(model, [state])
    path = tmp_path / "one.safetensors"
    path.write_bytes(pack(progress(), state))
    assert path.stat().st_size < 40_000, "tokens are saved, and no keys and values"
    again = Checkpoint.open(path).state(begin(made, model=fresh(model), **asked), "cpu")
    assert run(made, again, fresh(model)).text == run(made, state).text


def test_a_shared_beginning_is_computed_once(made):
    generator, model = made
    model = fresh(model)
    states = [begin(made, i, model, prompt=LONG + line, temperature=0) for i, line in enumerate(LINES)]
    together = generator.step(model, states)
    hits = model.prefix_cache.hits
    assert hits >= 3 * (len(model.tokens.encode(LONG)) // 32 - 1)
    for line, state in zip(LINES, together, strict=True):
        other = fresh(model)
        alone = run(made, begin(made, 0, other, prompt=LONG + line, temperature=0), other)
        assert run(made, state, model).tokens == alone.tokens


def test_steps_leave_their_states_and_can_be_made_again(made):
    generator, model = made
    state = begin(made)
    for _ in range(5):
        one, two = generator.step(model, [state]), generator.step(model, [state])
        assert one[0].tokens == two[0].tokens
        state = one[0]


def test_requests_that_share_nothing_take_no_beginning(made):
    generator, model = made
    model = fresh(model)
    run(made, begin(made, model=model, prompt=LONG, temperature=0), model)
    hits = model.prefix_cache.hits
    asked = generator.Inputs(prompt=LONG, temperature=0)
    run(made, generator.start_isolated(model, asked, studio.Rng(0)), model)
    assert model.prefix_cache.hits == hits
    begin(made, model=model, prompt=LONG)
    assert model.prefix_cache.hits > hits


def test_stop_strings_end_and_are_never_shown(made):
    whole = run(made, begin(made, temperature=1.0, max_tokens=60)).text
    stop = whole[20:24]
    generator, model = made
    state = begin(made, temperature=1.0, max_tokens=60, stop=[stop])
    told = ""
    while not state.done:
        (state,) = generator.step(model, [state])
        told += generator.delta(model, state, len(told))
        assert whole[: whole.index(stop)].startswith(told)
        assert told == (generator.preview(model, state) or "")
    assert state.ended == "stop"
    assert str(generator.finish(model, state)) == whole[: whole.index(stop)]


def test_the_engine_streams_and_keeps_the_recipe(checkpoints, tmp_path):
    path = checkpoints("gpt2")[0]
    with studio.Studio(home=tmp_path, device="cpu") as host:
        asked = {"prompt": LINES[0], "model": str(path), "max_tokens": 12, "temperature": 0}
        events = list(host.stream("text", seed=3, **asked))
        pieces = [each.text for each in events if isinstance(each, Delta)]
        media = events[-1].media
        assert "".join(pieces) == media
        assert len(pieces) > 3
        assert list(host.text(asked.pop("prompt"), seed=3, stream=True, **asked)) == pieces
        assert media.recipe.spec.model.source == str(path)
        assert "model.safetensors" in media.recipe.spec.model.sha256
        tickets = host.submit_many("text", 4, seed=3, prompt=LINES[0], **asked)
        assert [str(each.result()) for each in tickets] == [str(media)] * 4


def test_kinds_of_weights_are_models_of_their_own_and_stand_in_the_recipe(checkpoints, tmp_path):
    path = str(checkpoints("llama")[0])
    used = {}
    with studio.Studio(home=tmp_path, device="cpu") as host:
        for kind in WEIGHTS:
            media = host.text(LINES[0], seed=3, model=path, weights=kind, max_tokens=4)
            assert media.recipe.spec.model.variant == kind
            used[kind] = media.recipe.facts["products"]
        (engine,) = host.router.engines
        sizes = {id(model): model.size for model in engine._models.resident()}
        assert len(sizes) == len(WEIGHTS)
        assert len(set(used.values())) == len(WEIGHTS), used
        assert len(set(sizes.values())) > 2, "int8 takes less than float32"
        with pytest.raises(InputError, match=r"`weights` is 'int3', but must be one of `float16`, `loaded`"):
            host.text("a", model=path, weights="int3")


def test_models_are_found_in_the_data_folder_of_the_studio_that_asks(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "elsewhere"))
    name = f"file:{checkpoints('llama')[0]}"
    models.Models(tmp_path).pull(name)
    with studio.Studio(home=tmp_path, device="cpu") as host:
        assert host.text("a", model=name, max_tokens=1, seed=1).recipe.spec.model.source == name
    with studio.Studio(device="cpu") as host, pytest.raises(ModelError, match="studio models pull"):
        host.text("a", model=name)


@pytest.mark.parametrize(("inputs", "words"), [
    ({"prompt": "word " * 2000}, "tokens; the context of 512"),
    ({"prompt": ""}, "`prompt` is ''"),
    ({"stop": [""]}, "stop string is empty"),
    ({"logit_bias": {400: 1.0}}, "has the token id 400; ids of this model are 0 to 319"),
    ({"prompt": "\ud800"}, "prompt"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_the_numbers(made, inputs, words):
    with pytest.raises(InputError, match=words):
        begin(made, **inputs)


def test_a_schema_holds_however_steps_are_made(made, tmp_path):
    generator, model = made
    fields = {"ripe": {"type": "boolean"}, "colour": {"enum": ["red", "green"]}}
    schema = json.dumps({"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False})
    for seed in range(4):
        asked = {"seed": seed, "json_schema": schema, "temperature": 1.5, "top_p": 1.0, "max_tokens": 60}
        state = run(made, begin(made, **asked))
        found = json.loads(state.text)
        assert set(found) == {"ripe", "colour"}
        assert (state.ended, found["colour"] in ("red", "green")) == ("end", True)
        assert run(made, begin(made, **asked, lookup=4)).text == state.text
    half = begin(made, **asked)
    for _ in range(6):
        (half,) = generator.step(model, [half])
    (tmp_path / "one.safetensors").write_bytes(pack(progress(), half))
    again = Checkpoint.open(tmp_path / "one.safetensors").state(begin(made, **asked), "cpu")
    assert run(made, again).text == state.text
    short = run(made, begin(made, json_schema=schema, max_tokens=2))
    assert "incomplete" in short.notices[-1]
    with pytest.raises(InputError, match="is not JSON"):
        begin(made, json_schema="{")


def test_a_long_prompt_is_cut_when_asked_and_the_text_ends_with_the_context(made):
    state = begin(made, prompt="word " * 2000, truncate=True, max_tokens=1000)
    assert "prompt tokens were dropped" in state.notices[0]
    state = run(made, state)
    assert len(state.tokens) == 512
    assert any("context length" in notice for notice in state.notices) or state.ended == "end"


def test_without_a_model_the_remedy_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"does not exist\nhint: give a folder with config.json"):
        TextGenerator(tmp_path / "none").weights(studio.ModelRef())


def test_it_is_explained_with_the_probabilities_of_transformers(checkpoints):
    path, theirs = checkpoints("llama")
    generator = ExplainGenerator(path)
    model = generator.load(studio.ModelRef(variant="loaded"), "cpu", "float32")
    state = run((generator, model), begin((generator, model), max_tokens=10, temperature=0, top=3))
    told = json.loads(str(generator.finish(model, state)))
    with torch.no_grad():
        logits = theirs(torch.tensor([state.tokens])).logits[0, state.prompt - 1 : -1]
    for each, scores in zip(told["written"], logits, strict=True):
        assert each["logprob"] == pytest.approx(float(scores.log_softmax(-1)[each["id"]]), abs=1e-4)
        assert each["id"] == each["top"][0]["id"], "greedy takes the likeliest"
        assert len(each["top"]) == 3


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3"])
def test_the_attention_picture_is_of_what_transformers_attends_to(name, checkpoints):
    path, theirs = checkpoints(name)
    generator = AttentionGenerator(path)
    model = generator.load(studio.ModelRef(variant="loaded"), "cpu", "float32")
    asked = generator.Inputs(prompt=LINES[0], layer=1, head=2)
    (state,) = generator.step(model, [generator.start(model, asked, studio.Rng(0))])
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        seen = theirs(torch.tensor([state.tokens]), output_attentions=True).attentions[1][0, 2]
    torch.testing.assert_close(state.weights, seen, atol=1e-4, rtol=0)
    assert generator.finish(model, state).size[0] > 18 * len(state.tokens)
    with pytest.raises(InputError, match="`layer` is 2; the model has 0 to 1"):
        generator.start(model, generator.Inputs(prompt="a", layer=2), studio.Rng(0))
