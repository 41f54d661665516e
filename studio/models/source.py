"""Parsing a model's name: `hf:`, `pypi:`, `npm:` and `file:` sources, and the short names of `known.json`.

Nothing is looked up on the network or on the disk.

Try it: ``studio.models.source.parse("hf:openai-community/gpt2@main")``
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from studio.errors import ModelError, UsageError, nearest
from studio.files import expanded
from studio.models.formats import check_name

_WORD = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_PATTERNS = {
    "hf": re.compile(rf"(?P<name>{_WORD}/{_WORD})(?:@(?P<version>[\w.-]+))?(?:/(?P<file>.+))?", re.A),
    "pypi": re.compile(rf"(?P<name>{_WORD})==(?P<version>[\w.!+-]+)(?:/(?P<file>.+))?", re.A),
    "npm": re.compile(r"(?P<name>(?:@[\w.-]+/)?\w[\w.-]*)@(?P<version>\d[\w.+-]*)(?:/(?P<file>.+))?", re.A),
}
FORMS = {
    "hf": "hf:OWNER/NAME[@REVISION][/FILE]",
    "pypi": "pypi:NAME==VERSION[/FILE]",
    "npm": "npm:NAME@VERSION[/FILE]",
    "file": "file:PATH",
}


@dataclass(frozen=True)
class ModelSource:
    """The source of a model.

    Attributes:
        scheme: `hf`, `pypi`, `npm` or `file`.
        name: of the repository or package; for `file` the absolute path.
        version: of the package, or the revision of the repository; None: its default branch.
        file: a single file; None: all files in safe formats.
    """

    scheme: str
    name: str
    version: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        """The source in canonical form."""
        at = {"pypi": "==", "file": ""}.get(self.scheme, "@")
        version = f"{at}{self.version}" if self.version else ""
        return f"{self.scheme}:{self.name}{version}{f'/{self.file}' if self.file else ''}"


@dataclass(frozen=True)
class Known:
    """A model with a short name: its source, and the sha256 of its files by name."""

    source: ModelSource
    about: str
    licence: str
    sha256: dict[str, str]


def parse(text: str) -> ModelSource:
    """Parse a source or a short name. Raises UsageError, which shows the forms."""
    if text in known():
        return known()[text].source
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in FORMS:
        guess = f"did you mean `{near}`? " if (near := nearest(text, list(known()))) else ""
        hint = f"{guess}write {', '.join(FORMS.values())}, or a short name ({', '.join(known())})"
        raise UsageError(f"`{text}` is not a model source", hint=hint)
    if scheme == "file":
        if not rest:
            raise UsageError("`file:` has no path", hint=f"write {FORMS['file']}")
        if not rest.isprintable():  # it is written into the lock file, which is UTF-8, and is shown
            raise UsageError(
                f"the path {rest!r} has unprintable characters", hint=f"rename it, then write {FORMS['file']}"
            )
        return ModelSource("file", str(expanded(rest).absolute()))
    found = _PATTERNS[scheme].fullmatch(rest)
    if found is None:
        raise UsageError(f"`{text}` is not a valid `{scheme}:` source", hint=f"write {FORMS[scheme]}")
    try:
        file = check_name(found["file"]) if found["file"] else None
    except ModelError as error:
        raise UsageError(error.message, hint=f"write {FORMS[scheme]}") from None
    name = re.sub(r"[-_.]+", "-", found["name"]).lower() if scheme == "pypi" else found["name"]  # as pip reads it
    return ModelSource(scheme, name, found["version"], file)


def is_source(text: str) -> bool:
    """Whether `text` is a source or a short name, and not a path."""
    return text in known() or text.startswith(tuple(f"{scheme}:" for scheme in FORMS))


@cache
def known() -> dict[str, Known]:
    """The short names."""
    known_models = json.loads(Path(__file__).with_name("known.json").read_text("utf-8"))
    return {name: Known(_parsed(each.pop("source")), **each) for name, each in known_models.items()}


def _parsed(text: str) -> ModelSource:
    scheme, _, rest = text.partition(":")
    found = _PATTERNS[scheme].fullmatch(rest)
    assert found, text
    return ModelSource(scheme, found["name"], found["version"], found["file"])
