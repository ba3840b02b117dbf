"""Turns captions into ids and back; the vocabulary names how captions are split and belongs to the model.

Layout of the ids: padding is 0, then the words, then unknown (V-3), start (V-2) and end (V-1).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from patchword.errors import DataError, ModelError
from patchword.ids import SpecialIds

UNKNOWN = "<unknown>"


def refuse_no_text(text: object) -> None:
    """Raises DataError for what is no text (None, bytes, a list)."""
    if not isinstance(text, str):
        raise DataError(f"expected a text, found {text!a:.60} ({type(text).__name__})")


def refuse_no_texts(texts: object) -> None:
    """Raises DataError for what is no list of texts: one text alone would be read letter by letter."""
    if isinstance(texts, str):
        raise DataError(f"expected a list of texts, found the text {texts!a:.60}: put it in brackets, [text]")
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise DataError(f"expected a list of texts, found {texts!a:.60} ({type(texts).__name__})")


Splitter = Literal["english", "characters"]

# Letters and digits with apostrophes and hyphens inside (t-shirt, don't). A possessive 's is a separate word,
# as in references that the metrics have tokenised, and in Flickr8k's own text ("the dog 's ball").
_ENGLISH_WORD = re.compile(r"(?<!\w)'s(?!\w)|[^\W_]+(?:['-][^\W_]+)*")
_LATIN_RUN = re.compile(r"[0-9a-z]+")
PLURALS = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet",
    "knife": "knives", "wife": "wives", "calf": "calves", "loaf": "loaves", "sheep": "sheep", "fish": "fish",
    "scissors": "scissors",
}  # fmt: skip


def split_english(caption: str) -> list[str]:
    """Splits into lower-case words; punctuation is dropped, and a possessive 's is a separate word."""
    words = []
    for word in _ENGLISH_WORD.findall(unicodedata.normalize("NFC", caption).lower().replace("\u2019", "'")):
        if word.endswith("'s") and len(word) > 2:
            words += [word[:-2], "'s"]
        else:
            words.append(word)
    return words


def join_english(words: Sequence[str]) -> str:
    """Joins the words with spaces; a possessive is attached to its owner."""
    return " ".join(words).replace(" 's", "'s")


def split_characters(caption: str) -> list[str]:
    """Splits into single characters, for scripts without spaces (Chinese, Japanese, Thai).

    Marks stay with their letter; Latin words and numbers stay whole. Punctuation, symbols and spaces are
    dropped, and full-width letters become ordinary ones.
    """
    units: list[str] = []
    run_goes_on = False
    for letter in unicodedata.normalize("NFKC", caption).lower():
        category, is_latin = unicodedata.category(letter)[0], _LATIN_RUN.fullmatch(letter) is not None
        if category == "M" and units:
            units[-1] += letter
        elif is_latin and run_goes_on:
            units[-1] += letter
        elif category in "LN":
            units.append(letter)
        run_goes_on = is_latin
    return units


_WITHOUT_SPACES = (
    "CJK UNIFIED",
    "CJK COMPATIBILITY",
    "HIRAGANA",
    "KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)


def written_without_spaces(text: str) -> bool:
    """Are most letters of a script that puts no spaces between words (Chinese, Japanese, Thai)? Korean does
    put them."""
    letters = [letter for letter in text if unicodedata.category(letter)[0] == "L"]
    without = sum(unicodedata.name(letter, "").startswith(_WITHOUT_SPACES) for letter in letters)
    return 2 * without > len(letters)


def join_characters(units: Sequence[str]) -> str:
    """Joins the units without spaces, except between two Latin words or numbers."""
    text = ""
    for unit in units:
        text += f" {unit}" if text and _LATIN_RUN.fullmatch(text[-1]) and _LATIN_RUN.match(unit) else unit
    return text


_SPLITTERS: dict[str, tuple[Callable[[str], list[str]], Callable[[Sequence[str]], str]]] = {
    "english": (split_english, join_english),
    "characters": (split_characters, join_characters),
}


def with_plurals(synonyms: dict[str, str]) -> dict[str, str]:
    """Adds the plural of every phrase, unless the plural is itself a phrase."""
    return {plural(phrase): name for phrase, name in synonyms.items()} | synonyms


def plural(phrase: str) -> str:
    """Returns the plural of an English noun or of a phrase's last word, by rules and some exceptions."""
    *before, noun = phrase.split(" ")
    for ending, other in PLURALS.items():
        if noun == ending or (ending in ("man", "child") and noun.endswith(ending) and noun != "human"):
            return " ".join([*before, noun.removesuffix(ending) + other])
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        ending = "es"
    elif noun.endswith("y") and noun[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        noun, ending = noun[:-1], "ies"
    else:
        ending = "s"
    return " ".join([*before, noun + ending])


@dataclass(frozen=True)
class Vocabulary:
    """The words that a captioner knows, with their ids. `build` counts them; `from_json` reads them back."""

    words: tuple[str, ...]
    splitter: Splitter
    minimum_count: int
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.splitter not in _SPLITTERS:
            raise ModelError(
                f"the vocabulary splits by {self.splitter!r}, expected one of {', '.join(_SPLITTERS)}"
            )
        ids = {word: number for number, word in enumerate(self.words, start=1)}
        if len(ids) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ModelError(f"the vocabulary holds {twice!r} twice: every word needs one id")
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def build(
        cls, captions: Iterable[str], minimum_count: int = 5, splitter: Splitter = "english"
    ) -> Vocabulary:
        """Keeps the words that occur at least `minimum_count` times, most frequent first (ties by alphabet).

        Give the captions of the training split only: words of val and test must stay unknown, or their scores
        are too high. Raises `DataError` where no word is frequent enough.
        """
        split = _SPLITTERS[splitter][0] if splitter in _SPLITTERS else None
        if split is None:
            raise DataError(
                f"captions cannot be split by {splitter!r}, expected one of {', '.join(_SPLITTERS)}"
            )
        captions = list(captions)
        counts = Counter(word for caption in captions for word in split(caption))
        words = sorted(
            (word for word, count in counts.items() if count >= minimum_count),
            key=lambda word: (-counts[word], word),
        )
        if not words:
            most = max(counts.values(), default=0)
            found = f"no word occurs {minimum_count} times (the most frequent one {most} times)"
            if splitter == "english" and any(map(written_without_spaces, captions)):
                raise DataError(
                    f"{found}, as the captions are of a script without spaces and each is one long word: "
                    "split them by data.splitter=characters"
                )
            raise DataError(f"{found}: lower minimum_count or add captions")
        return cls(tuple(words), splitter, minimum_count)

    @property
    def size(self) -> int:
        """V: the number of words and the four special ids."""
        return len(self.words) + 4

    @property
    def special(self) -> SpecialIds:
        """Ids of padding, start, end and unknown."""
        return SpecialIds(pad=0, start=self.size - 2, end=self.size - 1, unknown=self.size - 3)

    def encode(self, caption: str) -> list[int]:
        """Returns the ids of the words, without start and end; unknown words get the id of unknown."""
        unknown = self.special.unknown
        return [self._ids.get(word, unknown) for word in _SPLITTERS[self.splitter][0](caption)]

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a text that are not known, each once, as `encode` splits them."""
        units = _SPLITTERS[self.splitter][0](caption)
        return list(dict.fromkeys(unit for unit in units if unit not in self._ids))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns one word per id up to the first end, without padding and start.

        Raises `DataError` for an id outside the vocabulary.
        """
        return [
            UNKNOWN if number == self.special.unknown else self.words[number - 1]
            for number in real_ids(ids, self.special, self.size)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the caption of the ids. Raises `DataError` for an id outside the vocabulary."""
        return _SPLITTERS[self.splitter][1](self.tokens(ids))

    def to_json(self) -> dict:
        """Returns the content of `vocab.json` in a model folder."""
        return {"splitter": self.splitter, "minimum_count": self.minimum_count, "words": list(self.words)}

    @classmethod
    def from_json(cls, content: dict) -> Vocabulary:
        """The inverse of `to_json`. Raises `ModelError` where a field is missing or of the wrong type."""
        words, minimum_count = content.get("words"), content.get("minimum_count")
        splitter: Any = content.get("splitter")  # the constructor checks it
        if (
            not isinstance(words, list)
            or not all(isinstance(word, str) for word in words)
            or not isinstance(minimum_count, int)
        ):
            raise ModelError(
                "a vocabulary needs splitter, minimum_count and a list of words, found "
                f"{', '.join(content) or 'nothing'}"
            )
        return cls(tuple(words), splitter, minimum_count)


def real_ids(ids: Iterable[int], special: SpecialIds, size: int) -> list[int]:
    """Returns the ids of words: those up to the first end, without padding and start.

    Raises `DataError` for an id outside 0 to size - 1.
    """
    kept = []
    for number in map(int, ids):
        if not 0 <= number < size:
            raise DataError(
                f"token id {number} is outside the vocabulary of {size}: the ids were made with another "
                "vocabulary"
            )
        if number == special.end:
            break
        if number not in (special.pad, special.start):
            kept.append(number)
    return kept
