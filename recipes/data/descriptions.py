"""Descriptions of objects without their names: English phrases, nine or more for each emoji of an object.

`descriptions.jsonl` was written for Studio with the help of a language model, only from the labels and tags; it belongs
to the project, under its licence. It was written without the test prompts, and phrases that are similar to a test
prompt were removed (tests/recipes/data/test_descriptions.py verifies that).
"""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).with_name("descriptions.jsonl")


def read(file: Path = FILE) -> dict[str, tuple[str, ...]]:
    """Phrases by the id of the record that they describe."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return {row["id"]: tuple(row["texts"]) for row in rows}
