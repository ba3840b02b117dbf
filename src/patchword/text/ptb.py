"""The tokenisation of the caption metrics, without Java.

It is that of Stanford's PTBTokenizer with the punctuation filter of coco-caption. Captions are split at white
space, and the tokens of each piece are remembered, so that a known word costs one look-up. The original reads
a whole file and looks ahead, even over the end of a line; a caption for which this can matter is read
together with the beginning of the next one.

One deviation: a carriage return, a vertical tab, a form feed, U+2028 or U+2029 in a caption makes the
original emit an extra line, so that every later caption of the file silently gets the tokens of its
predecessor. Here these characters are white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain

from patchword.text.ptb_rules import (
    DIGIT_RULES,
    FRACTIONS,
    LETTER_RULES,
    MONEY,
    NOT_PLAIN,
    OTHER_RULES,
    shape,
)

DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that the official wrapper removes. Brackets are not removed, because they are in lower case when
the wrapper compares them."""

_LINE_BREAKS = re.compile("[\r\v\f\u2028\u2029]")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "'", "&apos;": "'", "&nbsp;": "-"}
_QUOTES = dict.fromkeys("\u2018\u0091\u201b\u2039", "`") | dict.fromkeys("\u2019\u0092\u203a", "'")
_QUOTES |= dict.fromkeys("\u201c\u0093\u00ab", "``") | dict.fromkeys("\u201d\u0094\u00bb", "''")
_DASHES = frozenset("\u0096\u0097\u2013\u2014\u2015\u2026\u0085\x00\u2010\u2011\u058a\u066b\u066c")
_PLAIN = {**_BRACKETS, **_ENTITIES, **FRACTIONS, **MONEY, **dict.fromkeys(_DASHES | {'"'}, "'")}
_SUFFIX = re.compile("(?:['\u2019\u0092]|&apos;)(s|m|d|re|ve|ll|t)", re.I)
_NEGATION = re.compile("n(['\u2019\u0092]|&apos;|[`\u2018\u0091\u201b])t", re.I)

# Pieces of text whose tokens may depend on their neighbours: a dot before a sentence or a digit, a number
# that may continue the one before it, a tag with attributes.
_DEPENDENT = re.compile(
    r"(?:.*\W)?[A-Za-z]\.$|.*\b(?:art|ca|figs?|nos?|op|pp|prop)\.$"
    r"|[0-9]{1,4}/[0-9]|[0-9]{2}|.*</?[A-Za-z!?][^>]*$",
    re.IGNORECASE,
)


class _Memo(dict):
    """Maps a piece of text to its tokens; `dependent` holds the pieces whose neighbours may matter."""

    def __init__(self) -> None:
        super().__init__()
        self.dependent: set[str] = set()

    def __missing__(self, piece: str) -> tuple[str, ...]:
        word = piece[:-1] if piece[-1] in ".," else piece
        plain = word.lower()
        if len(word) > 1 and word.isascii() and word.isalpha() and plain not in NOT_PLAIN:
            # Nine of ten pieces are a word, or a word and a stop, and need no rule.
            tokens: tuple[str, ...] = (plain,)
        else:
            if _DEPENDENT.match(piece):
                self.dependent.add(piece)
            tokens = tuple(lex(piece))
        self[piece] = tokens
        return tokens


_MEMO = _Memo()


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Tokenizes captions in lower case, without punctuation, as coco-caption does in this order."""
    captions = list(captions)
    memo = _MEMO
    result = []
    for place, caption in enumerate(captions):
        pieces = caption.split()
        tokens = list(chain.from_iterable(map(memo.__getitem__, pieces)))
        if not memo.dependent.isdisjoint(pieces):
            tokens = lex(caption, _next_words(captions, place))
        result.append(tokens)
    return result


def forget() -> None:
    """Empties the memory of pieces, which takes about 100 bytes for each different piece."""
    _MEMO.clear()
    _MEMO.dependent.clear()


def shifting_captions(captions: Sequence[str]) -> list[int]:
    """Returns the positions of captions at which the Java tokenizer breaks a line.

    Every later caption then gets the tokens of its predecessor.
    """
    return [place for place, caption in enumerate(captions) if _LINE_BREAKS.search(caption)]


def _next_words(captions: Sequence[str], place: int) -> str:
    """Returns the first word of the next caption that has any, which is the text that follows a caption."""
    for caption in captions[place + 1 :]:
        if words := caption.split(None, 1):
            return "\n" + words[0] + "\n"
    return ""


def lex(text: str, following: str = "") -> list[str]:
    """Returns the tokens of `text`, filtered and in lower case.

    `following` is the text after it; rules may look ahead into it.
    """
    text = text.replace("\u00ad", "")
    outline = shape(text + following)
    end, place, tokens = len(text), 0, []
    while place < end:
        char = outline[place]
        if char.isspace() or char == "\x00":
            place += 1
            continue
        stop = min(_longest(outline, place, char), end)
        token = _written(text[place:stop])
        if token not in DROPPED:
            tokens.append(token)
        place = stop
    return tokens


def _longest(outline: str, place: int, char: str) -> int:
    """Returns where the token that begins at `place` ends."""
    rules = (
        LETTER_RULES
        if char.isalpha() or char == "\u0300"
        else DIGIT_RULES
        if char.isdigit() and char != "\u00b2"
        else OTHER_RULES
    )
    longest, stop = 0, place + 1
    for rule in rules:
        match = rule.match(outline, place)
        if match and match.end() > longest:
            longest = match.end()
            stop = match.end(match.lastindex or 0)
    return stop


def _written(token: str) -> str:
    """Returns the token as the original writes it."""
    if token.isalpha():
        return token.lower()
    if plain := _PLAIN.get(token.lower()):
        return plain
    if suffix := _SUFFIX.fullmatch(token):
        return "'" + suffix[1].lower()
    if negation := _NEGATION.fullmatch(token):
        return "n`t" if negation[1] in "`\u2018\u0091\u201b" else "n't"
    if token[0] in _QUOTES and all(char in _QUOTES for char in token):
        return "".join(map(_QUOTES.__getitem__, token))
    if token.strip("-") == "" and len(token) < 5:
        return "--"
    if token.startswith("..") and token.strip(".") == "":
        return "..."
    token = "\u00a0".join(token.replace("(", "-lrb-").replace(")", "-rrb-").split())
    return token.replace("&amp;", "&").lower()
