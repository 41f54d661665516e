"""Public-domain clip art (openclipart 0.18) with its titles and keywords, filtered to pictures of things.

Pictures are from the PNG package; words are in the RDF metadata of the SVG package's file of the same name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from recipes.data.record import Record
from studio.media.pictures import square_on_white

FOLDERS = ("animals", "food", "plants", "transportation", "tools", "recreation", "buildings", "office", "electronics",
           "computer", "containers", "science", "people", "education")  # fmt: skip
_TITLE = re.compile(r"<dc:title>([^<]{2,80})</dc:title>")
_WORD = re.compile(r"<rdf:li>([^<]{2,40})</rdf:li>")
_NOISE = re.compile(
    r"clip ?art( by .*)?|openclipart|\.svg|_|\d+|\b(remix|vector|icon|outline|simple|by)\b", re.IGNORECASE
)
_SKIP = re.compile(
    r"naked|nude|sexy|erotic|weapon|nazi|swastika|porn|breast|bikini girl|button|silhouette|contour|"
    r"flag|logo|sign|icon|letter|unknown|untitled|black and white|line ?art|colou?ring",
    re.IGNORECASE,
)
MAX_PIXELS = 12_000_000


def _words(svg: str) -> tuple[str, tuple[str, ...]]:
    """Title and keywords of an SVG's RDF, cleaned of numbers and drawing-program noise; empty strings dropped."""
    titles = [re.sub(r"\s+", " ", _NOISE.sub(" ", title)).strip(" -:,.").lower() for title in _TITLE.findall(svg)]
    title = next((title for title in titles if len(title) > 2), "")
    words = tuple(dict.fromkeys(word.strip().lower().replace("_", " ") for word in _WORD.findall(svg)))
    return title, tuple(word for word in words if len(word) > 2 and word.isascii())[:6]


def _open(path: Path) -> PIL.Image.Image:
    """Open without Pillow's size warning: only the header is read here, and `MAX_PIXELS` limits decoding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        return PIL.Image.open(path)


def read(pictures: Path, vectors: Path, size: int) -> Iterator[tuple[Record, np.ndarray]]:
    """Yield a record and its picture (uint8, (size, size, 3), on white) for each drawing that passes the filter.

    Skipped: folders of signs and shapes, adult or empty titles, pictures of over twelve megapixels (posters), and
    drawings that are nearly all white or use almost no colour (outlines).

    Args:
        pictures: the PNG package's `openclipart/png` folder.
        vectors: the SVG package's `openclipart/svg` folder.
        size: side of the output pictures, in pixels.
    """
    for folder in FOLDERS:
        for path in sorted((pictures / folder).rglob("*.png")):
            vector = (vectors / path.relative_to(pictures)).with_suffix(".svg")
            if not vector.exists():
                continue
            title, tags = _words(vector.read_text("utf-8", errors="replace"))
            if not title or len(title.split()) > 5 or not title.isascii() or _SKIP.search(f"{title} {' '.join(tags)}"):
                continue
            try:
                picture = _open(path)
            except PIL.Image.DecompressionBombError:
                continue
            with picture:
                if picture.width * picture.height > MAX_PIXELS or max(picture.size) > 3 * min(picture.size):
                    continue
                pixels = square_on_white(picture, size)
            painted = pixels.min(axis=2) < 245
            colour = (pixels.max(axis=2).astype(int) - pixels.min(axis=2)) > 40
            if painted.mean() < 0.12 or colour.mean() < 0.10:
                continue
            yield Record(id=f"clipart-{path.relative_to(pictures).with_suffix('')}", source="clipart", group=folder,
                         label=title, tags=tuple(tag for tag in tags if tag != title)), pixels  # fmt: skip
