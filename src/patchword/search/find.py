"""A search from a query to the pictures that it found: by words or by a picture, filtered, and ranked again
where that is asked for.

query -> two towers -> vector -> search/index.py or search/milvus.py -> nearest pictures -> (patch-word
alignment ranks a shortlist again)

Nothing is printed here, and no model is loaded: the command line and the service bring both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from patchword.data.isolated import PictureReader
from patchword.data.pictures import open_picture
from patchword.errors import DataError, PictureError, counted
from patchword.search.index import Match, PictureIndex


class Embedder(Protocol):
    """Two towers: pictures and texts as vectors of one space. `tasks.retrieve.load.load_two_towers` gives
    one."""

    identity: str
    """What tells the weights apart: an index holds vectors of one model."""

    def embed_images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors (n, E), float32."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, E), float32. Raises DataError for a text without a word that the model knows."""

    def remarks(self, text: str) -> Sequence[str]:
        """What a person should know who asks with this text: words that the model does not know, and what is
        cut."""


class Aligner(Protocol):
    """A model for patch-word alignment, which `tasks.align.model.load_alignment` gives."""

    def picture_cache(self, pictures: Sequence[Image.Image]) -> Any:
        """What `similarities` takes of pictures."""

    def text_cache(self, texts: Sequence[str]) -> Any:
        """What `similarities` takes of texts."""

    def similarities(self, pictures: Any, texts: Any) -> Any:
        """A tensor (pictures, texts)."""

    def remarks(self, text: str) -> Sequence[str]:
        """Remarks on a text, as `Embedder.remarks` gives them."""


class ReRanking(NamedTuple):
    """The second stage of a search."""

    aligner: Aligner
    shortlist: int
    """How many of the nearest pictures are opened again and ranked by alignment."""


class SearchResult(NamedTuple):
    """What a search found."""

    matches: tuple[Match, ...]
    """Best first. Pictures that could not be ranked again stand last, with a score of minus infinity."""
    unreadable: tuple[str, ...] = ()
    """Why pictures could not be ranked again, one text each; their cosines are of another scale."""
    missing: frozenset[str] = frozenset()
    """Paths of `matches` at which there is no file any more."""
    remarks: tuple[str, ...] = ()
    """What a person should know of the query and the index: unknown words, a cut text, an unfinished
    index."""


class Shift(NamedTuple):
    """What a query shall have more of and less of, in words: v(query) + v(plus) - v(minus), normalised."""

    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()

    def of(self, vector_E: np.ndarray, towers: Embedder) -> np.ndarray:
        """The shifted vector, of length 1.

        Raises DataError for words that the model does not know, or where nothing is left of the query.
        """
        if not (self.plus or self.minus):
            return vector_E
        moved_E = vector_E.astype(np.float64)
        for sign, texts in ((1.0, self.plus), (-1.0, self.minus)):
            if texts:
                moved_E = moved_E + sign * towers.embed_texts(list(texts)).sum(0)
        length = float(np.linalg.norm(moved_E))
        if length < 1e-6:
            raise DataError("--plus and --minus leave nothing of the query: take other words")
        shifted_E: np.ndarray = (moved_E / length).astype(np.float32)
        return shifted_E


NO_SHIFT = Shift()


def check_query(text: str, like: Path | None) -> None:
    """Raises DataError for no query, an empty one, or two."""
    if bool(text.strip()) == (like is not None):
        found = "words and a picture" if like is not None else "an empty query"
        expected = 'expected either words (patchword search INDEX "two dogs in snow") or --like PICTURE'
        raise DataError(f"search: found {found}; {expected}")


def find_by_text(
    index: PictureIndex,
    towers: Embedder,
    text: str,
    k: int = 10,
    concepts: Sequence[str] = (),
    again: ReRanking | None = None,
    shift: Shift = NO_SHIFT,
    under: str = "",
) -> SearchResult:
    """The `k` pictures nearest to a text, best first; with `again` the best of a shortlist by alignment, with
    `under` only pictures in that folder.

    Raises:
        DataError: the text is empty or has no word that a model knows, or the index does not know a concept.
    """
    check_query(text, None)
    vector_E = shift.of(towers.embed_texts([text])[0], towers)
    remarks = [*_about(index), *towers.remarks(text)]
    if again is None:
        found = tuple(index.search(vector_E, k, concepts, under))
        return _described(SearchResult(found), [*remarks, *_nothing_under(found, under)])
    remarks += [remark for remark in again.aligner.remarks(text) if remark not in remarks]
    nearest = index.search(vector_E, max(k, again.shortlist), concepts, under)
    remarks += _nothing_under(nearest, under)
    return _described(_ranked_again(nearest, again.aligner, text, k), remarks)


def find_by_picture(
    index: PictureIndex,
    towers: Embedder,
    picture: Path,
    k: int = 10,
    concepts: Sequence[str] = (),
    shift: Shift = NO_SHIFT,
    under: str = "",
) -> SearchResult:
    """The `k` pictures of the index that are nearest to a picture, best first.

    Raises:
        PictureError: the picture cannot be read.
        DataError: the index does not know a concept.
    """
    vector_E = shift.of(towers.embed_images([open_picture(picture)])[0], towers)
    found = tuple(index.search(vector_E, k, concepts, under))
    return _described(SearchResult(found), [*_about(index), *_nothing_under(found, under)])


def _nothing_under(found: Sequence[Match], under: str) -> list[str]:
    """What a person should know whose folder holds nothing that was asked for."""
    if found or not under:
        return []
    place = os.path.abspath(under)
    return [f"nothing was found in {place}: --under takes a folder by the name with which it was indexed"]


def _about(index: PictureIndex) -> list[str]:
    if not index.waiting:
        return []
    return [
        f"the last indexing was interrupted with {counted(index.waiting, 'picture')} left: run "
        "`patchword index` again"
    ]


def _described(found: SearchResult, remarks: Sequence[str]) -> SearchResult:
    missing = frozenset(match.path for match in found.matches if not os.path.lexists(match.path))
    return found._replace(missing=missing, remarks=tuple(remarks))


def _ranked_again(nearest: Sequence[Match], aligner: Aligner, text: str, k: int) -> SearchResult:
    """Ranks by the similarity of patches and words, best first; unreadable ones follow in their old order."""
    pictures, read, last, reasons = [], [], [], []
    with PictureReader() as reader:
        for match in nearest:
            try:
                pictures.append(reader.open(match.path))
                read.append(match)
            except PictureError as error:
                reasons.append(str(error))
                last.append(match._replace(score=float("-inf")))
    ranked: list[Match] = []
    if pictures:
        similarities_N1 = aligner.similarities(aligner.picture_cache(pictures), aligner.text_cache([text]))
        scored = zip(similarities_N1[:, 0].tolist(), read, strict=True)
        ranked = [match._replace(score=score) for score, match in sorted(scored, key=lambda pair: -pair[0])]
    return SearchResult(tuple([*ranked, *last][:k]), tuple(reasons))
