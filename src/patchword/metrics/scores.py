"""The one result type of all metrics."""

from __future__ import annotations

from typing import Any, NamedTuple


class Score(NamedTuple):
    """A metric's value over the whole set and, where it has one, its value per item.

    Items are image ids, pairs or groups; values have full precision.
    """

    value: float
    per_item: dict[Any, float] | None = None

    def values_per_item(self) -> dict[Any, float]:
        """The value per item, of a metric that has one.

        Raises:
            ValueError: the metric has a value over the whole set alone.
        """
        if self.per_item is None:
            raise ValueError("this metric has no value per item, only one over the whole set")
        return self.per_item
