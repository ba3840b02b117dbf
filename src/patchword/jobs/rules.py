"""Rules by which pairs of a crawl are dropped; each is a value that looks at some pairs and says why one
goes.

They follow the published recipes for alt-text: Conceptual Captions (Sharma et al. 2018, section 3: size,
aspect, share of letters, boiler-plate, repetition), LAION (Schuhmann et al. 2022: length, score of two
towers), DataComp (Gadre et al. 2023: overlap with test sets by near-duplicate). What counts is one pass: a
text that comes too often is kept the first times, and of near-duplicate pictures the first stays. Memory does
not grow with the crawl but for a table of the pictures' hashes, some 400 bytes for each.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from patchword.data.isolated import PictureReader
from patchword.errors import ConfigError, PictureError, counted

BOILERPLATE = (
    "stock photo|stock image|royalty.free|getty images|shutterstock|click (here|to)|image result for|"
    r"photo (of the day|gallery)|thumbnail|screenshot|image \d+|img[_ -]?\d+|dsc[_ -]?\d+|untitled|"
    r"no description|logo|icon|https?://|www\.|\.(jpe?g|png|gif|webp)\b|free shipping|buy now|add to cart"
)
"""What pages say of a picture without looking at it, as one pattern over lower-case text."""
_BANDS = 4
_SCRIPTS_BEGIN = range(0x41, 0x33480)
"""Where Unicode has letters; the first one of a script is found soon."""


class Pair(NamedTuple):
    """A picture and its alt-text, as a crawl gives them."""

    name: str
    text: str
    content: bytes | None = None
    """The picture's file; None where the source holds texts alone, and then rules over pictures keep all."""
    width: int = 0
    height: int = 0
    """In pixels; 0 where they are not known."""
    problem: str = ""
    """Why the source could not give text and picture; empty where it could."""


class Rule(Protocol):
    """A rule; `name` is what the report calls it."""

    name: str

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """Why each pair is dropped; None for those that stay."""


class Counts:
    """How often things came, in memory that does not grow: a count-min sketch (Cormode and Muthukrishnan
    2005).

    A count is never too low, and too high only where all three places of a thing are shared.
    """

    def __init__(self, places: int = 2**22) -> None:
        self._counts = np.zeros((3, places), dtype=np.uint32)

    def add(self, thing: str) -> int:
        """How often it came, this time included."""
        digest = hashlib.blake2b(thing.encode("utf-8", "surrogatepass"), digest_size=24).digest()
        places = np.frombuffer(digest, dtype="<u8") % self._counts.shape[1]
        return int(min(self._more(row, int(place)) for row, place in enumerate(places)))

    def _more(self, row: int, place: int) -> int:
        count = int(self._counts[row, place]) + 1
        self._counts[row, place] = min(count, 2**32 - 1)
        return count


class Length:
    """Texts of too few or too many words."""

    name = "length"

    def __init__(self, least: int = 3, most: int = 60) -> None:
        self.least, self.most = least, most

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        counts = [len(pair.text.split()) for pair in pairs]
        return [None if self.least <= count <= self.most else counted(count, "word") for count in counts]


class Letters:
    """Texts with too small a share of letters, or of letters of one script (`LATIN`, `CYRILLIC`, `CJK`, ...).

    The script of a letter is the first word of its Unicode name. Raises ConfigError for one that no letter
    has.
    """

    name = "letters"

    def __init__(self, share: float = 0.6, script: str = "LATIN", script_share: float = 0.9) -> None:
        if not any(unicodedata.name(chr(one), "").startswith(script) for one in _SCRIPTS_BEGIN):
            known = "such as LATIN, CYRILLIC, GREEK, ARABIC, DEVANAGARI, HANGUL, HIRAGANA or CJK"
            raise ConfigError(f"no letter of Unicode is {script!r}: name a script as Unicode does, {known}")
        self.share, self.script, self.script_share = share, script, script_share
        self._known: dict[str, bool] = {}

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        return [self._why(pair.text) for pair in pairs]

    def _why(self, text: str) -> str | None:
        written = text.replace(" ", "")
        letters = [letter for letter in written if letter.isalpha()]
        if len(letters) < self.share * max(len(written), 1):
            return f"{len(letters)} letters of {len(written)} signs"
        plain = self.script == "LATIN" and text.isascii()
        own = len(letters) if plain else sum(map(self._of_script, letters))
        if own < self.script_share * len(letters):
            return f"{own} of {len(letters)} letters are {self.script}"
        return None

    def _of_script(self, letter: str) -> bool:
        found = self._known.get(letter)
        if found is None:
            found = self._known[letter] = unicodedata.name(letter, "").startswith(self.script)
        return found


class Boilerplate:
    """Texts that a pattern of phrases matches."""

    name = "boilerplate"

    def __init__(self, pattern: str = BOILERPLATE) -> None:
        self._pattern = re.compile(pattern)

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        found = [self._pattern.search(pair.text.lower()) for pair in pairs]
        return [None if match is None else f"says {match[0]!r}" for match in found]


class SameText:
    """Texts that came more than `most` times: menus and logos, not pictures, are what they describe."""

    name = "same text"

    def __init__(self, most: int = 10) -> None:
        self.most, self._counts = most, Counts()

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        counts = [self._counts.add(" ".join(pair.text.lower().split())) for pair in pairs]
        return [None if count <= self.most else f"came {count} times" for count in counts]


class RareWords:
    """Texts of which no pair of neighbouring words came before, once `after` texts were seen: codes and
    noise."""

    name = "rare words"

    def __init__(self, after: int = 100_000) -> None:
        self._after, self._seen, self._counts = after, 0, Counts(2**23)

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        return [self._why(pair.text.lower().split()) for pair in pairs]

    def _why(self, words: list[str]) -> str | None:
        self._seen += 1
        counts = [self._counts.add(f"{a} {b}") for a, b in zip(words, words[1:], strict=False)]
        fresh = self._seen > self._after and counts and max(counts) == 1
        return "no two neighbouring words came before" if fresh else None


class Size:
    """Pictures whose shorter side is too short, or whose longer one is too many times that."""

    name = "size"

    def __init__(self, shortest: int = 200, aspect: float = 3.0) -> None:
        self.shortest, self.aspect = shortest, aspect

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        return [self._why(pair) for pair in pairs]

    def _why(self, pair: Pair) -> str | None:
        short, long = sorted((pair.width, pair.height))
        if short and (short < self.shortest or long > self.aspect * short):
            return f"{pair.width} x {pair.height}"
        return None


class Readable:
    """Pictures that cannot be decoded, or not in the time that one may take."""

    name = "readable"

    def __init__(self, reader: PictureReader | None = None) -> None:
        """`reader` may be shared with other rules."""
        self._reader = reader or PictureReader()

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        return [self._why(pair) for pair in pairs]

    def _why(self, pair: Pair) -> str | None:
        if pair.content is None:
            return None
        try:
            self._reader.open(pair.content, name=pair.name)
        except PictureError as error:
            return str(error)
        return None


class NearDuplicate:
    """Pictures like one that came before, or one of a test set (`among`), by a hash of 64 bits.

    The hash says of a picture reduced to 9 x 8 grey values where it grows brighter to the right (dHash). Two
    are near-duplicates when at most `bits` of 64 differ, at most 3: then one of four parts of 16 bits is
    equal, and only those with such a part are compared.
    """

    def __init__(
        self, bits: int = 3, among: Iterable[int] | None = None, reader: PictureReader | None = None
    ) -> None:
        """`reader` may be shared with other rules."""
        self._reader = reader or PictureReader()
        self.name = "near-duplicate" if among is None else "in the test set"
        self._bits, self._grows = min(bits, _BANDS - 1), among is None
        self._parts: dict[tuple[int, int], list[int]] = {}
        for code in among or ():
            self._add(code)

    def __call__(self, pairs: Sequence[Pair]) -> list[str | None]:
        """See `Rule`."""
        return [self._why(pair) for pair in pairs]

    def _why(self, pair: Pair) -> str | None:
        if pair.content is None:
            return None
        try:
            code = difference_hash(self._reader.open(pair.content, name=pair.name))
        except PictureError as error:  # also where the rule `readable` was left out
            return str(error)
        for part in _parts_of(code):
            for other in self._parts.get(part, ()):
                if (code ^ other).bit_count() <= self._bits:
                    return f"{(code ^ other).bit_count()} of 64 bits from another picture"
        if self._grows:
            self._add(code)
        return None

    def _add(self, code: int) -> None:
        for part in _parts_of(code):
            self._parts.setdefault(part, []).append(code)


def difference_hash(picture: Image.Image) -> int:
    """dHash of a picture: 64 bits."""
    grey_89 = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey_89[:, 1:] > grey_89[:, :-1]).tobytes(), "big")


def _parts_of(code: int) -> list[tuple[int, int]]:
    return [(band, code >> (16 * band) & 0xFFFF) for band in range(_BANDS)]
