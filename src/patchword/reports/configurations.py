"""Groups runs that differ only by the seed: mean and spread over seeds, and intervals over pictures.

A difference between two configurations has two random sources, the seed and the pictures. The spread shows
the first. The intervals here show the second, over the mean of each picture's scores over the seeds.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from patchword.metrics.scores import Score

_OWN = ("seed", "out", "description")
"""Settings in which the runs of one configuration may differ."""


class Configuration(NamedTuple):
    """The runs of one configuration, by their positions among all runs."""

    name: str
    members: tuple[int, ...]


def configurations(names: Sequence[str], configs: Sequence[Mapping[str, object]]) -> list[Configuration]:
    """Groups the runs by configuration, in the order of their first runs.

    A run whose configuration names no seed is a group of its own.
    """
    groups: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        content = {key: value for key, value in config.items() if key not in _OWN}
        key = json.dumps(content, sort_keys=True) if "seed" in config else f"run {number}"
        groups.setdefault(key, []).append(number)
    shown = [_common([names[number] for number in members]) for members in groups.values()]
    return [
        Configuration(name if shown.count(name) == 1 else names[members[0]], tuple(members))
        for name, members in zip(shown, groups.values(), strict=True)
    ]


def _common(names: Sequence[str]) -> str:
    """Returns the common beginning of the names up to a separator: fused for fused-1 and fused-12.

    Where there is none, it is the first name.
    """
    if len(names) == 1:
        return names[0]
    parts = [re.split(r"([-_./ ]+)", name) for name in names]
    shared = []
    for pieces in zip(*parts, strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return "".join(shared).rstrip("-_./ ") or names[0]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation; the latter is 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean_over_seeds(scores: Sequence[Score]) -> Score:
    """Averages the scores of each picture over the seeds.

    It holds for metrics whose corpus value is the mean over the pictures.
    """
    images = list(scores[0].values_per_item())
    means_B = np.mean([[score.values_per_item()[image] for image in images] for score in scores], axis=0)
    return Score(float(means_B.mean()), dict(zip(images, means_B.tolist(), strict=True)))
