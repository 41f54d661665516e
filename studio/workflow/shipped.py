"""The workflows that ship with Studio, by name: `best` stands for the file `best.yaml` in the package.

They are package data, so they are there wherever Studio is installed. This module knows nothing of graphs.

Try it: ``studio run --list``
"""

from __future__ import annotations

from pathlib import Path

from studio.errors import UnknownName
from studio.workflow.document import read

FOLDER = Path(__file__).parents[1] / "pipelines"


def shipped() -> dict[str, Path]:
    """The files of the workflows that ship, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def about(path: Path) -> str:
    """What a workflow file says about itself. Raises WorkflowError for a file that is not a workflow."""
    found = read(path).get("about")
    return str(found.data) if found else ""


def find(what: Path | str) -> Path:
    """The file of this path, or the workflow that ships under this name. Raises UnknownName for a name of neither.

    A file that exists comes first. What has a folder or a suffix is taken for a path, even if nothing is there.
    """
    path = Path(what)
    if path.exists() or path.name != str(what) or path.suffix:
        return path
    known = shipped()
    if str(what) not in known:
        raise UnknownName("file or shipped workflow", str(what), known)
    return known[str(what)]
