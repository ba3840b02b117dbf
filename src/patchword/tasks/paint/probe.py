"""What a painter adds where a prompt leaves something open, beside how often its training showed it.

Of drawn scenes everything is known: the reader says what was painted, and the prior of every attribute is
that of the scenes that the model was trained on. Of photographs somebody has to say which labels are looked
for; two towers choose among them, and the prior is how often captions of the training name each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from patchword.data.records import CaptionRecord
from patchword.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, make_scenes
from patchword.errors import DataError
from patchword.tasks.paint.oracle import Oracle
from patchword.tasks.paint.paint import AT_ONCE, Painter

OPEN_PROMPTS = {
    "a thing": ("colour", "shape", "background"),
    "a circle": ("colour",),
    "a red thing": ("shape",),
}
"""Prompts of the drawn world, and what each of them leaves open."""
_VALUES = {"colour": tuple(COLOURS), "shape": SHAPES, "background": tuple(BACKGROUNDS)}
PRIOR_SCENES = 4000


class Share(NamedTuple):
    """How often a value was painted, and how often the training showed it."""

    value: str
    painted: float
    interval: tuple[float, float]
    """95 %, by Wilson's formula."""
    prior: float | None
    """None where it is not known."""

    @property
    def differs(self) -> bool:
        """Whether the prior lies outside the interval."""
        return self.prior is not None and not self.interval[0] <= self.prior <= self.interval[1]


class Probe(NamedTuple):
    """One prompt, and one thing that it leaves open."""

    prompt: str
    what: str
    pictures: int
    """Pictures in which the thing was found at all."""
    shares: list[Share]

    @property
    def distance(self) -> float | None:
        """Total variation between painted and prior shares, 0 to 1; None where the prior is not known."""
        gaps = [abs(share.painted - share.prior) for share in self.shares if share.prior is not None]
        return 0.5 * float(sum(gaps)) if len(gaps) == len(self.shares) else None


def paint_many(
    painter: Painter, prompt: str, number: int, steps: int | None, watch: Callable[[], None]
) -> list[np.ndarray]:
    """Pictures of a prompt, seeds 1 to `number`."""
    made: list[np.ndarray] = []
    for first in range(1, number + 1, AT_ONCE):
        seeds = range(first, min(first + AT_ONCE, number + 1))
        made += list(painter.paint(prompt, seeds, steps=steps, watch=watch))
    return made


def probe_scenes(
    painter: Painter,
    oracle: Oracle,
    level: int,
    number: int,
    steps: int | None = None,
    watch: Callable[[], None] = lambda: None,
) -> list[Probe]:
    """The open prompts of the drawn world. What is painted first and largest counts."""
    priors = _priors(level)
    found = []
    for prompt, opened in OPEN_PROMPTS.items():
        scenes = oracle.read(paint_many(painter, prompt, number, steps, watch)).scenes
        for what in opened:
            if what == "background":
                said = [scene.background for scene in scenes]
            else:
                shown = [_meant(scene, prompt) for scene in scenes]
                said = [getattr(thing, what) for thing in shown if thing is not None]
            found.append(Probe(prompt, what, len(said), shares_of(said, _VALUES[what], priors[what])))
    return found


def probe_labels(
    pictures: Sequence[np.ndarray],
    prompt: str,
    labels: Sequence[str],
    choose: Callable[[Sequence[np.ndarray], Sequence[str]], np.ndarray],
    records: Sequence[CaptionRecord] | None,
) -> Probe:
    """Which of some labels pictures show, by `choose` (pictures, labels -> probabilities (n, labels)).

    The prior counts captions that name a label as a word, among those that name any of them. Raises DataError
    for fewer than two labels, or captions that name none.
    """
    if len(labels) < 2:
        raise DataError("a probe compares labels: give --label at least twice")
    said = [labels[int(place)] for place in choose(pictures, labels).argmax(1)]
    prior = None if records is None else _named(labels, records)
    return Probe(prompt, "label", len(said), shares_of(said, labels, prior))


def shares_of(said: Sequence[str], values: Sequence[str], prior: dict[str, float] | None) -> list[Share]:
    """The share of each value, the most frequent first."""
    counts = Counter(said)
    shares = [
        Share(
            value,
            counts[value] / max(1, len(said)),
            wilson(counts[value], len(said)),
            None if prior is None else prior.get(value, 0.0),
        )
        for value in values
    ]
    return sorted(shares, key=lambda share: -share.painted)


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _meant(scene, prompt: str):
    """The thing that a prompt is about: the largest that fits its words; None where nothing does."""
    fitting = [
        thing
        for thing in scene.things
        if all(word in ("a", "thing", thing.shape, thing.colour) for word in prompt.split())
    ]
    return max(fitting, key=lambda thing: thing.radius, default=None)


def _priors(level: int) -> dict[str, dict[str, float]]:
    """Shares of attributes among the things of scenes, and of backgrounds."""
    scenes = make_scenes(PRIOR_SCENES, level)
    things = [thing for scene in scenes for thing in scene.things]
    found = {
        "colour": Counter(thing.colour for thing in things),
        "shape": Counter(thing.shape for thing in things),
        "background": Counter(scene.background for scene in scenes),
    }
    return {
        what: {value: count / sum(counts.values()) for value, count in counts.items()}
        for what, counts in found.items()
    }


def _named(labels: Sequence[str], records: Sequence[CaptionRecord]) -> dict[str, float]:
    patterns = {label: re.compile(rf"\b{re.escape(label.lower())}\b") for label in labels}
    counts = {
        label: sum(bool(pattern.search(text.lower())) for record in records for text in record.captions)
        for label, pattern in patterns.items()
    }
    total = sum(counts.values())
    if not total:
        raise DataError(f"no caption names any of {', '.join(labels)}: there is no prior to compare with")
    return {label: count / total for label, count in counts.items()}
