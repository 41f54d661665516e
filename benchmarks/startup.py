"""Start-up time of a new process: to the help, to the list of plugins, and to the first picture on disk.

    python benchmarks/startup.py            # medians over new processes, as a Markdown table

Peers in the same run: importing torch, and the same picture with diffusers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDIO = [sys.executable, "-m", "studio"]
STOCK = (
    "from studio.devices import torch_setup; torch_setup.prepare(); import torch;"
    "from diffusers import StableDiffusionPipeline as P;"
    "from studio_diffusion.image import STARTER;"
    "p = P.from_pretrained(STARTER, dtype=torch.bfloat16, local_files_only=True);"
    "p.set_progress_bar_config(disable=True);"
    "p('a red apple', num_inference_steps=20, guidance_scale=5.0, width=128, height=128).images[0].save('stock.png')"
)


def seconds(command: list[str], folder: str) -> float:
    """Wall time of one process, in seconds."""
    environment = os.environ | {"STUDIO_HOME": folder}
    begun = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure each command by turns, so that a busy moment touches all of them."""
    parser = argparse.ArgumentParser(description="Time fresh processes.")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    commands = {
        "`studio --help`": [*STUDIO, "--help"],
        "`studio plugins`": [*STUDIO, "plugins"],
        "`studio image` to the file, 20 guided steps, 128x128": [
            *STUDIO,
            "image",
            "a red apple",
            "--force",
            "-o",
            "a.png",
        ],
        "peer: `import torch`": [sys.executable, "-c", "import torch"],
        "peer: stock `StableDiffusionPipeline` to the file, the same": [sys.executable, "-c", STOCK],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.runs):
            for name, command in commands.items():
                taken[name].append(seconds(command, folder))
        assert (Path(folder) / "a.png").stat().st_size > 0
    print("| new process | median s | fastest s |\n|---|---|---|")
    for name, times in taken.items():
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} |")


if __name__ == "__main__":
    main()
