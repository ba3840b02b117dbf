"""`patchword search`: find pictures of an index by a sentence or by a picture."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from patchword.search.index import Match


def search(
    index: Annotated[Path, typer.Argument(help="Folder made by `patchword index`.")],
    query: Annotated[str, typer.Argument(help="What to find, in words.")] = "",
    like: Annotated[
        Path | None, typer.Option("--like", help="A picture: find those like it, instead of words.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many pictures.")] = 10,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help="Only pictures with this concept; may be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Two-tower model (default: the one the index was made with)."),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            "--rerank",
            help="Alignment model that ranks a shortlist again: a shipped name, a folder or a hub id.",
        ),
    ] = None,
    shortlist: Annotated[
        int, typer.Option("--shortlist", min=1, help="With --rerank: pictures that are looked at again.")
    ] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    as_html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the pictures to this file.")
    ] = None,
) -> None:
    """Print the pictures nearest to a sentence or a picture, best first, with their cosine; with --rerank their similarity by alignment."""
    from patchword.search.index import open_index
    from patchword.tasks.retrieve.load import load_two_towers

    check_query(query, like)
    again = None
    if rerank is not None:
        again = ReRanking(_alignment(rerank, like), shortlist)
    with open_index(index) as opened:
        name = model or opened.name
    find(index, load_two_towers(name), query, like, k, concept or [], as_json, as_html, again)


class ReRanking(NamedTuple):
    """The second stage of a search."""

    aligner: Any
    """`tasks.align.load_alignment` gives one."""
    shortlist: int


def _alignment(rerank: str, like: Path | None) -> Any:
    from patchword.errors import DataError
    from patchword.tasks.align.model import load_alignment

    if like is not None:
        raise DataError(
            f"--rerank aligns words with patches, and the query is the picture {like}: give words, or leave --rerank out"
        )
    return load_alignment(rerank)


def check_query(query: str, like: Path | None) -> None:
    """Raises DataError for no query, an empty one, or two."""
    from patchword.errors import DataError

    if bool(query.strip()) == (like is not None):
        found = "words and a picture" if like is not None else "an empty query"
        raise DataError(
            f'search: found {found}; expected either words (patchword search INDEX "two dogs in snow") or --like PICTURE'
        )


def find(
    index: Path,
    towers,
    query: str,
    like: Path | None,
    k: int,
    concepts: list[str],
    as_json: bool,
    as_html: Path | None,
    again: ReRanking | None = None,
) -> None:
    """The command with its model loaded: `towers` has `embed_texts`, `embed_images` and `identity`."""
    from patchword.data.pictures import open_picture
    from patchword.search.index import open_index

    check_query(query, like)
    with open_index(index, towers.identity) as opened:
        vectors = (
            towers.embed_images([open_picture(like)]) if like is not None else towers.embed_texts([query])
        )
        found = opened.search(vectors[0], k if again is None else max(k, again.shortlist), concepts)
    if again is not None:
        found = ranked_again(found, again.aligner, query)[:k]
    asked = query if like is None else str(like)
    if as_html is not None:
        as_html.write_text(page(asked, found), encoding="utf-8")
    if as_json:
        rows = [{"path": one.path, "score": one.score if math.isfinite(one.score) else None} for one in found]
        print(json.dumps({"query": asked, "results": rows}))
    else:
        for one in found:
            print(f"{one.score:.3f}  {printable(one.path)}")


def ranked_again(found: list[Match], aligner: Any, query: str) -> list[Match]:
    """By similarity of patches and words, best first. Pictures that can no longer be read follow in their old order, each named once on
    standard error, with a score of minus infinity: their cosine is of another scale."""
    from patchword.data.pictures import open_picture
    from patchword.errors import PictureError

    pictures, read, gone = [], [], []
    for one in found:
        try:
            pictures.append(open_picture(one.path))
            read.append(one)
        except PictureError as error:
            print(f"patchword: {' '.join(printable(str(error)).split())}", file=sys.stderr)
            gone.append(one._replace(score=float("-inf")))
    if not pictures:
        return gone
    similarities = aligner.similarities(aligner.picture_cache(pictures), aligner.text_cache([query]))[
        :, 0
    ].tolist()
    ranked = sorted(zip(similarities, read, strict=True), key=lambda pair: -pair[0])
    return [one._replace(score=similarity) for similarity, one in ranked] + gone


def printable(text: str) -> str:
    """The text itself on one line where a terminal can show it, else quoted with escapes (line breaks, bytes that are no text)."""
    return text if text.isprintable() else json.dumps(text)


def page(query: str, found: list) -> str:
    """One HTML file with small copies of the pictures inside, so that it can be sent; pictures that are gone are named."""
    from patchword.data.pictures import open_picture
    from patchword.errors import PictureError
    from patchword.html.page import Html, name, note
    from patchword.html.page import page as document
    from patchword.html.pictures import picture_uri

    cards = []
    for one in found:
        try:
            shown = f'<img alt="" src="{picture_uri(open_picture(one.path), 320)}">'
        except PictureError as error:
            shown = note(printable(str(error)))
        cards.append(
            f'<div class="sample">{shown}{name(printable(one.path))} <span class="soft">{one.score:.3f}</span></div>'
        )
    listed = Html(f'<div class="samples">{"".join(cards)}</div>')
    return document(
        printable(query), [listed], lead="The pictures nearest to this, best first, each with its cosine."
    )
