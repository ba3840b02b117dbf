"""METEOR's own normalisation (`-norm`) of a line of text, found by experiment with the released program.

It follows the conventions of the Moses tokenizer: punctuation is separated, apostrophes start a new word, and
a final dot is cut off unless it belongs to an abbreviation or the next word begins in lower case. In
addition, hyphens between letters separate words, and the dots of acronyms vanish (`u.s.` becomes `us`).
Letters are Latin and Cyrillic ones; signs of other scripts are separated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527\u1d00-\u1d7f\ua640-\ua66e\ua67e-\ua697"
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "`": "'", "\u201c": '"', "\u201d": '"'})
_SIGN = re.compile(rf"([^{_LETTER}0-9 \t.',-])")
_HYPHEN = re.compile(rf"([{_LETTER}0-9.])-([{_LETTER}0-9])")
_DOTS = re.compile(r"\.{2,}")
_COMMAS = (re.compile(r"([^0-9]),([^0-9])"), re.compile(r"([0-9]),([^0-9])"), re.compile(r"([^0-9]),([0-9])"))
# In this order. A pass does not see what it has just consumed, so "rock'n'roll" gives "rock 'n'roll".
_APOSTROPHES = (
    (re.compile(rf"([^{_LETTER}])'([^{_LETTER}])"), r"\1 ' \2"),
    (re.compile(rf"([^{_LETTER}0-9])'([{_LETTER}])"), r"\1 ' \2"),
    (re.compile(rf"([{_LETTER}])'([^{_LETTER}])"), r"\1 ' \2"),
    (re.compile(rf"([{_LETTER}])'([{_LETTER}])"), r"\1 '\2"),
    (re.compile(r"([0-9])'(s)"), r"\1 '\2"),
)
_HAS_LETTER = re.compile(rf"[{_LETTER}]")
_PLAIN = re.compile(r"[a-z0-9 ]*\Z")


def normalise(text: str, prefixes: Mapping[str, bool]) -> list[str]:
    """Returns the words of one sentence.

    prefixes: abbreviations that keep their dot; True where they keep it only before a number.
    """
    if _PLAIN.match(text):
        return text.split()
    text = text.translate(_QUOTES).replace("''", '"')
    text = _SIGN.sub(r" \1 ", f" {text} ")
    text = _DOTS.sub(r" \g<0> ", text)
    for pattern in _COMMAS:
        text = pattern.sub(r"\1 , \2", text)
    text = text.replace("--", "-")
    for pattern, replacement in _APOSTROPHES:
        text = pattern.sub(replacement, text)
    text = _HYPHEN.sub(r"\1 \2", text)
    # Other white space (U+00A0) ends a word only after the dots are decided.
    words = text.replace("\u2013", "-").replace("\t", " ").split(" ")
    words = [word for word in words if word]
    found: list[str] = []
    for i, word in enumerate(words):
        found += _final_dot(word, words[i + 1] if i + 1 < len(words) else "", prefixes)
    return " ".join(found).lower().split()


def _final_dot(word: str, following: str, prefixes: Mapping[str, bool]) -> list[str]:
    stem = word[:-1]
    if not word.endswith(".") or not stem or stem.endswith("."):
        return [word]
    if "." in stem and _HAS_LETTER.search(stem):
        return [word.replace(".", "")]
    if "a" <= following[:1] <= "z":
        return [word]
    if stem in prefixes and (not prefixes[stem] or following[:1].isdigit()):
        return [word]
    return [stem, "."]
