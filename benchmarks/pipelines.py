"""Which pipelines of diffusers Studio steps, batches, cancels and resumes: a table over tiny random models.

    python -m benchmarks.pipelines                 # all; writes docs/pipelines.md and studio/diffusion/resumes.json
    python -m benchmarks.pipelines Flux Wan        # the classes whose names contain a word; writes nothing

The checks are those of tests/studio/diffusion/conformance.py; `make test-all` runs them as tests.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import textwrap
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from tests.studio.diffusion import conformance, tiny
from tests.studio.diffusion.conformance import Row
from tests.studio.diffusion.tiny import words

ROOT = Path(__file__).parent.parent
HEAD = """# Pipelines of diffusers

Studio runs the pipelines of diffusers {version} by their own code and steps them from outside
([plugins.md](plugins.md)). This table was written by `python -m benchmarks.pipelines`, which builds each class with
tiny random weights on a CPU, in float32. **{passed} of {built} classes pass all checks.** For each class:

- *Guest*: the output is that of the pipeline's own call, to the byte.
- *By turns*: requests that step by turns give the same bytes as alone.
- *Batched*: the largest difference of requests that step together, as a part of the largest value of the output; at
  most 1e-5. "Alone" means that some of its calls are not merged; see below the table.
- *Cancelled*: a request that is cancelled at any step leaves no thread, no tensor and no setting in the modules.
- *Resumed*: a state saved at any step gives the same bytes. "At its step" means that no step is computed again;
  "restart", that all are. Classes that are not listed here restart.
- *Retried*: a request gives the same bytes if any of its module calls runs out of memory and is retried.

| Family | Class | Guest | By turns | Batched | Cancelled | Resumed | Retried |
|---|---|---|---|---|---|---|---|
"""


def table(rows: Sequence[Row]) -> str:
    """The document."""
    built = [row for row in rows if row.steps]
    lines = [HEAD.format(version=version("diffusers"), passed=sum(not row.failed for row in built), built=len(rows))]
    lines += [_line(row) for row in built]
    if alone := [(row.name, kind, reason) for row in built for kind, reason in row.alone.items()]:
        lines += ["\nCalls that are not merged, and why:\n\n"]
        lines += [f"- `{name}`, `{kind}`: {reason}\n" for name, kind, reason in alone]
    if failed := [row for row in rows if row.failed]:
        lines += ["\nChecks that fail, and why:\n\n"]
        lines += [f"- `{row.name}`, {what}: {reason}\n" for row in failed for what, reason in row.failed.items()]
    return "".join([*lines, command_line()])


def command_line() -> str:
    """What is compared through the command line, by tests/studio/diffusion/test_command_line.py."""
    names = ", ".join(f"`{name}`" for kind in words.COMPARED.values() for name in kind)
    count = sum(map(len, words.COMPARED.values()))
    where = "tests/studio/diffusion/test_command_line.py"
    text = (
        "`studio image`, `video` and `audio` with `--model FOLDER --seed N` give what the pipeline's own call gives "
        f"for that seed, within 2 of 255, for these {count} classes ({where}): {names}."
    )
    lines = [f"- {family}: {reason}\n" for family, reason in words.UNWORDED.items()]
    return (
        f"\n{textwrap.fill(text, 128, break_on_hyphens=False)}\n\nFamilies that are not compared so, and why:\n\n"
        + "".join(lines)
    )


def _line(row: Row) -> str:
    def mark(what: str) -> str:
        return "no" if what in row.failed else "yes"

    together = "no" if "batched" in row.failed else "alone" if row.always_alone else f"{row.difference:.0e}"
    how = "at its step" if row.resumes else "no" if "restarted" in row.failed else "restart"
    cells = [tiny.FAMILIES[row.name], f"`{row.name}`", mark("guest"), mark("interleaved"), together,
             mark("cancelled"), how, mark("retried")]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _prepare() -> None:
    """A worker: one thread, no warnings, and no search of the libraries' objects in each check for leaks."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()


def main() -> None:
    """Check the named classes, or all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of class names; all classes without")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the classes")
    parser.add_argument("--trace", action="store_true", help="print the traceback of each failure")
    given = parser.parse_args()
    names = [name for name in tiny.TINY if not given.words or any(word in name for word in given.words)]
    rows = []
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=spawned, initializer=_prepare) as pool:
        for row in pool.map(partial(conformance.check, trace=given.trace), names):
            rows.append(row)
            how = "at its step" if row.resumes else "restart"
            print(f"{row.name}: {row.seconds:.1f} s, {row.steps} steps, {row.difference:.1e}, {how}", end=" ")
            print(row.alone or "", row.failed or "passed", flush=True)
    if not given.words:
        (ROOT / "docs" / "pipelines.md").write_text(table(rows), "utf-8")
        names = sorted(row.name for row in rows if row.resumes)
        (ROOT / "studio" / "diffusion" / "resumes.json").write_text(json.dumps(names, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
