"""Checks regular expressions in Oniguruma's syntax against catastrophic backtracking (ReDoS).

Backtracking explodes with nested repetitions, with consecutive repetitions of the same characters, and with many
choices in sequence. So an unbounded repetition must contain one length and no choice, at most one repetition per branch
may be followed by something that can fail, and bounded choices must multiply to few. All known tokenizers pass.

Try it: ``fault(r"(a+)+$")``
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MOST_CHARACTERS = 4096
MOST_COUNT = 256
MOST_WAYS = 2000  # combinations of bounded choices; known patterns have about 40
MOST_SIZE = 10_000  # characters with counts expanded
_DEEPEST = 16


@dataclass
class _Properties:
    """The properties of a subexpression.

    Attributes:
        followed: unbounded repetitions that are followed by something that can fail.
        open: unbounded repetitions that are not (yet).
        fails: whether it can fail.
        fixed: whether it has one length and no choice.
        ways: the number of combinations of its bounded choices.
        size: characters, with counts expanded.
    """

    followed: int = 0
    open: int = 0
    fails: bool = False
    fixed: bool = True
    ways: int = 1
    size: int = 1


class _Bad(Exception):
    pass


def fault(pattern: str) -> str | None:
    """Why a pattern is rejected, as a predicate such as `ends too soon`; None if it is safe."""
    if not isinstance(pattern, str) or len(pattern) > MOST_CHARACTERS:
        return f"has more than {MOST_CHARACTERS:,} characters"
    try:
        reader = _Reader(pattern)
        found = reader.branches(0)
        if reader.at < len(pattern):
            raise _Bad("has an unmatched `)`")
    except _Bad as error:
        return str(error)
    return (
        "may backtrack without end: it has two repetitions before something that can fail"
        if found.followed > 1
        else None
    )


class _Reader:
    """A parser of one pattern."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def take(self, count: int = 1) -> str:
        part = self.text[self.at : self.at + count]
        if len(part) < count:
            raise _Bad("ends too soon")
        self.at += count
        return part

    def sees(self, *texts: str) -> bool:
        """Whether one of these comes next; it is consumed."""
        for each in texts:
            if self.text.startswith(each, self.at):
                self.at += len(each)
                return True
        return False

    def branches(self, depth: int) -> _Properties:
        """Branches separated by `|`, up to a `)` or the end."""
        if depth > _DEEPEST:
            raise _Bad("is nested too deep")
        parts = [self.branch(depth)]
        while self.sees("|"):
            parts.append(self.branch(depth))
        return _Properties(
            max(each.followed for each in parts), max(each.open for each in parts), all(each.fails for each in parts),
            len(parts) == 1 and parts[0].fixed, sum(each.ways for each in parts), sum(each.size for each in parts),
        )  # fmt: skip

    def branch(self, depth: int) -> _Properties:
        whole = _Properties()
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            part = self.repeated(self.atom(depth))
            if part.fails:
                whole.followed, whole.open = whole.followed + whole.open, 0
                whole.fails = True
            whole.followed += part.followed
            whole.open += part.open
            whole.fixed = whole.fixed and part.fixed
            whole.ways *= part.ways
            whole.size += part.size
            if whole.ways > MOST_WAYS:
                raise _Bad(f"may backtrack without end: its choices multiply to more than {MOST_WAYS:,}")
            if whole.size > MOST_SIZE:
                raise _Bad(f"expands to more than {MOST_SIZE:,} characters")
        return whole

    def atom(self, depth: int) -> _Properties:
        letter = self.take()
        if letter == "(":
            return self.group(depth)
        if letter == "[":
            self.members(0)
            return _Properties(fails=True)
        if letter == "\\":
            return self.escape()
        if letter in "*+?":
            raise _Bad(f"repeats nothing at `{letter}`")
        return _Properties(fails=True)

    def group(self, depth: int) -> _Properties:
        look = self.sees("?=", "?!", "?<=", "?<!")
        atomic = not look and self.sees("?>")
        if not look and not atomic and self.sees("?"):
            if self.sees("<", "'", "P<"):
                while self.take() not in ">'":
                    pass
            elif not self.sees(":"):
                while (flag := self.take()) in "imx-":
                    pass
                if flag == ")":
                    return _Properties()
                if flag != ":":
                    raise _Bad(f"has an unknown group `(?{flag}`")
        found = self.branches(depth + 1)
        if self.take() != ")":
            raise _Bad("has an unmatched `(`")
        if look:
            return replace(found, open=0, fails=True, fixed=True)
        return replace(found, open=0, fixed=False) if atomic else found

    def escape(self) -> _Properties:
        letter = self.take()
        if letter in "pP" and self.sees("{"):
            self.until("}")
        elif letter in "xu":
            if self.sees("{"):
                self.until("}")
        elif letter in "gk" or letter in "123456789":
            raise _Bad("has a backreference, which may backtrack without end")
        elif letter in "XR":
            return _Properties(fails=True, fixed=False)
        elif letter in "KGc":
            raise _Bad(f"has an unknown `\\{letter}`")
        return _Properties(fails=True)

    def until(self, end: str) -> str:
        found = self.text.find(end, self.at)
        if found < 0:
            raise _Bad("ends too soon")
        part = self.text[self.at : found]
        self.at = found + 1
        return part

    def members(self, depth: int) -> None:
        """The rest of a character class `[…]`, which may be nested."""
        if depth > _DEEPEST:
            raise _Bad("is nested too deep")
        self.sees("^")
        self.sees("]")
        while (letter := self.take()) != "]":
            if letter == "\\":
                self.escape()
            elif letter == "[":
                if self.sees(":"):
                    self.until("]")
                else:
                    self.members(depth + 1)

    def repeated(self, part: _Properties) -> _Properties:
        """A subexpression with its quantifier: `*`, `+`, `?`, `{n,m}`, each greedy, lazy or possessive."""
        while (bounds := self.bounds()) is not None:
            least, most = bounds
            possessive = not self.sees("?") and self.sees("+")
            if most is None or most > MOST_COUNT:
                if not part.fixed:
                    raise _Bad("may backtrack without end: it repeats a repetition or a choice")
                fails = least > 0 and part.fails
                part = _Properties(part.followed, not possessive, fails, False, size=part.size * (least + 1))
            elif (least, most) != (1, 1):
                if most > 1 and (part.open or part.followed):
                    raise _Bad("may backtrack without end: it repeats a repetition or a choice")
                ways = sum(min(part.ways, MOST_WAYS) ** min(count, 16) for count in range(least, most + 1))
                fixed, fails = part.fixed and least == most, least > 0 and part.fails
                part = _Properties(part.followed, part.open, fails, fixed, ways, part.size * most)
        return part

    def bounds(self) -> tuple[int, int | None] | None:
        if self.sees("*"):
            return 0, None
        if self.sees("+"):
            return 1, None
        if self.sees("?"):
            return 0, 1
        end = self.text.find("}", self.at)
        if not self.text.startswith("{", self.at) or end < 0:
            return None
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if not (least or most) or not all(each.isdecimal() and len(each) < 7 for each in (least, most) if each):
            return None
        self.at = end + 1
        low = int(least or 0)
        high = (int(most) if most else None) if comma else low
        if low > MOST_COUNT or (high or 0) > MOST_COUNT:
            raise _Bad(f"has a count over {MOST_COUNT}")
        return low, high
