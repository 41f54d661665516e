r"""The prompt syntax of A1111's web UI and ComfyUI: weights, escapes, `BREAK`, and tags.

``(red:1.4)`` gives `red` the weight 1.4, ``(red)`` 1.1, ``[red]`` 1 / 1.1; brackets nest and their weights multiply.
``\(`` is a literal bracket. ``(16:9)`` is text: a ratio, where a number without a decimal point follows a digit.
`BREAK` starts a new part, which is encoded separately. Tags such as ``<lora:name:0.8>`` are ignored, with a notice.
Unmatched brackets are text. The weights multiply the text encoder's states.

Try it: ``pieces("a (red:1.4) apple")`` is ``[("a ", 1.0), ("red", 1.4), (" apple", 1.0)]``
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

LARGEST = 3.0
STRESS = 1.1
"""The weight of plain brackets."""

Piece = tuple[str, float]
_TOKEN = re.compile(r"\\[()\[\]\\<>]|[()\[\]]|\s*\bBREAK\b\s*|<[A-Za-z]+:[^<>]*>|[^\\()\[\]<B\s]+|.", re.DOTALL)
_WEIGHT = re.compile(r"(?s)(.*):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")
_EDIT = re.compile(r"(?s)([^:]*):(?:([^:]*):)?\s*\d*\.?\d+\s*")
_CLOSES = {")": "(", "]": "["}
_OTHERS = (
    (re.compile(r"\{[^{}]*\|[^{}]*\}"), "a choice in `{…|…}`"), (re.compile(r"\sAND\s"), "`AND` between prompts"),
    (re.compile(r"\bembedding:\s*\S"), "`embedding:`"), (re.compile(r"\b__[^\s_][^\s]*__"), "a wildcard in `__…__`"),
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt.

    Attributes:
        parts: the parts between the `BREAK`s, each as pieces of text with their weights.
        notices: syntax that is not supported, for the user.
    """

    parts: tuple[tuple[Piece, ...], ...]
    notices: tuple[str, ...] = ()

    @property
    def pieces(self) -> list[Piece]:
        """The pieces of all parts."""
        return [piece for part in self.parts for piece in part]

    @property
    def text(self) -> str:
        """The text without weights, for models that do not support them."""
        return " ".join("".join(text for text, _ in part).strip() for part in self.parts).strip()

    @property
    def plain(self) -> bool:
        """Whether the prompt is only text."""
        return len(self.parts) == 1 and all(weight == 1 for _, weight in self.pieces)


@dataclass(frozen=True)
class _Atom:
    """A bit of the prompt: its text, its weight so far, and whether it was written unescaped."""

    text: str
    weight: float = 1.0
    bare: bool = False
    is_break: bool = False


def pieces(prompt: str) -> list[Piece]:
    """The prompt as pieces with weights; one piece if it has no weights. Raises ValueError as `read`."""
    return read(prompt).pieces


def read(prompt: str) -> Prompt:
    """Parse a prompt. Raises ValueError for a weight outside 0 to LARGEST."""
    atoms: list[_Atom] = []
    opened: list[tuple[str, int]] = []  # open brackets, with their index in `atoms`
    notices: list[str] = []
    for match in _TOKEN.finditer(prompt):
        token = match[0]
        if token[0] == "\\" and len(token) > 1:
            atoms.append(_Atom(token[1]))
        elif token in ("(", "["):
            opened.append((token, len(atoms)))
            atoms.append(_Atom(token, bare=True))
        elif token in _CLOSES and any(kind == _CLOSES[token] for kind, _ in opened):
            while opened[-1][0] != _CLOSES[token]:
                opened.pop()  # never closed: text
            _, at = opened.pop()
            atoms[at:] = _grouped(token, atoms[at + 1 :], notices)
        elif token.strip() == "BREAK":
            atoms.append(_Atom(token, is_break=True))
        elif token[0] == "<" and len(token) > 1:
            notices.append(f"`{token}` is ignored: LoRA and other tags are not supported in prompts")
        else:
            atoms.append(_Atom(token, bare=True))
    for pattern, name in _OTHERS:
        if pattern.search(prompt):
            notices.append(f"{name} is not supported in prompts, and is read as text")
    return Prompt(_parts(atoms, notices), tuple(dict.fromkeys(notices)))


def _grouped(close: str, inside: list[_Atom], notices: list[str]) -> list[_Atom]:
    """The content of a pair of brackets, weighted; with the brackets if they are text."""
    tail = "".join(atom.text if atom.bare else "\0" for atom in inside)  # an escaped colon does not count
    written = "".join(atom.text for atom in inside)
    if close == "]":
        edit = _EDIT.fullmatch(tail)
        if edit or "|" in tail:
            kept = (edit[1] or edit[2] or "") if edit else tail.split("|")[0]
            notices.append(f"`[{written}]` is read as `{kept}`: prompt editing between steps is not supported")
            return [_Atom(kept)]
        return _times(inside, 1 / STRESS)
    found = _WEIGHT.fullmatch(tail)
    if found is None or not found[1].strip():
        return _times(inside, STRESS) if found is None else [_Atom("("), *inside, _Atom(")")]
    if found[1].rstrip()[-1].isdigit() and "." not in found[2]:  # a ratio, a scale, a time
        return [_Atom("("), *inside, _Atom(")")]
    weight = float(found[2])
    if not 0 <= weight <= LARGEST:
        raise ValueError(f"gives `{found[1].strip()}` the weight {found[2]}, but weights are from 0 to {LARGEST:g}; "
                         r"write \( and \) for literal brackets")  # fmt: skip
    return _times(_cut(inside, len(found[1])), weight)


def _cut(atoms: list[_Atom], length: int) -> list[_Atom]:
    """The first `length` characters."""
    kept: list[_Atom] = []
    for atom in atoms:
        kept.append(replace(atom, text=atom.text[:length]))
        length -= len(atom.text)
        if length <= 0:
            break
    return [atom for atom in kept if atom.text]


def _times(atoms: list[_Atom], weight: float) -> list[_Atom]:
    return [replace(atom, weight=atom.weight * weight) for atom in atoms]


def _parts(atoms: list[_Atom], notices: list[str]) -> tuple[tuple[Piece, ...], ...]:
    """Atoms joined by weight; nested weights above the largest are clamped to it."""
    parts: list[list[Piece]] = [[]]
    for atom in atoms:
        if atom.is_break:
            parts.append([])
            continue
        weight = round(atom.weight, 6)
        if weight > LARGEST:
            notices.append(f"nested brackets give the weight {weight:.3g}; {LARGEST:g}, the largest, is used")
            weight = LARGEST
        part = parts[-1]
        if part and part[-1][1] == weight:
            part[-1] = (part[-1][0] + atom.text, weight)
        else:
            part.append((atom.text, weight))
    return tuple(tuple(part) for part in parts if part) or ((),)
