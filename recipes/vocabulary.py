"""Write `vocabulary.json` next to the weights of the image and the video starter: the words that they were trained on.

    python -m recipes.vocabulary --work training

A word counts if it is in a name of a picture that was sampled often enough (`LEAST`), or if it was in captions as
often and is not the noun of an object, because such an object has no picture of its own. `--work` has the data set of
`python -m recipes.data`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recipes.data import build
from recipes.data.shares import share
from recipes.scenes import captions as scene_captions
from recipes.scenes import things
from studio.devices import torch_setup
from studio_diffusion import vocabulary
from studio_diffusion.image import STARTER

DRAWN = 245_000
"""The number of pictures sampled in both rounds of the image starter's first training (docs/training.md)."""
LEAST = 80
"""How often a picture must have been sampled for its names to count, or another word must have been in captions."""
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")


def words_of(record: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The English words and the Chinese phrases of a record's names."""
    from recipes.text import captions

    kinds = captions.phrases(record)
    english = {word for kind in ("label", "synonym") for text in kinds[kind] for word in _WORD.findall(text.lower())}
    return english, {part for text in kinds["zh"] for part in re.split(r"[:，,、 ]+", text) if part}


def expected_counts(record: dict[str, Any], draws: float) -> Counter[str]:
    """The expected count of each English word in the record's captions, if the record was sampled this often."""
    from recipes.text import captions

    kinds = {kind: texts for kind, texts in captions.phrases(record).items() if texts and not kind.startswith("zh")}
    whole = sum(captions.WEIGHTS[kind] for kind in kinds)
    made: Counter[str] = Counter()
    for kind, texts in kinds.items():
        for text in texts:
            made.update(dict.fromkeys(_WORD.findall(text.lower()), draws * captions.WEIGHTS[kind] / whole / len(texts)))
    return made


def of_image(records: Sequence[dict[str, Any]], is_thing: Any, scenes: bool) -> vocabulary.Vocabulary:
    """The image starter's vocabulary.

    Args:
        is_thing: whether an English word names something that can be drawn.
        scenes: whether it was trained on composed scenes too.
    """
    kept = [record for record in records if record["split"] == "train"]
    shares = [share(record) for record in kept]
    drawn: list[str] = []
    words, chinese, anywhere = set(), set(), Counter[str]()
    for record, weight in zip(kept, shares, strict=True):
        draws = DRAWN * weight / sum(shares)
        anywhere.update(expected_counts(record, draws))
        if draws >= LEAST:
            english, han = words_of(record)
            drawn.append(record["label"].lower())
            words |= english
            chinese |= han
    words |= {word for word, count in anywhere.items() if count >= LEAST and not is_thing(word)}
    if scenes:
        drawn += [noun.singular.lower() for thing in things.read() for noun in thing.english]
        chinese |= {name for thing in things.read() for name in (*thing.chinese, thing.measure)}
        phrases = (*scene_captions.GROUNDS.values(), *scene_captions.ALONE.values())
        words |= {word for texts in phrases for text in texts for word in _WORD.findall(text.lower())}
        words |= {
            word for thing in things.read() for noun in thing.english for word in _WORD.findall(noun.plural.lower())
        }
        chinese |= {text for texts in scene_captions.CHINESE_GROUNDS.values() for text in texts}
    return ordered(drawn, words, chinese)


def of_video(records: Sequence[dict[str, Any]]) -> vocabulary.Vocabulary:
    """The video starter's vocabulary: the 96 most common animals and foods, a red apple, and its motions."""
    from recipes.video import draw, trainer
    from recipes.video.motions import THROUGH

    options = trainer.TrainVideo.Options(things=96, also="red apple")
    learnt = [records[row] for row in trainer.chosen(records, options)]
    verbs = {word for motion in (*THROUGH, draw.MOVING) for word in motion.split()}
    return ordered([record["label"].lower() for record in learnt], verbs, ())


def forms(word: str) -> tuple[str, ...]:
    """The word, and its possible singular forms."""
    return word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y"


def ordered(drawn: Iterable[str], words: Iterable[str], chinese: Iterable[str]) -> vocabulary.Vocabulary:
    """A vocabulary without duplicates: things in the given order, words sorted, without words that never count."""
    kept = tuple(dict.fromkeys(drawn))
    parts = {part for name in kept for part in _WORD.findall(name)} | vocabulary.PLAIN
    return vocabulary.Vocabulary(
        kept,
        tuple(sorted({word for word in words if word.isascii() and len(word) > 1} - parts)),
        tuple(sorted({word for word in chinese if word} - vocabulary.PLAIN_CHINESE)),
    )


def write(folder: Path, made: vocabulary.Vocabulary) -> None:
    """Write the file that `studio_diffusion.vocabulary.load` reads."""
    whole = {"things": list(made.things), "words": list(made.words), "chinese": list(made.chinese)}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in whole.items())
    (folder / vocabulary.FILE).write_text("{\n" + lines + "\n}\n", "utf-8")


def main() -> None:
    """Parse, count, write both files."""
    parser = argparse.ArgumentParser(description="Write which words the image and the video starter were taught.")
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder of the data set and its packages")
    parser.add_argument("--no-scenes", action="store_true", help="for an image starter without `recipes.scenes.train`")
    given = parser.parse_args()
    torch_setup.prepare()
    from studio_video.video import WEIGHTS

    _, records = build.load(given.work / "data")
    net = build.wordnet(given.work / "cache")
    image = of_image(records, lambda word: any(net.drawable(form) for form in forms(word)), not given.no_scenes)
    for folder, made in ((STARTER, image), (WEIGHTS, of_video(records))):
        write(folder, made)
        print(f"{folder}: {len(made.things)} things, {len(made.words)} words, {len(made.chinese)} in Chinese")


if __name__ == "__main__":
    main()
