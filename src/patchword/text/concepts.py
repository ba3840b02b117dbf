"""Finds nouns and adjectives in captions, for a codebook, without a tagger.

In English, a noun or an adjective often follows an article, a numeral, a possessive or a preposition
directly; a finite verb or an adverb rarely does. A word is taken where the share of such uses is high enough.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_OPENERS = frozenset(
    "a an the two three four five six seven eight nine ten several many some few both each every another "
    "other his her its their my your "
    "our of in on at with by from near under over behind through into onto across along against beside "
    "between around above below "
    "wearing".split()
)
_CLOSED = _OPENERS | frozenset(
    "and or but while as is are was were be been being has have had do does did to for that this these "
    "those there it he she they them him "
    "who which what where when how up down out off away back very not no so than then too also just only "
    "while one all any who's it's "
    "front next top side another's something someone others him herself himself themselves itself together "
    "towards toward during before "
    "after about like if because until without within us we you i me mine".split()
)
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_SHARE, _SHARE_OF_PARTICIPLES, _SHARE_BEHIND_ADJECTIVES = 0.2, 0.6, 0.6
_VERBAL = ("ing", "ed", "s")


def caption_words(captions: Iterable[str], least: int = 5) -> list[str]:
    """Returns words that occur at least `least` times and look like nouns or adjectives, most frequent first.

    A second pass also takes words like "shirt", which mostly follow an adjective ("in a red shirt"). Words in
    -ing and -ed are mostly verbs, so they need a higher share.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for caption in captions:
        words = _WORD.findall(caption.lower())
        pairs.update(zip(["", *words], words, strict=False))
    uses: Counter[str] = Counter()
    for (_, word), count in pairs.items():
        uses[word] += count
    candidates = {
        word for word, count in uses.items() if count >= least and word not in _CLOSED and len(word) > 1
    }
    opened = _share_behind(pairs, uses, _OPENERS)
    taken = {
        word
        for word in candidates
        if opened[word] >= (_SHARE_OF_PARTICIPLES if word.endswith(("ing", "ed")) else _SHARE)
    }
    adjectives = {word for word in taken if opened[word] >= 0.5}
    described = _share_behind(pairs, uses, _OPENERS | adjectives)
    for word in candidates - taken:
        # "a dog runs": the word after a noun may be a verb.
        if described[word] >= _SHARE_BEHIND_ADJECTIVES and not word.endswith(_VERBAL):
            taken.add(word)
    return [word for word, _ in uses.most_common() if word in taken]


def _share_behind(
    pairs: Counter[tuple[str, str]], uses: Counter[str], before: Iterable[str]
) -> dict[str, float]:
    """Returns for each word the share of its uses that directly follow one of `before`."""
    behind = dict.fromkeys(uses, 0)
    for (first, word), count in pairs.items():
        if first in before:
            behind[word] += count
    return {word: count / uses[word] for word, count in behind.items()}
