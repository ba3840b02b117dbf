"""The one result type of all metrics."""

from __future__ import annotations

from typing import Any, NamedTuple


class Score(NamedTuple):
    """A metric's value over the whole set and, where it has one, its value per item.

    Items are image ids, pairs or groups; values have full precision.
    """

    value: float
    per_item: dict[Any, float] | None = None
