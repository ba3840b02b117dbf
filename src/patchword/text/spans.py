"""Where the tokens of a text stand in it, and which tokens of two splittings stand at the same place."""

from __future__ import annotations

from collections.abc import Sequence

from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary, split_characters, split_english

Span = tuple[int, int]
"""Characters of the text, from and to."""


def spans(vocabulary: Vocabulary | Subwords | Pieces, text: str, count: int) -> list[Span]:
    """Where the first `count` tokens of a text stand in it: as a published tokenizer says, else each word is
    looked for after the one before. A token that is not found (a letter was changed) is empty."""
    if isinstance(vocabulary, Pieces):
        return vocabulary.spans(text)[:count]
    if isinstance(vocabulary, Vocabulary):
        tokens = (split_english if vocabulary.splitter == "english" else split_characters)(text)
    else:
        tokens = [token.replace("</w>", "") for token in vocabulary.tokens(vocabulary.encode(text))]
    lowered, at = text.lower(), 0
    found = []
    for token in tokens[:count]:
        begin = lowered.find(token, at)
        if begin < 0:
            found.append((at, at))
            continue
        at = min(len(text), begin + len(token))
        found.append((begin, at))
    return found


def overlapping(spans: Sequence[Span], others: Sequence[Span]) -> list[int]:
    """For each span the place of the other one that shares most characters with it, the first of equals; -1
    where none does. Vokens go from one tokenizer to another by this (Tan and Bansal 2020, revokenization)."""
    found = []
    for begin, end in spans:
        shared = [min(end, last) - max(begin, first) for first, last in others]
        best = max(range(len(others)), key=lambda place: shared[place], default=-1)
        found.append(best if best >= 0 and shared[best] > 0 else -1)
    return found
