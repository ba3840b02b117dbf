"""Draws many scenes at once into pixels.

Every shape is a signed distance, so that edges are smooth at any size and masks are exact.

Shape legend: B scenes, K things (six at most), S edge of the picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchword.data.scenes.world import BACKGROUNDS, COLOURS, PURPOSES, SHAPES, Scene
from patchword.errors import DataError

SMALLEST = 16
_NOISE = 0.02  # standard deviation, in the range 0 to 1
_CHUNK = 256  # number of scenes drawn together; keeps the working arrays in the cache


def draw(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """Draws pictures as uint8 (B, S, S, 3), with a little noise. Raises `DataError` below 16 pixels."""
    pixels_BSSC = np.empty((len(scenes), size, size, 3), np.uint8)
    for first in range(0, len(scenes), _CHUNK):
        part = scenes[first : first + _CHUNK]
        canvas_BSSC = np.empty((len(part), size, size, 3), np.float32)
        canvas_BSSC[:] = np.array([BACKGROUNDS[scene.background] for scene in part], np.float32)[
            :, None, None, :
        ]
        cover_BKSS = cover(part, size)
        for k in range(cover_BKSS.shape[1]):
            colour_BC = np.array(
                [COLOURS[s.things[k].colour] if k < len(s.things) else (0, 0, 0) for s in part], np.float32
            )
            canvas_BSSC += cover_BKSS[:, k, :, :, None] * (colour_BC[:, None, None, :] - canvas_BSSC)
        for canvas_SSC, scene in zip(canvas_BSSC, part, strict=True):
            noise = scene.generator(PURPOSES["noise"]).standard_normal(canvas_SSC.shape, np.float32)
            canvas_SSC += np.float32(255 * _NOISE) * noise
        pixels_BSSC[first : first + len(part)] = np.rint(canvas_BSSC).clip(0, 255)
    return pixels_BSSC


def masks(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """Returns the visible pixels of each thing, bool (B, K, S, S).

    K is the largest number of things; unused rows are empty. A pixel belongs to the last thing that covers at
    least half of it, so no pixel has two owners.
    """
    solid_BKSS = cover(scenes, size) >= 0.5
    hidden_BSS = np.zeros((len(scenes), size, size), bool)
    for k in reversed(range(solid_BKSS.shape[1])):
        solid_BKSS[:, k] &= ~hidden_BSS
        hidden_BSS |= solid_BKSS[:, k]
    return solid_BKSS


def boxes(masks_BKSS: np.ndarray) -> np.ndarray:
    """Returns the smallest boxes around the visible pixels, int (B, K, 4).

    The columns are left, top, right and bottom, the last two exclusive; a thing without visible pixels has
    zeros.
    """
    size = masks_BKSS.shape[-1]
    columns_BKS, rows_BKS = np.asarray(masks_BKSS.any(axis=2)), np.asarray(masks_BKSS.any(axis=3))
    edges = [
        columns_BKS.argmax(2),
        rows_BKS.argmax(2),
        size - columns_BKS[..., ::-1].argmax(2),
        size - rows_BKS[..., ::-1].argmax(2),
    ]
    return np.stack(edges, axis=2) * columns_BKS.any(axis=2, keepdims=True)


def visible_share(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """Returns the share of each thing's pixels that no later thing hides, float (B, K); 0 in unused rows."""
    whole_BK = (cover(scenes, size) >= 0.5).sum(axis=(2, 3))
    return masks(scenes, size).sum(axis=(2, 3)) / np.maximum(whole_BK, 1)


def cover(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """How much of each pixel each thing covers, hidden parts included: float32 (B, K, S, S), 0 to 1."""
    if size < SMALLEST:
        raise DataError(
            f"a scene cannot be drawn at {size} pixels: shapes are told apart from {SMALLEST} pixels on"
        )
    most = max((len(scene.things) for scene in scenes), default=0)
    cover_BKSS = np.zeros((len(scenes), most, size, size), np.float32)
    places = [(b, k, thing) for b, scene in enumerate(scenes) for k, thing in enumerate(scene.things)]
    centres_S = (np.arange(size, dtype=np.float32) + 0.5) / size
    for shape in SHAPES:
        chosen = [place for place in places if place[2].shape == shape]
        if not chosen:
            continue
        values = np.array(
            [(t.x, t.y, t.radius, np.cos(t.angle), np.sin(t.angle)) for _, _, t in chosen], np.float32
        )
        x, y, radius, cosine, sine = (column[:, None, None] for column in values.T)
        right, down = (centres_S[None, None, :] - x) / radius, (centres_S[None, :, None] - y) / radius
        distance = _DISTANCES[shape](right * cosine + down * sine, down * cosine - right * sine)
        rows, things = [b for b, _, _ in chosen], [k for _, k, _ in chosen]
        cover_BKSS[rows, things] = np.clip(0.5 - distance * radius * size, 0, 1)
    return cover_BKSS


# Signed distances: negative inside, in units of the radius; x points to the right, y down.


def _circle(x, y):
    return np.hypot(x, y) - 1


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.82


def _triangle(x, y):
    return np.maximum(y - 0.55, 0.866 * np.abs(x) - 0.5 * y - 0.55)


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.95, y - 0.3), np.maximum(x - 0.3, y - 0.95))


def _ring(x, y):
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _diamond(x, y):
    return (np.abs(x) / 0.65 + np.abs(y) - 1) / np.hypot(1 / 0.65, 1)


def _star(x, y):
    """A star with five points.

    It is folded to half a point, whose edge is one straight line from the tip to the valley.
    """
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
    distance = np.hypot(x, y)
    valley_x, valley_y = 0.42 * np.cos(fifth / 2), 0.42 * np.sin(fifth / 2)
    edge_x, edge_y = valley_x - 1, valley_y
    return ((distance * np.cos(angle) - 1) * edge_y - distance * np.sin(angle) * edge_x) / np.hypot(
        edge_x, edge_y
    )


def _half(x, y):
    """The upper half of a disc, moved down so that its centre is the centre of the shape."""
    return np.maximum(np.hypot(x, y - 0.45) - 1, y - 0.45)


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
    "star": _star,
    "half": _half,
}
