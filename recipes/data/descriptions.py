"""What people say of a thing whose name they have forgotten: English phrases, nine or more for each emoji of a thing.

`descriptions.jsonl` was written for Studio with the help of a language model, from the labels and tags alone; it is the
project's own, under its licence. Who wrote did not see what the model is measured by, and phrases that came close to a
test prompt were taken out (tests/recipes/data/test_descriptions.py holds it).
"""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).with_name("descriptions.jsonl")


def read(file: Path = FILE) -> dict[str, tuple[str, ...]]:
    """Phrases by the id of the record they tell of."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return {row["id"]: tuple(row["texts"]) for row in rows}
