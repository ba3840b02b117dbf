"""The baseline that answers without the pictures; what a model scores above it comes from them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable


class CommonestAnswer:
    """The most frequent answer to the same words, or else to the same kind of question, or else of all."""

    def __init__(self, training: Iterable[tuple[str, str, str]]) -> None:
        """`training` are triples of question, kind and answer."""
        self._by_text: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_kind: dict[str, Counter[str]] = defaultdict(Counter)
        self._all: Counter[str] = Counter()
        for text, kind, answer in training:
            self._by_text[text.lower()][answer] += 1
            self._by_kind[kind][answer] += 1
            self._all[answer] += 1

    def answer(self, text: str, kind: str) -> str:
        """Returns the guess; it is empty where there was no training data."""
        seen = self._by_text.get(text.lower()) or self._by_kind.get(kind) or self._all
        return seen.most_common(1)[0][0] if seen else ""
