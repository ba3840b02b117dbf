"""The page that `patchword search --html` writes: the pictures that were found, as one file that can be
sent."""

from __future__ import annotations

from patchword.data.isolated import PictureReader
from patchword.errors import PictureError
from patchword.files import printable
from patchword.html.page import Html, name, note
from patchword.html.page import page as document
from patchword.html.pictures import picture_uri
from patchword.search.find import SearchResult

_SIDE = 320
"""Pixels of the longer side of a picture on the page."""


def result_page(query: str, found: SearchResult) -> str:
    """One HTML file with small copies of the pictures inside; a picture that cannot be read is named with the
    reason."""
    cards = []
    with PictureReader() as reader:
        for match in found.matches:
            try:
                shown = f'<img alt="" src="{picture_uri(reader.open(match.path), _SIDE)}">'
            except PictureError as error:
                shown = note(printable(str(error)))
            score = f'<span class="soft">{match.score:.3f}</span>'
            cards.append(f'<div class="sample">{shown}{name(printable(match.path))} {score}</div>')
    listed = Html(f'<div class="samples">{"".join(cards)}</div>')
    remarks = [note(printable(remark)) for remark in found.remarks]
    lead = "The pictures nearest to this, best first, each with its score."
    return document(printable(query), [*remarks, listed], lead=lead)
