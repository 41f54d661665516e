"""Which pipelines of diffusers Studio steps, batches, cancels and resumes: a table over tiny random models.

python -m benchmarks.pipelines                     # all, and write docs/pipelines.md and the list of `resumes`
python -m benchmarks.pipelines Flux Wan --print    # classes whose names contain a word; write nothing
"""

from __future__ import annotations

import argparse
import warnings

from tests.studio.diffusion import conformance, tiny


def main() -> None:
    """Check the named classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of class names; all classes without")
    parser.add_argument("--print", action="store_true", dest="dry", help="write no file")
    parser.add_argument("--trace", action="store_true", help="print the traceback of each failure")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    names = [name for name in tiny.TINY if not given.words or any(word in name for word in given.words)]
    with tiny.one_thread():
        for name in names:
            row = conformance.check(name, trace=given.trace)
            how = "at its step" if row.resumes else "restart"
            print(f"{name}: {row.seconds:.1f} s, {row.steps} steps, {row.difference:.1e}, {how}", end=" ")
            print(row.alone or "", row.failed or "passed", flush=True)


if __name__ == "__main__":
    main()
