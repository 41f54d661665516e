"""Whatever a model would say, a constrained answer that ends is valid; what cannot be held to is refused at once."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import studio
from studio.errors import InputError, StudioError
from studio_gpt.constrain import Constraint, Matcher, SchemaRule
from studio_gpt.text import STARTER, TextGenerator

from .tiny_tokenizers import EOS, TOKENIZERS, byte_level

WORDS = st.sampled_from(["name", "colour", "n", "größe", "苹果", 'a "b"', "x y"])


def bounded(kind: str, numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(numbers, min_size=2, max_size=2).map(
        lambda ends: {"type": kind, "minimum": min(ends), "maximum": max(ends)}
    )


SCALARS = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "integer"}, {"const": {"a": [1, None]}}]),
    bounded("integer", st.integers(-5000, 5000)),
    bounded("number", st.integers(-400, 400).map(lambda n: n / 4)),
    st.lists(st.one_of(WORDS, st.integers(-9, 9), st.none(), st.booleans()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 6)).map(
        lambda n: {"type": "string", "minLength": n[0], "maxLength": n[0] + n[1]}
    ),
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(WORDS, inner, max_size=3))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    least = draw(st.integers(0, 2))
    return {"type": "array", "items": draw(inner), "minItems": least, "maxItems": least + draw(st.integers(0, 2))}


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        objects(inner), arrays(inner), st.lists(inner, min_size=1, max_size=2).map(lambda n: {"anyOf": n})
    ),
    max_leaves=6,
)


def write(matcher: Matcher, seed: int, most: int = 3000) -> Matcher:
    """Let a model of random logits write until the answer ends."""
    noise = torch.Generator().manual_seed(seed)
    for _ in range(most):
        logits = torch.randn(matcher.constraint.width, generator=noise)
        logits[~matcher.mask()] = float("-inf")
        token = int(logits.argmax())
        matcher.accept(token)
        if token == EOS:
            return matcher
    raise AssertionError("it did not end")


def said(tokenizer: Tokenizer, matcher: Matcher) -> str:
    return str(tokenizer.decode(matcher.tokens, skip_special_tokens=True))


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 1 << 32), kind=st.sampled_from(sorted(TOKENIZERS)))
def test_every_answer_is_valid(schema: dict[str, Any], seed: int, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    jsonschema.Draft202012Validator.check_schema(schema)
    answer = said(tokenizer, write(Constraint.compile(schema, tokenizer, EOS).start(), seed))
    jsonschema.validate(json.loads(answer), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_random_schemas_hold_in_the_generator(count: int, checkpoints: Any) -> None:
    """A tiny random model and the starter, many schemas in a step: what ends is valid, what is cut off says so."""
    drawn: list[dict[str, Any]] = []

    @settings(max_examples=8 * count, database=None, suppress_health_check=list(HealthCheck))
    @given(schema=SCHEMAS)
    def draw(schema: dict[str, Any]) -> None:
        if schema not in drawn:
            drawn.append(schema)

    draw()  # once: where hypothesis is derandomized, as on CI, a second call draws the same schemas
    drawn = drawn[:count]
    assert len(drawn) == count
    ended = 0
    for path, schemas in ((STARTER, drawn[:8]), (checkpoints("llama")[0], drawn[8:])):
        generator = TextGenerator(path)
        model = generator.load(studio.ModelRef(), "cpu", "float32")
        for at in range(0, len(schemas), 30):
            asked = [
                generator.Inputs(prompt="say", json_schema=json.dumps(each), temperature=1.0, max_tokens=100)
                for each in schemas[at : at + 30]
            ]
            states = [generator.start(model, each, studio.Rng(seed)) for seed, each in enumerate(asked)]
            while going := [i for i, each in enumerate(states) if not each.done]:
                for i, moved in zip(going, generator.step(model, [states[i] for i in going]), strict=True):
                    states[i] = moved
            for each, schema in zip(states, schemas[at : at + 30], strict=True):
                if each.ended == "end":
                    ended += 1
                    jsonschema.validate(json.loads(each.text), schema, cls=jsonschema.Draft202012Validator)
                else:
                    assert "incomplete" in each.notices[-1], schema
    assert ended > count / 2


PEAR = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": 0}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_the_mask_has_only_what_may_be_accepted(kind: str) -> None:
    """Against trying every token, at the first places of an answer."""
    constraint = Constraint.compile(PEAR, TOKENIZERS[kind](), EOS)
    matcher, noise = constraint.start(), torch.Generator().manual_seed(1)
    while not matcher.done:
        mask = matcher.mask()
        assert mask.shape == (constraint.width,)
        for token in range(constraint.width):
            if mask[token]:
                matcher.copy().accept(token)
                continue
            with suppress(StudioError):
                # Where one text alone may follow, the mask has the tokens that the tokenizer would use for it.
                assert said(TOKENIZERS[kind](), matcher.copy().accept(token)).lstrip()[:1] == "{"
        assert bool(mask[EOS]) == matcher.accepting
        matcher.accept(int(torch.multinomial(mask.float(), 1, generator=noise)))
        if len(matcher.tokens) > 12:
            break


def test_a_state_is_its_tokens() -> None:
    constraint = Constraint.compile(PEAR, byte_level(), EOS)
    whole = write(constraint.start(), 3)
    for length in range(len(whole.tokens) + 1):
        again = constraint.start(whole.tokens[:length])
        assert again.tokens == whole.tokens[:length]
        assert again.mask().any()
    half = constraint.start(whole.tokens[:5])
    twin = half.copy()
    twin.accept(int(twin.mask().nonzero()[0]))
    assert len(half.tokens) == 5, "the other went its own way"
    half.accept(whole.tokens[5])
    with pytest.raises(TypeError, match=r"matcher\.tokens"):
        pickle.dumps(half)


def test_a_rule_depends_on_what_is_written_alone() -> None:
    """Longer, shorter, or another text than the last time."""
    constraint = Constraint.compile(PEAR, byte_level(), EOS)
    texts = [write(constraint.start(), seed).tokens for seed in (5, 6)]
    rule = SchemaRule(constraint)
    for text, length in [(0, 3), (0, 9), (0, 4), (1, 0), (1, 9), (0, 9), (0, len(texts[0]))]:
        written = texts[text][:length]
        assert torch.equal(rule.mask(written), constraint.start(written).mask())
    with pytest.raises(StudioError, match="does not allow the token"):
        rule.mask([*texts[0], 5])


def test_nothing_follows_the_end() -> None:
    matcher = write(Constraint.compile({"enum": ["yes"]}, byte_level(), EOS).start(), 0)
    assert matcher.done
    assert matcher.mask().nonzero().flatten().tolist() == [EOS]
    with pytest.raises(StudioError, match=r"does not allow the token .* at position"):
        matcher.accept(5)


def test_wider_logits_than_the_tokenizer_has_tokens() -> None:
    tokenizer = byte_level()
    constraint = Constraint.compile(PEAR, tokenizer, EOS, width=tokenizer.get_vocab_size() + 28)
    mask = constraint.start().mask()
    assert mask.shape == (tokenizer.get_vocab_size() + 28,)
    assert not mask[tokenizer.get_vocab_size() :].any(), "padding is never written"
    answer = said(tokenizer, write(constraint.start(), 9))
    jsonschema.validate(json.loads(answer), PEAR)


def test_compiled_once() -> None:
    made = Constraint.compile(PEAR, byte_level(), EOS)
    assert Constraint.compile(json.dumps(PEAR), byte_level(), [EOS]) is made
    assert Constraint.compile(PEAR, byte_level(), EOS, width=500) is not made
    assert said(byte_level(), write(Constraint.compile(True, byte_level(), EOS).start(), 4))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
        ({"properties": {"a": {"$ref": "#/nope"}}}, "refers to `#/nope`, which is not a schema"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"not": {"type": "string"}}, "uses `not`, which is not supported"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "https://example.org/schema"}, 'has the reference "https://example.org/schema"'),
        ("{", "is not JSON"),
        ("[1]", "must be an object, or true"),
        (False, "must be an object, or true"),
        ({"const": float("nan")}, "is not JSON"),
        ({"const": {1, 2}}, "is not JSON"),
        ({"enum": ["x" * 300_000]}, "maximum is 262,144"),
    ],
    ids=str,
)
def test_a_bad_schema_is_one_clear_error(schema: Any, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        Constraint.compile(schema, byte_level(), EOS)
    assert caught.value.field == "json_schema"
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
