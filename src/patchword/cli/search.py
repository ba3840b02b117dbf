"""`patchword search`: find pictures of an index by a sentence or by a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchword.cli.index import DEFAULT_MODEL, progress_bar
from patchword.cli.outputs import Overwrite, complain, refuse_existing
from patchword.errors import ConfigError, counted
from patchword.files import write_text

if TYPE_CHECKING:
    from patchword.search.find import Aligner, Embedder, SearchResult


def search(
    index: Annotated[
        str,
        typer.Argument(
            help="What `patchword index --out` named: a folder, FILE.milvus.db, milvus://...; or a folder "
            "of pictures."
        ),
    ],
    query: Annotated[str, typer.Argument(help="What to find, in words.")] = "",
    like: Annotated[
        Path | None, typer.Option("--like", help="A picture: find those like it, instead of words.")
    ] = None,
    plus: Annotated[
        list[str] | None,
        typer.Option("--plus", help="Words that are added to the query; may be repeated."),
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option("--minus", help="Words that are taken from the query; may be repeated."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many pictures.")] = 10,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            "--concept", help="Only pictures with this concept; may be repeated, and needs no words."
        ),
    ] = None,
    under: Annotated[
        str, typer.Option("--under", help="Only pictures in this folder and its sub-folders.")
    ] = "",
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
        int,
        typer.Option("--shortlist", min=1, max=10_000, help="With --rerank: how many are looked at again."),
    ] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    as_html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the pictures to this file.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the pictures nearest to a sentence or a picture, best first, with their cosine; with --rerank
    their similarity by alignment. A folder of pictures is indexed first, in the system's cache folder."""
    from patchword.search.find import ReRanking, Shift, check_query, find_by_picture, find_by_text
    from patchword.search.index import names_milvus, open_index
    from patchword.search.walk import is_index
    from patchword.tasks.retrieve.query import load_embedder

    if concept and not query.strip() and like is None:
        query = " and ".join(concept)  # of all that have the concepts, those first that these words fit best
    check_query(query, like)
    refuse_existing(overwrite, {"--html": as_html})
    again, shift = None, Shift(tuple(plus or ()), tuple(minus or ()))
    if rerank is not None and (plus or minus):
        raise ConfigError(
            "--rerank aligns the words of one query, and --plus and --minus shift it: choose one"
        )
    if rerank is not None:
        again = ReRanking(_alignment(rerank, like), shortlist)
    if names_milvus(index) or is_index(Path(index)) or not Path(index).is_dir():
        opened = open_index(index)
        towers = load_embedder(model or opened.name)
    else:
        towers = load_embedder(model or DEFAULT_MODEL)
        opened = open_index(_indexed(Path(index), towers, model or DEFAULT_MODEL))
    with opened:
        opened.refuse_other(towers.identity)
        if like is not None:
            found = find_by_picture(opened, towers, like, k, concept or [], shift, under)
        else:
            found = find_by_text(opened, towers, query, k, concept or [], again, shift, under)
    show(query if like is None else str(like), found, as_json, as_html)


def _indexed(folder: Path, towers: Embedder, model: str) -> Path:
    """Bring the kept index of a folder up to it, and say what could not be read. Returns where it is kept."""
    from patchword.files import printable
    from patchword.search.cached import update_cached

    with progress_bar() as bar:
        out, report = update_cached(folder, towers, model, bar.show)
    changed = report.added + report.changed + report.moved + report.removed
    if changed or report.bad:
        skipped = f", {len(report.bad)} could not be read" if report.bad else ""
        line = (
            f"{printable(str(folder))}: {counted(report.pictures, 'picture')}, {changed} of them "
            f"new or changed{skipped}"
        )
        complain(line)
    for path, reason in report.bad[:5]:
        complain(f"{printable(path)}: {printable(reason)}")
    if len(report.bad) > 5:
        complain(f"and {len(report.bad) - 5} more; `patchword index` lists all")
    for place, count in report.absent.items():
        complain(
            f"kept {counted(count, 'picture')} of {printable(place)}, which cannot be read or is not mounted"
        )
    return out


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
    from patchword.files import printable
    from patchword.search.page import result_page

    for said in (*found.remarks, *found.unreadable):
        complain(printable(said))
    if as_html is not None:
        write_text(as_html, result_page(asked, found))
    if as_json:
        rows = [
            {
                "path": match.path,
                "score": match.score if math.isfinite(match.score) else None,
                "exists": match.path not in found.missing,
            }
            for match in found.matches
        ]
        print(json.dumps({"query": asked, "results": rows, "remarks": found.remarks}))
        return
    for match in found.matches:
        gone = "  (no longer exists)" if match.path in found.missing else ""
        print(f"{match.score:.3f}  {printable(match.path)}{gone}")
    if found.missing:
        forget = (
            "`patchword index` on their folder forgets or finds them, `--prune` forgets all that are gone"
        )
        complain(f"{len(found.missing)} of these no longer exist: {forget}")
