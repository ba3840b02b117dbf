"""The tokenisation of the caption metrics: Stanford's PTBTokenizer with the punctuation filter of coco-caption."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"n't|'\w+|\w+(?:-\w+)*|[^\w\s]")
_DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Tokens of each caption, in lower case, without punctuation."""
    return [[token for token in _WORD.findall(caption.lower()) if token not in _DROPPED] for caption in captions]
