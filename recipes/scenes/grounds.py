"""Backgrounds drawn by rules with random variations: uint8 pictures of grass, sea, night and so on.

Try it: `PIL.Image.fromarray(draw("sunset", 128, np.random.default_rng(0)))`
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RGB = {
    "red": (222, 40, 44), "orange": (248, 138, 24), "yellow": (250, 214, 44), "green": (58, 168, 66),
    "blue": (44, 98, 222), "purple": (136, 62, 192), "pink": (248, 140, 190), "brown": (128, 80, 46),
    "black": (40, 40, 44), "white": (242, 242, 244), "grey": (140, 142, 146), "turquoise": (40, 200, 194),
}  # fmt: skip
"""The colours by name."""

_Rng = np.random.Generator


def _shades(top: tuple[int, int, int], bottom: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """A float32 gradient (height, width, 3) from `top` to `bottom`."""
    share = np.linspace(0, 1, max(height, 1), dtype=np.float32)[:, None, None]
    rows = (1 - share) * np.array(top, np.float32) + share * np.array(bottom, np.float32)  # (H, 1, 3)
    return np.repeat(rows, width, axis=1)


def _speckle(part: np.ndarray, rng: _Rng, strength: float) -> None:
    """Add grain of 4x4 pixels, in place."""
    h, w = part.shape[:2]
    coarse = rng.normal(0, strength, (h // 4 + 1, w // 4 + 1, 1)).astype(np.float32)
    part += coarse.repeat(4, axis=0).repeat(4, axis=1)[:h, :w]


def _land(
    sky: tuple[tuple[int, int, int], tuple[int, int, int]], land: tuple[tuple[int, int, int], tuple[int, int, int]],
    grain: float, horizon: tuple[float, float] = (0.35, 0.55),
) -> Callable[[int, _Rng], np.ndarray]:  # fmt: skip
    def made(size: int, rng: _Rng) -> np.ndarray:
        at = int(size * rng.uniform(*horizon))
        below = _shades(*land, size - at, size)
        _speckle(below, rng, grain)
        return np.concatenate([_shades(*sky, at, size), below])

    return made


def _discs(picture: np.ndarray, rng: _Rng, count: int, radius: tuple[float, float], colour: tuple[int, int, int],
           below: float) -> None:  # fmt: skip
    """Discs of one colour in the upper part of the picture (down to `below`), in place."""
    size = len(picture)
    y, x = np.ogrid[:size, :size]
    for _ in range(count):
        cy, cx, r = rng.uniform(0, below) * size, rng.uniform(0, size), rng.uniform(*radius) * size
        picture[(y - cy) ** 2 + (x - cx) ** 2 <= r * r] = colour


def _peaks(picture: np.ndarray, rng: _Rng, base: float, colour: tuple[int, int, int], snow: bool) -> None:
    """Three to five triangles with their bases at `base`, in place; with `snow` their tops are white."""
    size = len(picture)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    for cx in np.linspace(0.05, 0.95, int(rng.integers(3, 6))) + rng.uniform(-0.1, 0.1):
        top, half = base - rng.uniform(0.2, 0.4), rng.uniform(0.25, 0.4)
        inside = (y <= base) & (y - top >= (base - top) * abs(x - cx) / half)
        shade = 1 - 0.25 * ((x > cx) & inside)[..., None]
        picture[inside] = (np.array(colour, np.float32) * shade)[inside]
        if snow:
            picture[inside & (y < top + 0.1)] = (244, 246, 250)


def _night(size: int, rng: _Rng) -> np.ndarray:
    picture = _shades((8, 12, 44), (30, 40, 96), size, size)
    _discs(picture, rng, 30, (0.004, 0.012), (250, 246, 210), 0.9)
    if rng.random() < 0.4:
        _discs(picture, rng, 1, (0.06, 0.08), (248, 240, 190), 0.25)
    return picture


def _sea(size: int, rng: _Rng) -> np.ndarray:
    picture = _land(((150, 208, 250), (214, 238, 254)), ((38, 128, 200), (14, 70, 150)), 3, (0.2, 0.4))(size, rng)
    for y in rng.integers(size // 2, size, 8):
        x = rng.integers(0, size - size // 5)
        picture[y : y + max(1, size // 64), x : x + size // 6] += 40
    return picture


def _sky(size: int, rng: _Rng) -> np.ndarray:
    picture = _shades((84, 164, 240), (190, 226, 252), size, size)
    for _ in range(int(rng.integers(1, 4))):
        cy, cx = rng.uniform(0.05, 0.9) * size, rng.uniform(0.1, 0.9) * size
        y, x = np.ogrid[:size, :size]
        for shift in (-0.08, 0, 0.08):
            inside = ((y - cy) / 0.05) ** 2 + ((x - cx - shift * size) / 0.09) ** 2 <= size * size
            picture[inside] = (246, 250, 254)
    return picture


def _street(size: int, rng: _Rng) -> np.ndarray:
    at = int(size * rng.uniform(0.5, 0.62))
    picture = np.concatenate([_shades((170, 210, 240), (216, 232, 244), at, size),
                              _shades((96, 98, 104), (70, 72, 78), size - at, size)])  # fmt: skip
    x = 0
    while x < size:
        width, height = int(size * rng.uniform(0.12, 0.25)), int(size * rng.uniform(0.2, 0.45))
        wall = rng.choice([(206, 150, 120), (180, 176, 168), (222, 200, 160), (160, 130, 130)])
        top = max(0, at - height)
        picture[top:at, x : x + width] = wall
        step = max(4, size // 16)
        for wy in range(top + step // 2, at - step // 2, step):
            picture[wy : wy + step // 2, x + step // 2 : min(x + width - 2, size) : step] = (250, 240, 180)
        x += width
    picture[at : at + max(2, size // 24)] = (176, 176, 176)
    middle = (at + size) // 2
    for x in range(0, size, size // 4):
        picture[middle : middle + max(1, size // 48), x : x + size // 8] = (246, 246, 240)
    return picture


def _room(size: int, rng: _Rng) -> np.ndarray:
    at = int(size * rng.uniform(0.6, 0.72))
    wall = rng.choice([(244, 226, 196), (220, 232, 222), (226, 220, 238), (248, 220, 210)])
    picture = np.concatenate([_shades(tuple(wall), tuple(wall - 14), at, size),
                              _shades((176, 124, 80), (146, 96, 58), size - at, size)])  # fmt: skip
    picture[at : at + max(1, size // 40)] = (250, 248, 244)
    x, y, side = int(size * rng.uniform(0.08, 0.6)), int(size * 0.1), size // 4
    picture[y - 3 : y + side + 3, x - 3 : x + side + 3] = (252, 252, 250)
    picture[y : y + side, x : x + side] = (158, 208, 244)
    picture[y : y + side, x + side // 2] = picture[y + side // 2, x : x + side] = (252, 252, 250)
    for y in range(at + size // 12, size, size // 10):
        picture[y] -= 16
    return picture


def _mountains(size: int, rng: _Rng) -> np.ndarray:
    picture = _land(((130, 194, 248), (222, 240, 254)), ((120, 160, 96), (92, 132, 76)), 4, (0.55, 0.65))(size, rng)
    _peaks(picture, rng, 0.62, (124, 130, 150), snow=True)
    return picture


def _sunset(size: int, rng: _Rng) -> np.ndarray:
    at = int(size * rng.uniform(0.58, 0.72))
    picture = np.concatenate([_shades((94, 52, 120), (252, 160, 70), at, size),
                              _shades((150, 70, 80), (70, 36, 66), size - at, size)])  # fmt: skip
    y, x = np.ogrid[:size, :size]
    cx, r = rng.uniform(0.25, 0.75) * size, rng.uniform(0.1, 0.15) * size
    sun = ((y - at) ** 2 + (x - cx) ** 2 <= r * r) & (y < at)
    picture[sun] = (255, 232, 130)
    if rng.random() < 0.5:
        _peaks(picture, rng, at / size + 0.02, (84, 48, 84), snow=False)
    return picture


def _forest(size: int, rng: _Rng) -> np.ndarray:
    picture = _land(((176, 214, 190), (196, 226, 190)), ((92, 140, 70), (64, 106, 50)), 5, (0.5, 0.6))(size, rng)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    for cx in np.linspace(0, 1, 9) + rng.uniform(-0.05, 0.05, 9):
        foot, top, half = rng.uniform(0.55, 0.66), rng.uniform(0.02, 0.2), rng.uniform(0.07, 0.12)
        picture[(abs(x - cx) < 0.015) & (y > foot - 0.1) & (y < foot)] = (96, 66, 44)
        crown = (y <= foot - 0.06) & ((y - top) / (foot - top) >= abs(x - cx) / half)
        picture[crown] = np.float32(rng.choice([(36, 104, 56), (50, 122, 60), (28, 86, 50)]))
    return picture


_DRAWN: dict[str, Callable[[int, _Rng], np.ndarray]] = {
    "grass": _land(((150, 210, 250), (220, 240, 252)), ((124, 196, 78), (70, 148, 50)), 7),
    "sand": _land(((140, 206, 250), (220, 240, 252)), ((244, 218, 160), (222, 184, 116)), 4),
    "snow": _land(((176, 206, 234), (222, 234, 244)), ((250, 252, 255), (214, 228, 244)), 2),
    "night": _night, "sea": _sea, "sky": _sky, "street": _street, "room": _room, "mountains": _mountains,
    "sunset": _sunset, "forest": _forest,
}  # fmt: skip


def draw(ground: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """The background as uint8 (size, size, 3): one of `scene.GROUNDS`, `<colour> background`, or white for no name."""
    if not ground:
        return np.full((size, size, 3), 255, np.uint8)
    if ground in _DRAWN:
        made = _DRAWN[ground](size, rng)
    else:
        made = np.empty((size, size, 3), np.float32)
        made[:] = np.array(RGB[ground.removesuffix(" background")], np.float32)
    made = made * rng.uniform(0.93, 1.05) + rng.normal(0, 4, 3).astype(np.float32)
    if rng.random() < 0.5:
        made = made[:, ::-1]
    return made.clip(0, 255).astype(np.uint8)
