"""`patchword search`: find pictures of an index by a sentence or by a picture."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from patchword.search.find import Aligner, SearchResult


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
    from patchword.search.find import ReRanking, check_query, find_by_picture, find_by_text
    from patchword.search.index import open_index
    from patchword.tasks.retrieve.load import load_two_towers

    check_query(query, like)
    again = None
    if rerank is not None:
        again = ReRanking(_alignment(rerank, like), shortlist)
    with open_index(index) as opened:
        name = model or opened.name
    towers = load_two_towers(name)
    with open_index(index, towers.identity) as opened:
        if like is not None:
            found = find_by_picture(opened, towers, like, k, concept or [])
        else:
            found = find_by_text(opened, towers, query, k, concept or [], again)
    show(query if like is None else str(like), found, as_json, as_html)


def _alignment(rerank: str, like: Path | None) -> Aligner:
    from patchword.errors import DataError
    from patchword.tasks.align.model import load_alignment

    if like is not None:
        expected = "give words, or leave --rerank out"
        raise DataError(
            f"--rerank aligns words with patches, and the query is the picture {like}: {expected}"
        )
    return load_alignment(rerank)


def show(asked: str, found: SearchResult, as_json: bool, as_html: Path | None) -> None:
    """Print what was found, and write the page where one is wanted."""
    from patchword.search.page import printable, result_page

    for reason in found.unreadable:
        print(f"patchword: {' '.join(printable(reason).split())}", file=sys.stderr)
    if as_html is not None:
        as_html.write_text(result_page(asked, found.matches), encoding="utf-8")
    if as_json:
        rows = [
            {"path": match.path, "score": match.score if math.isfinite(match.score) else None}
            for match in found.matches
        ]
        print(json.dumps({"query": asked, "results": rows}))
        return
    for match in found.matches:
        print(f"{match.score:.3f}  {printable(match.path)}")
