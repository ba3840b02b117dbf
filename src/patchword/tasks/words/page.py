"""The page of `patchword words neighbours --html`: text, picture and fused neighbours side by side, with
pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchword.data.isolated import PictureReader
from patchword.errors import PictureError
from patchword.html.page import Html, escape, join, note, page, section, table
from patchword.html.pictures import picture_uri
from patchword.tasks.words.model import Neighbour, WordVectors

_SIDE = 150


def neighbours_page(model: WordVectors, words: Sequence[str], count: int) -> str:
    """A document with a section per word. Raises DataError for a word that the model does not know."""
    sections = [section(word, _of_word(model, word, count)) for word in words]
    lead = (
        "The nearest words by text, by pictures and by both, with the cosine; under a word the pictures "
        "that stand for "
        "it, the most typical first."
    )
    return page("Neighbours", sections, lead=lead)


def _of_word(model: WordVectors, word: str, count: int) -> Html:
    columns = {space: model.neighbours(word, space, count) for space in model.spaces}
    rows = [
        [_shown(found[place]) if place < len(found) else "–" for found in columns.values()]
        for place in range(count)
    ]
    parts = [pictures_strip(model, model.pictures_of(word)), table([*columns], rows)]
    missing = [space for space, found in columns.items() if not found]
    if missing:
        parts.append(note(f"This word has no {' and no '.join(missing)} vector."))
    if "picture" in columns:
        for near in columns["picture"][:3]:
            parts += [
                Html(f"<h3>{escape(near.word)}</h3>"),
                pictures_strip(model, model.pictures_of(near.word)[:4]),
            ]
    return join(parts)


def _shown(neighbour: Neighbour) -> Html:
    return Html(f'{escape(neighbour.word)} <span class="soft">{neighbour.cosine:.2f}</span>')


def imagined_page(model: WordVectors, word: str, found: Sequence[Neighbour]) -> str:
    """A document with the pictures that a word leads to."""
    has = "has pictures of its own" if model.has(word, "picture") else "never had a picture"
    return page(
        word,
        [pictures_strip(model, [one.word for one in found])],
        lead=f"The pictures nearest to where the word leads; it {has}.",
    )


def pictures_strip(model: WordVectors, files: Sequence[str]) -> Html:
    """Small pictures side by side; one that cannot be read is named with the reason."""
    if not files:
        return note("No picture stands for this word.")
    shown = []
    with PictureReader() as reader:
        for file in files:
            try:
                picture = reader.open(Path(model.settings.images or "") / file)
            except PictureError as error:
                shown.append(note(str(error)))
                continue
            style = f"aspect-ratio: {picture.width} / {picture.height}"
            img = f'<img alt="{escape(file)}" src="{picture_uri(picture, _SIDE)}">'
            shot = f'<div class="shot" style="{style}">{img}</div>'
            shown.append(Html(f'<figure class="word">{shot}</figure>'))
    return Html(f'<div class="words">{join(shown)}</div>')
