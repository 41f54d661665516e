"""A contact sheet of 64 everyday prompts, one picture each, failures included.

The prompts (`everyday_prompts.txt`) were written before any of these pictures was generated. Seeds are 0 to 63 in
their order. Nothing is measured: look at it.

    python benchmarks/everyday.py --out docs/recognition/everyday.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recognition import sheet
from scenes import Drawer

from studio_diffusion.image import STARTER

PROMPTS = Path(__file__).with_name("everyday_prompts.txt")


def main() -> None:
    """Parse, draw, write the sheet: rows of eight."""
    parser = argparse.ArgumentParser(description="Draw 64 everyday prompts.")
    parser.add_argument("--out", type=Path, required=True, help="the sheet, a PNG")
    parser.add_argument("--weights", type=Path, default=STARTER, help="folder of weights; by default the starter's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    given = parser.parse_args()
    prompts = PROMPTS.read_text("utf-8").splitlines()
    made = Drawer(given.weights, given.steps, given.guidance).draw(prompts)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(made, 8).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
