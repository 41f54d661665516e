"""The page's files: ``/`` and ``/static``, by a fixed list of names.

They are the same for everybody, so they need no token; all that they show comes from ``/api``, which may. The page runs
no script and no style but its own files, and loads nothing from elsewhere.

Try it: ``curl -i http://127.0.0.1:7860/``
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from studio.errors import UnknownName

STATIC = Path(__file__).parent / "static"
PAGE = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
}  # fmt: skip
POLICY = "; ".join((
    "default-src 'self'", "img-src 'self' blob:", "media-src 'self' blob:", "object-src 'none'", "base-uri 'none'",
    "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
"""Pictures and clips may be blobs: previews, and files that were fetched with a token."""

router = APIRouter(include_in_schema=False)


@cache
def files() -> dict[str, bytes]:
    """The content of each file of the page, by name."""
    return {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in TYPES}


def is_public(method: str, path: str) -> bool:
    """Whether a request is for a file of the page, which needs no token."""
    name = PAGE if path == "/" else path.removeprefix("/static/")
    return method in ("GET", "HEAD") and (path == "/" or path == f"/static/{name}") and name in files()


@router.get("/")
def page() -> Response:
    """The page."""
    return _response(PAGE, "no-cache")


@router.get("/static/{name}")
def static(name: str) -> Response:
    """A file of the page. Its name has a hash of its content, so it never changes."""
    if name not in files():
        raise UnknownName("file of the page", name[:80], [])
    return _response(name, "public, max-age=31536000, immutable")


def _response(name: str, caching: str) -> Response:
    headers = {"Cache-Control": caching, "Content-Security-Policy": POLICY}
    return Response(files()[name], media_type=TYPES[Path(name).suffix], headers=headers)
