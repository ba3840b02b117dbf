"""A text with a picture under each word, as a page; words that prefer no picture are grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from patchword.data.isolated import PictureReader
from patchword.errors import PictureError
from patchword.html.page import Html, escape, join, note, page, section
from patchword.html.pictures import picture_uri
from patchword.tasks.vokens.model import Voken

_SIDE = 130
_FAINTEST = 0.25


class ShownWord(NamedTuple):
    """A word of the text, with the voken of the piece of it that prefers its picture most."""

    word: str
    voken: Voken


def words_of(text: str, vokens: Sequence[Voken]) -> list[ShownWord]:
    """The tokens put together to what stands between white space."""
    found: list[list[Voken]] = []
    end = -1
    for voken in vokens:
        apart = end < 0 or any(letter.isspace() for letter in text[end : voken.span[0]])
        if apart:
            found.append([])
        found[-1].append(voken)
        end = voken.span[1]
    shown = []
    for group in found:
        best = max(group, key=lambda voken: voken.preference)
        shown.append(ShownWord(text[group[0].span[0] : group[-1].span[1]], best))
    return shown


def vokens_page(texts: Sequence[str], vokens: Sequence[Sequence[Voken]], bank: int) -> str:
    """A document of all texts; `bank` is the number of pictures that there were to choose from."""
    made: dict[str, str] = {}
    words = [words_of(text, found) for text, found in zip(texts, vokens, strict=True)]
    strengths = sorted(one.voken.preference for row in words for one in row)
    low, high = (strengths[0], strengths[-1]) if strengths else (0.0, 1.0)
    sections = []
    spread = max(high - low, 1e-6)
    with PictureReader() as reader:
        for row, text in zip(words, texts, strict=True):
            figures = [_figure(one, (one.voken.preference - low) / spread, made, reader) for one in row]
            shown = Html(f'<div class="words">{join(figures)}</div>')
            sections.append(section(text[:80], shown if figures else note("This line has no word.")))
    lead = (
        f"Under each word the picture, of {bank:,}, that fits it best where it stands. The number is how "
        "far that "
        "picture lies above the mean of all, in standard deviations; the smaller it is, the fainter the "
        "word: it "
        "prefers no picture."
    )
    return page("A text in pictures", sections, lead=lead)


def _figure(one: ShownWord, strength: float, made: dict[str, str], reader: PictureReader) -> Html:
    path = one.voken.picture
    try:
        if path not in made:
            made[path] = picture_uri(reader.open(path), _SIDE)
    except PictureError as error:
        return Html(
            f'<figure class="word">{note(str(error))}<figcaption>{escape(one.word)}</figcaption></figure>'
        )
    faint = _FAINTEST + (1 - _FAINTEST) * strength
    return Html(
        f'<figure class="word" style="opacity: {faint:.2f}"><div class="shot" style="aspect-ratio: 1">'
        f'<img alt="{escape(one.word)}" src="{made[path]}"></div><figcaption>{escape(one.word)}'
        f"<span>{one.voken.preference:.1f}</span></figcaption></figure>"
    )
