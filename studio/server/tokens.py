"""Access tokens of a data folder: only their hashes are stored, in ``tokens.json``.

A token has 256 random bits, so its SHA-256 needs no salt and no slow hash. The file is read again when it changes, so
that a token can be created or revoked while a server runs.

Try it: ``studio token create laptop``
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from studio.errors import InputError, MediaError, StoreError, UnknownName, UsageError
from studio.files import make_folder, read_limited, write_atomically
from studio.spec import Frozen

FILE = "tokens.json"
PREFIX = "studio-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_MOST_BYTES = 1 << 20


class AccessToken(Frozen):
    """A stored token: its name, the SHA-256 of its text in hex, and when it was created (ISO 8601, UTC)."""

    name: str = Field(max_length=40)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: str = Field(max_length=40)


class _TokenFile(Frozen):
    tokens: tuple[AccessToken, ...] = ()


class AccessTokens:
    """The tokens of one data folder."""

    def __init__(self, home: Path) -> None:
        self.path = home / FILE
        self._stamp: tuple[int, int] | None = None
        self._read: tuple[AccessToken, ...] = ()

    def all(self) -> tuple[AccessToken, ...]:
        """The stored tokens, oldest first. Raises StoreError for a damaged file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return ()
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._read, self._stamp = self._parsed(), stamp
        return self._read

    def create(self, name: str) -> str:
        """Store a new token and return its text, which cannot be read again. Raises InputError, UsageError for a name
        that is taken, StoreError.
        """
        if not _NAME.fullmatch(name):
            raise InputError("name", f"`{name[:60]}` is not a token's name", hint="use 1 to 40 letters, digits, `.-_`")
        if any(each.name == name for each in self.all()):
            raise UsageError(f"a token called `{name}` exists", hint=f"revoke it with `studio token revoke {name}`")
        text = PREFIX + secrets.token_urlsafe(32)
        made = AccessToken(name=name, sha256=hash_of(text), created=datetime.now(UTC).isoformat(timespec="seconds"))
        self._write((*self.all(), made))
        return text

    def revoke(self, name: str) -> None:
        """Remove a token. Raises UnknownName, StoreError."""
        kept = tuple(each for each in self.all() if each.name != name)
        if len(kept) == len(self.all()):
            raise UnknownName("token", name, [each.name for each in self.all()])
        self._write(kept)

    def name_of(self, text: str) -> str | None:
        """The name of the token with this text, or None."""
        digest = hash_of(text)
        found = [each.name for each in self.all() if hmac.compare_digest(each.sha256, digest)]
        return found[0] if found else None

    def _parsed(self) -> tuple[AccessToken, ...]:
        try:
            return _TokenFile.model_validate_json(read_limited(self.path, _MOST_BYTES)).tokens
        except (MediaError, ValidationError) as error:
            hint = "remove it, and create the tokens again with `studio token create`"
            raise StoreError(f"cannot read the tokens in `{self.path}`", hint=hint) from error

    def _write(self, tokens: tuple[AccessToken, ...]) -> None:
        make_folder(self.path.parent)
        text = json.dumps(_TokenFile(tokens=tokens).model_dump(mode="json"), indent=1) + "\n"
        write_atomically(self.path, text.encode(), private=True)


def hash_of(text: str) -> str:
    """The SHA-256 of a token in hex."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
