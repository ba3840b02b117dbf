"""Scenes, each made from (split, index, seed) alone.

A scene is one to six flat shapes on a plain background. It is a test world in which everything is known
exactly, never a substitute for photographs. Levels: 1, one thing (from 16 pixels); 2, two things in a
relation (from 24 pixels); 3, three to six things that may hide one another, with counts (from 32 pixels).

Lengths are shares of the canvas: x points to the right and y down, both from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from patchword.errors import DataError

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "star", "half")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 87, 220),
    "yellow": (240, 220, 30),
    "purple": (136, 50, 170),
    "orange": (255, 140, 10),
    "cyan": (30, 200, 215),
    "pink": (255, 130, 190),
}
SIZES = ("small", "medium", "large")
BACKGROUNDS = {
    "white": (250, 250, 250),
    "grey": (128, 128, 128),
    "black": (8, 8, 8),
    "cream": (222, 208, 178),
    "slate": (60, 72, 88),
}
RELATIONS = ("left of", "right of", "above", "below", "inside", "overlapping", "the same colour as")

# Radius per level and size. Level 1 keeps a radius of three pixels at 16 pixels; smaller shapes look alike.
RADII = {1: (0.19, 0.28, 0.40), 2: (0.14, 0.21, 0.30), 3: (0.10, 0.14, 0.19)}
_CONTAINERS = ("circle", "square", "ring")
_LARGEST_TURN = 0.25  # radians; a square must not become a diamond

HeldOut = Literal["combo", "relation", "count"]
SPLITS = ("train", "val", "test")
HELD_OUT_COMBOS = frozenset(zip(COLOURS, SHAPES, strict=True))
"""combo: eight of the 64 pairs of colour and shape never occur in train and val; every test scene has one."""
HELD_OUT_ORDERS = frozenset(
    {("circle", "square"), ("triangle", "circle"), ("star", "ring"), ("diamond", "cross")}
)
"""relation: in train and val, the first is never left of the second (the reverse occurs); in every test
scene it is."""
MOST_THINGS_SEEN = 3
"""count: train and val of level 3 have at most three things, test has four to six."""


class Thing(NamedTuple):
    """One shape. `radius` is that of the circle around which it is drawn; `angle` is in radians."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """Things on a background, and the arguments that the scene was made from.

    Things are in painter's order: a later one hides an earlier one.
    """

    things: tuple[Thing, ...]
    background: str
    level: int
    split: str
    index: int
    seed: int
    held_out: HeldOut | None = None

    @property
    def name(self) -> str:
        """A name for files and ids, unique within level and seed."""
        return f"{self.held_out or 'iid'}_{self.split}_{self.index:06d}"

    def generator(self, purpose: int) -> np.random.Generator:
        """Returns a random generator of this scene alone; each purpose (see `PURPOSES`) has its own."""
        held_out = 0 if self.held_out is None else 1 + ("combo", "relation", "count").index(self.held_out)
        return np.random.default_rng(
            [self.seed, SPLITS.index(self.split), self.level, held_out, self.index, purpose]
        )


PURPOSES = {"things": 0, "noise": 1, "captions": 2, "questions": 3, "corruption": 4}
"""Streams of random numbers of a scene. They are separate, so that a change in the captions cannot change
the picture."""


def make_scenes(
    count: int,
    level: int = 1,
    split: str = "train",
    held_out: HeldOut | None = None,
    seed: int = 0,
    start: int = 0,
) -> list[Scene]:
    """Makes the scenes `start` to `start + count - 1` of a split.

    Each scene depends only on its own index, so any part can be made alone. Without `held_out` the splits
    differ only by their random numbers; with it, test differs from train as the constants above say. Raises
    `DataError` for an unknown split or level, or a `held_out` that does not fit the level.
    """
    if split not in SPLITS or level not in RADII:
        raise DataError(
            f"scenes of split {split!r} and level {level!r}: expected split {', '.join(SPLITS)} and level "
            "1, 2 or 3"
        )
    if (held_out == "relation" and level != 2) or (held_out == "count" and level != 3):
        raise DataError(
            f"held_out={held_out!r} needs level {2 if held_out == 'relation' else 3}, found level {level}"
        )
    return [
        _make(Scene((), "", level, split, index, seed, held_out)) for index in range(start, start + count)
    ]


def related(relation: str, a: Thing, b: Thing) -> bool:
    """True where `a` is in the relation to `b`.

    For a direction, the larger part of the distance must be along its axis.
    """
    if relation == "the same colour as":
        return a.colour == b.colour
    if relation == "inside":
        return b.shape in _CONTAINERS and bool(_geometry(relation, a.x, a.y, a.radius, b.x, b.y, b.radius))
    return bool(_geometry(relation, a.x, a.y, a.radius, b.x, b.y, b.radius))


def relations(scene: Scene) -> list[tuple[int, str, int]]:
    """Returns the scene graph: every (position, relation, position of another thing) that holds."""
    places = range(len(scene.things))
    return [
        (i, name, j)
        for i in places
        for j in places
        if i != j
        for name in RELATIONS
        if related(name, scene.things[i], scene.things[j])
    ]


def _geometry(relation: str, ax, ay, ar, bx, by, br):  # works on numbers and on arrays
    dx, dy = bx - ax, by - ay
    distance = np.hypot(dx, dy)
    inside, holds_other = distance + ar <= 0.8 * br, distance + br <= 0.8 * ar
    if relation == "inside":
        return inside
    if relation == "overlapping":
        return (ar + br - distance > 0.5 * np.minimum(ar, br)) & ~np.logical_or(inside, holds_other)
    along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[
        relation
    ]
    return (along > 0.1) & (along >= np.abs(across))


def _make(empty: Scene) -> Scene:
    rng = empty.generator(PURPOSES["things"])
    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    # Held-out rules are enforced by redrawing; each accepts a fair share of the scenes.
    while True:
        things = {1: _one_thing, 2: _two_things, 3: _many_things}[empty.level](empty, rng)
        if _allowed(empty, things):
            return Scene(
                things, background, empty.level, empty.split, empty.index, empty.seed, empty.held_out
            )


def _allowed(scene: Scene, things: tuple[Thing, ...]) -> bool:
    is_test = scene.split == "test"
    if scene.held_out == "combo":
        return any((thing.colour, thing.shape) in HELD_OUT_COMBOS for thing in things) == is_test
    if scene.held_out == "relation":
        pairs = [(a, b) for a in things for b in things if (a.shape, b.shape) in HELD_OUT_ORDERS]
        return any(related("left of", a, b) for a, b in pairs) == is_test
    return True


def _attributes(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Draws shape and colour.

    In the test part of combo, every second pair is a held-out one, so that few scenes are redrawn.
    """
    shape, colour = rng.integers(len(SHAPES)), rng.integers(len(COLOURS))
    if scene.held_out == "combo" and scene.split == "test" and rng.random() < 0.5:
        colour = shape
    return SHAPES[shape], tuple(COLOURS)[colour]


def _turn(rng: np.random.Generator) -> float:
    return float(rng.uniform(-_LARGEST_TURN, _LARGEST_TURN))


def _one_thing(scene: Scene, rng: np.random.Generator) -> tuple[Thing, ...]:
    shape, colour = _attributes(scene, rng)
    size = int(rng.integers(3))
    radius = RADII[1][size]
    x, y = rng.uniform(radius, 1 - radius, 2)
    return (Thing(shape, colour, SIZES[size], float(x), float(y), radius, _turn(rng)),)


def _two_things(scene: Scene, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Chooses a relation first, then draws positions until it holds."""
    relation = RELATIONS[rng.integers(6)]
    kinds = [_attributes(scene, rng), _attributes(scene, rng)]
    if scene.held_out == "relation" and scene.split == "test":
        relation = "left of"
        shapes = sorted(HELD_OUT_ORDERS)[rng.integers(len(HELD_OUT_ORDERS))]
        kinds = [(shape, colour) for shape, (_, colour) in zip(shapes, kinds, strict=True)]
    sizes = [int(size) for size in rng.integers(3, size=2)]
    touching = relation in ("inside", "overlapping")
    if relation == "inside":
        kinds[1], sizes = (_CONTAINERS[rng.integers(len(_CONTAINERS))], kinds[1][1]), [0, 2]
    elif sizes == [2, 2] and not touching:
        sizes[1] = 1  # two large things do not fit side by side
    # Two things of one colour would merge.
    if touching and kinds[0][1] == kinds[1][1]:
        names = tuple(COLOURS)
        kinds[0] = (
            kinds[0][0],
            names[(names.index(kinds[0][1]) + 1 + int(rng.integers(len(names) - 1))) % len(names)],
        )
    (ax, ay), (bx, by), (ar, br) = _places_for(relation, sizes, rng)
    a = Thing(*kinds[0], SIZES[sizes[0]], ax, ay, ar, _turn(rng))
    b = Thing(*kinds[1], SIZES[sizes[1]], bx, by, br, _turn(rng))
    # The inner thing must be painted last; otherwise the order does not matter.
    return (b, a) if relation == "inside" or rng.random() < 0.5 else (a, b)


def _places_for(relation: str, sizes: list[int], rng: np.random.Generator):
    ar, br = RADII[2][sizes[0]], RADII[2][sizes[1]]
    while True:
        ax, ay = rng.uniform(ar, 1 - ar, (2, 64))
        bx, by = rng.uniform(br, 1 - br, (2, 64))
        good = _geometry(relation, ax, ay, ar, bx, by, br)
        if relation not in ("inside", "overlapping"):
            good &= np.hypot(bx - ax, by - ay) >= 0.9 * (ar + br)
        if good.any():
            first = int(np.argmax(good))
            return (float(ax[first]), float(ay[first])), (float(bx[first]), float(by[first])), (ar, br)


def _many_things(scene: Scene, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Every second thing repeats an earlier shape, colour or both, so that there is something to count."""
    least, most = 3, 6
    if scene.held_out == "count":
        least, most = (MOST_THINGS_SEEN + 1, 6) if scene.split == "test" else (1, MOST_THINGS_SEEN)
    things: list[Thing] = []
    for _ in range(int(rng.integers(least, most + 1))):
        shape, colour = _attributes(scene, rng)
        if things and rng.random() < 0.5:
            earlier, what = things[rng.integers(len(things))], rng.integers(3)
            shape, colour = (shape if what == 0 else earlier.shape), (colour if what == 1 else earlier.colour)
        size = int(rng.integers(3))
        x, y = _free_place(things, RADII[3][size], colour, rng)
        things.append(Thing(shape, colour, SIZES[size], x, y, RADII[3][size], _turn(rng)))
    return tuple(things)


def _free_place(
    things: list[Thing], radius: float, colour: str, rng: np.random.Generator
) -> tuple[float, float]:
    """Returns a position at which the others are hidden at most in part.

    Things of one colour do not touch, if there is room.
    """
    places_N2 = rng.uniform(radius, 1 - radius, (64, 2))
    if not things:
        return float(places_N2[0, 0]), float(places_N2[0, 1])
    others = np.array(
        [
            (thing.x, thing.y, (thing.radius + radius) * (1.05 if thing.colour == colour else 0.7))
            for thing in things
        ]
    )
    room_N = (
        np.hypot(places_N2[:, None, 0] - others[:, 0], places_N2[:, None, 1] - others[:, 1]) / others[:, 2]
    ).min(axis=1)
    best = int(np.argmax(room_N >= 1)) if (room_N >= 1).any() else int(np.argmax(room_N))
    return float(places_N2[best, 0]), float(places_N2[best, 1])
