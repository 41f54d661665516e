"""Motion classification: tracks of an object on white through a clip, and their motion, by rules.

The rules do not depend on a model or on the prompt. They use the object's centre, size and darkness in each frame, and
its rotation over a quarter of the clip. The result is one of eleven motions, or none.

Try it: `recognise(tracks(frames))` of uint8 frames (T, H, W, 3)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NONE = "none"
LEAST = 0.06  # of a side: a centre that moves less stands still
LEAST_TURN = 8.0  # degrees in a quarter of the clip: what turns less does not spin
_ANGLES, _RADII = 180, 24


@dataclass(frozen=True)
class Tracks:
    """What is measured of a thing in each of T frames.

    Attributes:
        x, y: its centre, in sides of the picture, to the right and down.
        radius: the root of the mean squared distance from the centre, in sides.
        dark: how far its darkest twentieth is from white, 0 to 1.
        turn: (T - max(1, T // 4),) degrees clockwise since a quarter of the clip before: from one frame to the next a
            slow turn is too small to be told.
        sure: (T - max(1, T // 4),) how well that turn explains the frame, as a correlation.
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    dark: np.ndarray
    turn: np.ndarray
    sure: np.ndarray


def tracks(frames: np.ndarray) -> Tracks:
    """Measure a clip, uint8 (T, H, W, 3) with something on white."""
    ink = 1 - frames.astype(np.float32).min(-1) / 255  # (T, H, W): 0 is white
    seen = np.where(ink > 0.08, ink, 0)
    height, width = seen.shape[1:]
    side = max(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    mass = np.maximum(seen.sum((1, 2)), 1e-6)
    x, y = ((seen * place).sum((1, 2)) / mass for place in (columns, rows))
    apart = (columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2
    area = np.maximum((seen > 0).sum((1, 2)), 1)
    radius = np.sqrt(((seen > 0) * apart).sum((1, 2)) / area)
    dark = np.array([np.quantile(each[each > 0], 0.95) if (each > 0).any() else 0.0 for each in ink])
    rings = [_polar(frame, cx, cy, 2 * r) for frame, cx, cy, r in zip(frames, x, y, radius, strict=True)]
    turns = [_turned(a, b) for a, b in zip(rings, rings[max(1, len(rings) // 4) :], strict=False)]
    turn, sure = (np.array(each) for each in zip(*turns, strict=True)) if turns else (np.zeros(0), np.zeros(0))
    return Tracks(x / side, y / side, radius / side, dark, turn, sure)


def _polar(frame: np.ndarray, x: float, y: float, reach: float) -> np.ndarray:
    """A frame around a point: (radii, angles, 3), angles clockwise."""
    angle = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    radius = reach * (np.arange(_RADII) + 0.5) / _RADII
    columns = np.clip(np.rint(x + radius[:, None] * np.cos(angle)), 0, frame.shape[1] - 1).astype(int)
    rows = np.clip(np.rint(y + radius[:, None] * np.sin(angle)), 0, frame.shape[0] - 1).astype(int)
    ring = frame[rows, columns].astype(np.float32) * radius[:, None, None]
    return ring - ring.mean(1, keepdims=True)


def _turned(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """By how many degrees, in -180 … 180, the one ring must be turned to look like the other, and their correlation."""
    product = np.fft.rfft(after, axis=1) * np.fft.rfft(before, axis=1).conj()
    match = np.fft.irfft(product.sum((0, 2)), _ANGLES)
    best = int(match.argmax())
    size = float(np.sqrt((before**2).sum() * (after**2).sum())) or 1.0
    degrees = best * 360 / _ANGLES
    return degrees - 360 * (degrees > 180), float(match[best]) / size


def _reversals(track: np.ndarray, least: float) -> int:
    """How often a track turns back after having moved by `least`."""
    count, way, edge = 0, 0, track[0]
    for value in track[1:]:
        if (way >= 0 and value > edge) or (way <= 0 and value < edge):
            if way == 0 and abs(value - edge) < least:
                continue
            way, edge = (1 if value > edge else -1) if way == 0 else way, value
        elif abs(value - edge) >= least:
            count, way, edge = count + 1, -way, value
    return count


def recognise(t: Tracks) -> str:
    """The motion that the tracks show: one of `motions.THROUGH`, or `NONE`."""
    if (t.radius == 0).mean() > 0.3:
        return NONE  # nothing is there, most of the time
    third = max(1, len(t.x) // 3)
    dark = t.dark / max(float(t.dark.max()), 1e-6)
    if dark[:2].mean() < 0.5 and dark[-third:].mean() > 0.85:
        return "fading in"
    steady = slice(1, None) if dark[0] < 0.3 else slice(None)
    x, y, radius = t.x[steady], t.y[steady], t.radius[steady]
    growth = float(np.log(max(radius[-third:].mean(), 1e-3) / max(radius[:third].mean(), 1e-3)))
    turned = t.turn[np.abs(t.turn) > LEAST_TURN]
    if len(turned) >= 0.6 * len(t.turn) and abs(np.sign(turned).sum()) >= 0.6 * len(turned) and t.sure.mean() > 0.4:
        return "spinning clockwise" if np.sign(turned).sum() > 0 else "spinning anticlockwise"
    if abs(growth) > 0.25:
        return "growing" if growth > 0 else "shrinking"
    return _moving(x, y)


def _moving(x: np.ndarray, y: np.ndarray) -> str:
    """Which way the centre goes, or how it goes back and forth."""
    time = np.linspace(-1, 1, len(x))
    slopes = {"x": np.polyfit(time, x, 1)[0] * 2, "y": np.polyfit(time, y, 1)[0] * 2}
    spans = {"x": float(np.ptp(x)), "y": float(np.ptp(y))}
    axis = "x" if spans["x"] >= spans["y"] else "y"
    track = x if axis == "x" else y
    if spans[axis] < LEAST / 1.5:
        return NONE
    back = _reversals(track, spans[axis] / 3)
    if back == 0 and abs(slopes[axis]) > LEAST:
        names = ("sliding left", "sliding right") if axis == "x" else ("sliding up", "sliding down")
        return names[int(slopes[axis] > 0)]
    if axis == "x" and back >= 3:
        return "shaking"
    return "bouncing" if axis == "y" and 1 <= back <= 5 else NONE
