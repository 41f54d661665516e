"""The overhead of workflows: checking, running and caching a workflow whose nodes do almost nothing.

    python benchmarks/workflow.py                 # 1,000 nodes, as Markdown
    python benchmarks/workflow.py --nodes 200 --rounds 3

Each node, except those of the first layer, uses the texts of two nodes of the previous layer, so nearly every node
depends on others; each stores an artifact with its recipe. The cached run uses a new Studio with the same folder.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import studio

LAYER = 25  # nodes that wait for nothing but the layer before


class Nothing(studio.Generator):
    """Two texts in, a short one out."""

    name = "nothing"
    output = studio.Text

    class Inputs(studio.Inputs):
        """What it is told."""

        left: str = studio.field(help="a text")
        right: str = studio.field("", help="another")

    def generate(self, model: Any, inputs: Any, rng: studio.Rng) -> studio.Text:
        return studio.Text(hashlib.sha256(f"{inputs.left}\n{inputs.right}".encode()).hexdigest()[:8])


@studio.hookimpl
def studio_generators() -> list[studio.Generator]:
    return [Nothing()]


def document(nodes: int) -> str:
    """The YAML text of such a workflow."""
    lines = ["name: many", "inputs:", "  word: {type: text}", "nodes:"]
    for index in range(nodes):
        row, place = divmod(index, LAYER)
        if row == 0:
            given = f'left: "{index} ${{word}}"'
        else:
            left, right = (f"${{n{(row - 1) * LAYER + each % LAYER}}}" for each in (place, place + 1))
            given = f'left: "{left}", right: "{right}"'
        lines.append(f"  n{index}: {{use: nothing, inputs: {{{given}}}}}")
    return "\n".join([*lines, "outputs:", f"  last: ${{n{nodes - 1}}}", ""])


def once(nodes: int) -> tuple[float, float, float]:
    """Seconds to read and check the file, to run it, and to run it again in a new Studio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "many.yaml"
        file.write_text(document(nodes))
        with studio.Studio(home=folder / "home", device="cpu", plugins=[Path(__file__)]) as host:
            begun = time.perf_counter()
            flow = host.workflow(file)
            checked = time.perf_counter()
            first = host.run(flow, word="a")
            ran = time.perf_counter()
        with studio.Studio(home=folder / "home", device="cpu", plugins=[Path(__file__)]) as host:
            flow = host.workflow(file)
            again_begun = time.perf_counter()
            again = host.run(flow, word="a")
            remembered = time.perf_counter() - again_begun
        assert again["last"] == first["last"]
        made = [each for each, node in flow.nodes.items() if node.kind == "make"]
        assert {again.nodes[each].state for each in made} == {"remembered"}
    return checked - begun, ran - checked, remembered


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description="Time a graph that does next to nothing.")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rounds = [once(given.nodes) for _ in range(given.rounds)]
    print(f"\n### {given.nodes:,} nodes, medians of {given.rounds} rounds\n\n| | seconds | goal |\n|---|---|---|")
    for what, goal, times in zip(
        ("check", "run", "run, all remembered"), (1, 5, 1), zip(*rounds, strict=True), strict=True
    ):
        print(f"| {what} | {statistics.median(times):.2f} | {goal} |")


if __name__ == "__main__":
    main()
