"""What every metric returns."""

from __future__ import annotations

from typing import NamedTuple


class Score(NamedTuple):
    """One number for the whole set and one per image.

    The corpus value is not the mean of the image values for BLEU and METEOR: both sum their statistics first.
    """

    value: float
    per_item: dict[str, float]
