"""Measurements of attention backends on this machine: seconds by kind of problem and backend.

Only ``studio attention --tune`` writes them, atomically, to one small JSON file in the data folder. They are valid for
one set of library versions and one number of threads; a damaged or outdated file is ignored.

Try it: ``studio attention --shape 1,1024,8,64 --tune``
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from studio.attention.problem import Problem
from studio.devices import torch_setup
from studio.errors import MediaError
from studio.files import make_folder, read_limited, write_atomically
from studio.home import default_home
from studio.versions import installed

FILE = "attention.json"  # in the data folder
_ROWS = TypeAdapter(dict[str, dict[str, float]])
_MOST_BYTES = 4 << 20


class Table:
    """Seconds by kind of problem and backend. A `path` of None keeps the table in memory only."""

    def __init__(self, path: Path | None = None, rows: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.path = path
        self.rows = {kind: dict(found) for kind, found in (rows or {}).items()}

    @classmethod
    def load(cls, home: Path | None = None) -> Table:
        """The table of a data folder (by default the usual one); empty if there is no valid one."""
        path = (default_home() if home is None else home) / FILE
        if not path.is_file():
            return cls(path)
        try:
            found = json.loads(read_limited(path, _MOST_BYTES))
            if found["versions"] != versions():
                return cls(path)
            return cls(path, _ROWS.validate_python(found["rows"]))
        except (MediaError, ValueError, KeyError, TypeError, ValidationError):
            return cls(path)

    def fastest(self, problem: Problem) -> list[str]:
        """Backends measured for problems of this kind, fastest first."""
        found = self.rows.get(kind_of(problem), {}) if self.rows else {}
        return sorted(found, key=lambda name: found[name])

    def record(self, problem: Problem, seconds: Mapping[str, float]) -> None:
        """Replace the measurements for a problem's kind."""
        self.rows[kind_of(problem)] = dict(seconds)

    def save(self) -> None:
        """Write the file. Raises StoreError."""
        if self.path is None:
            return
        make_folder(self.path.parent)
        text = json.dumps({"versions": versions(), "rows": self.rows}, indent=1)
        write_atomically(self.path, text.encode())


def kind_of(problem: Problem) -> str:
    """The key of a problem: device, sizes to a power of two, dtype, head sizes, bias."""
    sizes = [_rounded(n) for n in (problem.batch * problem.heads, problem.queries, problem.keys)]
    bias = " + ".join(sorted(problem.kinds)) or "none"
    if problem.open or problem.plain_causal:
        bias = "none" if problem.open else "causal"
    for part in problem.bias.parts if problem.bias else ():
        if (density := getattr(part, "density", None)) is not None:
            bias += f" {_rounded(round(1 / density))}"
    device = problem.device.type
    if device == "cuda":
        import torch

        device = torch.cuda.get_device_name(problem.device)
    groups = problem.heads // max(1, problem.kv_heads)
    more = (problem.dtype_name, f"{problem.head_dim}/{problem.value_dim}", f"groups {groups}", bias)
    return " ".join((device, "x".join(map(str, sizes)), *more, *(["grad"] if problem.grad else [])))


def versions() -> dict[str, str]:
    """The versions and the number of threads that a measurement is valid for."""
    names = ("multimodal-studio", "torch", "xformers", "triton")
    return {"threads": str(torch_setup.threads())} | installed({name: name for name in names})


def _rounded(n: int) -> int:
    """The nearest power of two, rounding up from a factor of 1.5."""
    return 1 << max(0, (2 * n // 3)).bit_length() if n > 1 else n
