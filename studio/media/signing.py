"""Content Credentials (C2PA): a signature over a file, and how it was made. Needs the extra `c2pa`.

The manifest has one action, `c2pa.created` with the digital source type of the AI label, and no prompt. It is the last
thing that is added to a file: any later change breaks it. Nothing is fetched and no time is asked of a server, so the
signature counts while the certificate is valid. Signatures differ each time.

Try it: ``studio image "a kiwi" -o a.png --sign certificates.pem --key key.pem``
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import MediaError, UsageError
from studio.files import read_limited

if TYPE_CHECKING:
    from studio.media.label import Label

FORMATS = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".avif": "image/avif", ".webp": "image/webp",
    ".gif": "image/gif", ".mp4": "video/mp4", ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg",
}  # fmt: skip
_MOST_BYTES = 1 << 20
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": True, "verify_trust": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
}  # the certificate may be one that no list of trusted authorities has


@dataclass(frozen=True)
class Signer:
    """Signs files with a key.

    Attributes:
        certificate: a PEM file: the certificate, then those of its authorities.
        key: a PEM file with the private key, without password: ECDSA (P-256, P-384, P-521), RSA or Ed25519.
    """

    certificate: Path
    key: Path

    def check(self, suffix: str) -> None:
        """Sign nothing, but raise what `sign` would: UsageError for a missing package, a file that is not what it must
        be, or a format that cannot be signed.
        """
        _c2pa()
        if suffix not in FORMATS:
            known = ", ".join(FORMATS)
            raise UsageError(f"{suffix} files cannot be signed", hint=f"choose one of these: {known}")
        self._algorithm()

    def sign(self, file: bytes, suffix: str, label: Label | None) -> bytes:
        """The signed file of the format of `suffix`. Raises UsageError as `check`, and for media without a label."""
        self.check(suffix)
        if label is None or not label.source:
            raise UsageError("only media with an AI label can be signed", hint="leave out `--no-label`, or `--sign`")
        c2pa, made = _c2pa(), io.BytesIO()
        try:
            info = c2pa.C2paSignerInfo(self._algorithm(), self._read(self.certificate), self._read(self.key), None)
            with (
                c2pa.Context(c2pa.Settings.from_dict(_SETTINGS)) as context,
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder(_manifest(label), context) as builder,
            ):
                builder.sign(signer, FORMATS[suffix], io.BytesIO(file), made)
        except c2pa.C2paError as error:
            reason = f"`{self.certificate}` and `{self.key}` cannot sign: {str(error)[:120]}"
            raise UsageError(
                reason, hint="C2PA asks for a certificate for signing documents or mail, and its chain"
            ) from error
        return made.getvalue()

    def _algorithm(self) -> str:
        """The name of the key's algorithm. Raises UsageError."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(self._read(self.key), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"`{self.key}` is not a private key in PEM form without a password") from error
        if b"-----BEGIN CERTIFICATE-----" not in self._read(self.certificate):
            raise UsageError(f"`{self.certificate}` has no certificate in PEM form")
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        if isinstance(key, rsa.RSAPrivateKey):
            return "PS256"
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return "Ed25519"
        raise UsageError(f"the key in `{self.key}` cannot sign", hint="use ECDSA (P-256, P-384, P-521), RSA or Ed25519")

    def _read(self, path: Path) -> bytes:
        try:
            return read_limited(path, _MOST_BYTES)
        except MediaError as error:
            raise UsageError(error.message) from error


def _manifest(label: Label) -> str:
    """What is signed, as JSON."""
    generator = {"name": label.producer or "multimodal-studio", "version": version("multimodal-studio")}
    action = {"action": "c2pa.created", "digitalSourceType": label.source_uri}
    return json.dumps(
        {
            "claim_generator_info": [generator],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
    )


def _c2pa() -> Any:
    """The package c2pa. Raises UsageError if it is not installed."""
    try:
        import c2pa
    except ImportError:
        message = "signing needs the package `c2pa-python`, which is not installed"
        raise UsageError(message, hint='install it: `pip install "multimodal-studio[c2pa]"`') from None
    return c2pa
