"""The lexical rules of the Stanford tokenizer that apply to captions, found by experiment.

The longest matching rule wins, and the earlier one in a tie. A rule whose pattern has a group takes only the
group as its token; its look-ahead still counts for its length, as in the lexer generator of the original.

Rules read the *shape* of a caption: every character is replaced by a representative of those that the
original does not distinguish (`shape`), so that the patterns need no table of Unicode. Non-ASCII letters
become U+00FF, marks U+0300, symbols U+00A1, superscripts U+00B2, digits of other scripts 1, and characters
that the original deletes U+0000. In the patterns, W is a word of letters and digits, and Q an apostrophe.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_right
from importlib.resources import files

_TABLES = json.loads(files("patchword.text").joinpath("ptb_words.json").read_text(encoding="utf-8"))

_REPRESENTATIVES = {"dropped": "\x00", "symbols": "\u00a1", "symbol_runs": "\u00b2", "marks": "\u0300"}
_KEPT = "\u0080\u0091\u0092\u0093\u0094\u0096\u0097\u00a0\u00a2\u00a3\u00a4\u00ab\u00bb\u00bc\u00bd\u00be"
_KEPT += "\u058a\u066b\u066c\u2010\u2011"
_KEPT += "\u2013\u2014\u2015\u2018\u2019\u201b\u201c\u201d\u2026\u2039\u203a\u2044\u20a0\u20ac\u2153\u2154"

FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
MONEY = {"\u00a2": "cents", "\u00a3": "#", "\u0080": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$"}

NOT_PLAIN = frozenset(
    " ".join(
        _TABLES[name]
        for name in ("abbreviations", "only_capitalised_or_upper", "only_before_a_digit", "two_token_words")
    ).split()
)
"""Words that give more than one token, or keep a dot."""


class _Shape(dict):
    """Translates code points to representatives, which are looked up on first use."""

    def __init__(self) -> None:
        super().__init__({code: chr(code) for code in range(128)} | {ord(char): char for char in _KEPT})
        spans = []
        for name, representative in _REPRESENTATIVES.items():
            for span in _TABLES["characters"][name].split():
                first, _, last = span.partition("-")
                spans.append((int(first, 16), int(last or first, 16), representative))
        self._spans = sorted(spans)
        self._starts = [first for first, _, _ in self._spans]

    def __missing__(self, code: int) -> str:
        self[code] = found = self._find(code)
        return found

    def _find(self, code: int) -> str:
        if code > 0xFFFF:
            return "\x00"
        place = bisect_right(self._starts, code) - 1
        if place >= 0 and code <= self._spans[place][1]:
            return self._spans[place][2]
        return "1" if unicodedata.category(chr(code)) == "Nd" else "\u00ff"


_SHAPES = _Shape()


def shape(text: str) -> str:
    """Replaces all characters that the rules treat alike by one representative; the length stays the same."""
    return text if text.isascii() else text.translate(_SHAPES)


def _any(*lists: str) -> str:
    """Builds a choice of words, longer ones first."""
    return "|".join(sorted(" ".join(lists).split(), key=len, reverse=True))


def _abbreviations(left_out: str = "") -> str:
    """Builds a pattern of the abbreviations that keep their dot, in the cases in which they do."""
    special, capitalised = _TABLES["not_in_upper"], _TABLES["only_capitalised_or_upper"]
    usual = set(_TABLES["abbreviations"].split()) - set(special.split()) - set(left_out.split())
    special = " ".join(set(special.split()) - set(left_out.split()))
    exact = (_any(special, special.title()), _any(capitalised.title(), capitalised.upper()))
    return "|".join((f"(?i:{_any(*usual)})", *exact))


Q = "(?:['\u2019\u0092]|&apos;)"
_LETTER, _ANY = "A-Za-z\u00ff", "A-Za-z0-9\u00ff\u0300"
W = f"(?:[{_LETTER}\u0300][{_ANY}]*|[0-9]+(?:[{_LETTER}][{_ANY}]*)?)"
_END = f"(?![{_ANY}])"
_NO_LETTER = f"(?![{_LETTER}\u0300])"
_ACRONYM = r"(?:[A-Za-z]\.){2,}"
_SUFFIX = "(?:[sSmMdD]|re|ve|ll|RE|VE|LL|Re|Ve|Ll)"
_INSIDE = f"(?:{Q}|[`\u2018\u0091\u201b])"
_O_WORD = f"(?:[A-HJ-XZn]|[odl]){_INSIDE}(?!{_SUFFIX}{_NO_LETTER})[{_LETTER}\u0300]{{2,}}"
_IRISH = f"[odlODL]{_INSIDE}(?!{_SUFFIX}{_NO_LETTER})[{_LETTER}\u0300]{{2,}}"
_HYPHEN = "[-\u2010\u2011\u058a]"
_PART = f"(?:{_IRISH}|{_ACRONYM}|{W})"
_HYPHENATED = f"{_PART}(?:(?:_|{_HYPHEN}){_PART})+"
_DOTTED = f"[A-Za-z0-9][A-Za-z0-9.,]*(?:{_HYPHEN}{_PART})+"
_GLUED = rf"[{_LETTER}\u0300][{_ANY}]*(?:[.!?][{_LETTER}\u0300][{_ANY}]*)+"
_JOINED = "[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+"
_ASCII_PART = "[A-Za-z0-9]+(?:-[A-Za-z]+)*"
_NUMBER = r"[-+]?(?:[0-9]+|[.,:\u066b\u066c][0-9]+)(?:[.,:\u066b\u066c][0-9]+)*"
_FRACTION = r"(?:[0-9]{1,4}[- \u00a0])?[0-9]{1,4}[/\u2044][0-9]{1,4}"
_PHONE = r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
_PHONE += r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}"
_MAIL = r"[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+"
_HOST = r"(?:[^\s\"<>|().]+\.)+"
_URL_END = r"[^\s\"<>|().!?,;:'\-]"
_STARTER = rf"(?!\s+(?:{_any(_TABLES['sentence_starters'])})(?:\s|$))"

# Rules by the kind of the first character. The order matters only between rules of equal length.
_LETTER_RULES = (
    rf"([{_LETTER}\u0300]*[A-MO-Za-mo-z\u00ff\u0300])[nN]{_INSIDE}[tT]",
    rf"[nN]{_INSIDE}[tT]{_NO_LETTER}",
    rf"(?i:(can)not|(gon)na|(got)ta|(wan)na|(gim)me|(lem)me){_END}(?!{Q}{_SUFFIX}{_NO_LETTER})",
    W,
    _HYPHENATED,
    rf"{_ASCII_PART}(?:\\?/{_ASCII_PART}){{1,2}}",
    _DOTTED,
    rf"((?:{_abbreviations(_TABLES['before_names'])})\.)[{_ANY}]",
    _GLUED,
    rf"(?:{_abbreviations()})\.",
    rf"(?i:{_any(_TABLES['only_before_a_digit'])})\.(?=\s?[0-9])",
    _ACRONYM,
    r"[Pp][Hh]\.[Dd]\.",
    rf"[A-Za-z]\.{_STARTER}",
    rf"((?:{_HYPHENATED}|{_DOTTED}|{_GLUED}|{_O_WORD}|{_JOINED}|{W})\.)[,;:]",
    _O_WORD,
    rf"[A-Za-z]+[aeiouyAEIOUY](?!{Q}{_SUFFIX}{_NO_LETTER}){_INSIDE}[aeiouA-Z][A-Za-z]*",
    rf"(?i:c{Q}mon|c{Q}est|e{Q}er|o{Q}er|s{Q}mores|cap{Q}n|nor{Q}easter|qu{Q}ils?)",
    rf"(?i:(?:ol|l|d|j){Q}(?![sdmrvl])|(?:dunkin|somethin){Q}(?!{_SUFFIX}{_NO_LETTER}))",
    rf"[yY]{Q}(?=[{_LETTER}\u0300])(?![sSdDmM]|{_SUFFIX}{_NO_LETTER})",
    r"[A-Z]+\$",
    _JOINED,
    r"[CcFf]#|[Cc]\+\+",
    _MAIL,
    rf"https?://[^\s\"<>|()]+{_URL_END}",
    rf"www\.{_HOST}[A-Za-z]{{2,4}}(?:/[^\s\"<>|()]+{_URL_END})?",
)
_DIGIT_RULES = (
    _NUMBER,
    _FRACTION,
    _PHONE,
    W,
    _HYPHENATED,
    _DOTTED,
    rf"{_ASCII_PART}(?:\\?/{_ASCII_PART}){{1,2}}",
    rf"((?:{_HYPHENATED}|{_DOTTED}|{W})\.)[,;:]",
    _MAIL,
)
_OTHER_RULES = (
    rf"{Q}{_SUFFIX}{_NO_LETTER}|[\u2019\u0092]{_SUFFIX}",
    rf"{Q}(?i:em|till?|cause|n{Q})|{Q}[nN](?=\s|$)|[\u2019\u0092][nN]",
    "('[tT])(?i:is|was)",
    rf"{Q}(?:[2-9]0[sS]|[0-9][0-9](?=\s|$))",
    "``|''|[`'\"]|[\u2018\u2019\u0091\u0092\u201b\u2039\u203a\u201c\u201d\u0093\u0094\u00ab\u00bb]{1,2}",
    r"</?[A-Za-z!?][^<>]*>|<<|>>",
    r"&(?i:amp|lt|gt|quot|apos|nbsp|#[0-9]+|[aeiou](?:acute|grave|uml));",
    _NUMBER,
    _PHONE,
    "(?i:-[lr][rsc]b-)",
    rf"#[{_LETTER}\u0300]+|##+",
    r"@[A-Za-z][A-Za-z0-9_]*|@@+",
    r"-{5,}|-{2,4}|_+|\*{2,}|\.{3,}|[!?]{2,}",
    r"[:;=][-o*']?[(){DdPpO|\\@\[\]](?![A-Za-z0-9])|:3(?![A-Za-z0-9])",
    r"\^_\^|-_-|\\\*|\u00b2+",
)


def _compiled(rules: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(map(re.compile, rules))


LETTER_RULES, DIGIT_RULES, OTHER_RULES = (
    _compiled(_LETTER_RULES),
    _compiled(_DIGIT_RULES),
    _compiled(_OTHER_RULES),
)
