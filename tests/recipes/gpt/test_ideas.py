"""Ideas and the prompts that they become: what is held out, what names a thing, and what tells of it."""

from __future__ import annotations

from recipes.gpt import documents, ideas

RECORD = {"id": "emoji-1f980", "split": "train", "label": "crab", "tags": ["sea", "claw", "red"],
          "synonyms": ["decapod"], "gloss": "a ten-legged animal of the sea; walks sideways", "zh_label": "螃蟹",
          "zh_tags": ["动物"], "wordings": ["shellfish"]}  # fmt: skip
TOLD = [f"red thing that has {i} legs and pinches" for i in range(100)] + ["who has claws?", "i walk sideways, red"]


class Net:
    """A WordNet without words."""

    synsets: dict = {}  # noqa: RUF012


def test_held_out_descriptions_are_in_no_text_no_idea_and_no_prompt():
    record = {**RECORD, "descriptions": TOLD}
    kept = [text for text in TOLD if ideas.held_out(text)]
    assert 1 <= len(kept) <= 25
    pairs = ideas.pairs([record])
    texts = documents.documents([record], Net())
    assert not any(text in each for text in kept for each in [*texts, *(part for pair in pairs for part in pair)])
    assert [idea for idea, _ in ideas.held_out_pairs([record])] == kept
    assert not ideas.pairs([{**record, "split": "test"}])


def test_an_idea_in_any_words_becomes_the_name_and_how_it_looks():
    pairs = ideas.pairs([{**RECORD, "descriptions": TOLD}])
    asked = {idea for idea, _ in pairs}
    assert asked >= {"crab", "decapod", "螃蟹", "shellfish", RECORD["gloss"]}
    assert {prompt.split(", ")[0] for _, prompt in pairs} == {"crab"}
    assert not any("claws?" in prompt or "i walk" in prompt for _, prompt in pairs)
    assert not any(prompt.split(", ", 1)[1] in idea for idea, prompt in pairs)  # what was said is not said again
    assert pairs == ideas.pairs([{**RECORD, "descriptions": TOLD}])
    assert ideas.looks({"descriptions": ["sideways walker", "it pinches"]}) == ["sideways walker"]


def test_what_nothing_tells_of_is_named_and_nothing_more():
    plain = {**RECORD, "descriptions": []}
    assert {prompt for _, prompt in ideas.pairs([plain])} == {"crab, sea, claw, red"}
    assert {prompt for _, prompt in ideas.pairs([{**plain, "tags": []}])} == {"crab"}
    assert all("crab" in idea or "螃蟹" in idea for idea, _ in ideas.pairs([plain]))
    assert ideas.held_out_pairs([plain]) == []


def test_chinese_descriptions_become_ideas_and_none_names_its_thing():
    told = ideas.chinese()
    assert all(texts and zh not in text for zh, texts in told.items() for text in texts)
    record = {**RECORD, "zh_label": "狗", "descriptions": TOLD}
    asked = [idea for idea, _ in ideas.pairs([record])]
    kept = [idea for idea, _ in ideas.held_out_chinese_pairs([record])]
    assert len(kept) == sum(map(ideas.held_out, told["狗"]))
    assert not any(text in each for text in kept for each in asked)
    assert {text for text in told["狗"] if text not in kept} <= {*asked}
