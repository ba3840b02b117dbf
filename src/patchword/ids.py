"""The four special ids of every caption vocabulary.

They are not in `types.py`, so that text handling needs no torch.
"""

from __future__ import annotations

from typing import NamedTuple


class SpecialIds(NamedTuple):
    """Ids of the four special tokens that every caption vocabulary has."""

    pad: int
    start: int
    end: int
    unknown: int
