"""The built-in workflows by name: `best` is the file `best.yaml` in the package (package data).

Try it: ``studio run --list``
"""

from __future__ import annotations

from pathlib import Path

from studio.errors import UnknownName
from studio.workflow.document import read

FOLDER = Path(__file__).parents[1] / "pipelines"


def shipped() -> dict[str, Path]:
    """The files of the built-in workflows, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def about(path: Path) -> str:
    """The description (`about`) in a workflow file. Raises WorkflowError for a file that is not a workflow."""
    found = read(path).get("about")
    return str(found.data) if found else ""


def find(what: Path | str) -> Path:
    """The file at this path, or the built-in workflow of this name. Raises UnknownName if there is neither.

    An existing file takes precedence. A name with a folder or a suffix is a path, even if the file does not exist.
    """
    path = Path(what)
    if path.exists() or path.name != str(what) or path.suffix:
        return path
    known = shipped()
    if str(what) not in known:
        raise UnknownName("file or built-in workflow", str(what), known)
    return known[str(what)]
