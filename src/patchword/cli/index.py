"""`patchword index`: make the pictures of a folder searchable, and keep the index up to the folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchword.cli.outputs import complain
from patchword.errors import counted
from patchword.heap import keep
from patchword.lookup import import_torch

if TYPE_CHECKING:
    from patchword.search.check import CheckReport, RepairReport
    from patchword.search.index import IndexReport

DEFAULT_MODEL = "two-towers"


def index(
    out: Annotated[
        str,
        typer.Option(
            "--out",
            help="The index; made, continued or brought up to date: a folder, FILE.milvus.db, or "
            "milvus://HOST:PORT/NAME.",
        ),
    ],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of pictures; its sub-folders are searched too.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Two towers: shipped name, folder, hub id, hub:ID of a CLIP; else the index's own.",
        ),
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option(
            "--concepts",
            help="Codebook made with --model: its words are stored by picture, for search --concept.",
        ),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Forget pictures of a folder that is empty or not mounted.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Forget pictures of any folder whose file no longer exists.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only verify every byte of the index, and say what is damaged.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Keep what is whole of a damaged index, and embed what is lost.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Embed on Ray: auto, local (all cores here) or ray://HOST:PORT."),
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option("--parts", help="With --cluster: folder that all workers see, for the vectors."),
    ] = None,
) -> None:
    """Embed new and changed pictures, recognise moved ones, forget deleted ones; go on where an interrupted
    run was. Pictures that cannot be read are listed, with exit status 1 at the end."""
    from patchword.errors import ConfigError
    from patchword.search.index import names_milvus, prune_index

    if names_milvus(out) and (check or repair):
        raise ConfigError(f"{out}: --check and --repair are for an index in a folder: leave them out")
    if check:
        _checked(Path(out), as_json)
        return
    if folder is None and not (prune or repair):
        raise ConfigError("index: no FOLDER was given; only --check, --prune and --repair do without")
    misfit = cluster is not None and (folder is None or concepts is not None or repair)
    if misfit or (cluster is None) != (parts is None):
        raise ConfigError("--cluster goes with --parts and FOLDER, and without --concepts and --repair")
    report = None
    if cluster is not None and parts is not None and folder is not None:
        report = _on_cluster(folder, out, model, cluster, parts, allow_empty)
    elif folder is not None or repair:
        report = _updated(folder, out, model, concepts, allow_empty, repair)
    if prune:
        pruned = prune_index(out, allow_empty=allow_empty)
        report = pruned if report is None else report
        if report is not pruned:
            report.removed += pruned.removed
            report.pictures = pruned.pictures
            report.absent.update(pruned.absent)
    if report is not None:
        show(report, out, as_json)
        if report.bad:
            raise typer.Exit(1)


def _updated(
    folder: Path | None, out: str, model: str | None, concepts: Path | None, allow_empty: bool, repair: bool
) -> IndexReport | None:
    """Load the model, mend the index where that is asked for, and bring it up to the folder, with a progress
    bar."""
    import_torch()
    keep()
    from patchword.search.check import repair_index
    from patchword.search.index import model_of, update_index
    from patchword.search.records import IndexModel
    from patchword.tasks.retrieve.load import load_two_towers

    name = model or model_of(out) or DEFAULT_MODEL
    # A search may start from another place.
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    towers, words = load_two_towers(name), None
    if concepts is not None:
        from patchword.layers.codebook import Codebook
        from patchword.tasks.retrieve.codebook import picture_concepts

        words = picture_concepts(towers, Codebook.read(concepts))
    if repair:
        _show_repair(repair_index(Path(out), towers.identity, name), Path(out))
    if folder is None:
        return None
    with progress_bar() as bar:
        seen_by = IndexModel(towers.embed_images, towers.identity, name, words)
        return update_index(folder, out, seen_by, allow_empty=allow_empty, progress=bar.show)


def _on_cluster(
    folder: Path, out: str, model: str | None, cluster: str, parts: Path, allow_empty: bool
) -> IndexReport:
    """Let workers embed what is new; here only what has changed meanwhile is."""
    from patchword.jobs.index import index_on_cluster
    from patchword.log import progress
    from patchword.search.index import model_of
    from patchword.search.records import IndexModel
    from patchword.tasks.retrieve.query import load_embedder

    name = model or model_of(out) or DEFAULT_MODEL
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    towers = load_embedder(name)
    with progress(sys.stderr.isatty()) as bar:
        task = bar.add_task("parts", total=None, status="")
        return index_on_cluster(
            folder,
            out,
            parts.resolve(),
            IndexModel(towers.embed_images, towers.identity, name),
            cluster,
            lambda done, all_parts, pictures: bar.update(
                task, completed=done, total=all_parts, status=counted(pictures, "picture")
            ),
            allow_empty=allow_empty,
        )


class _Bar:
    """A progress bar on standard error, where that is a terminal."""

    def __init__(self) -> None:
        from rich.progress import Progress

        from patchword.log import console

        shown = console(stderr=True)
        self._progress = Progress(console=shown, transient=True, disable=not shown.is_terminal)
        self._task = self._progress.add_task("pictures", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        """Set the bar to `done` of `total`."""
        self._progress.update(self._task, completed=done, total=total)


def progress_bar() -> _Bar:
    """A bar that counts pictures, or files of an index."""
    return _Bar()


def show(report: IndexReport, out: Path | str, as_json: bool) -> None:
    """Print what a run did; what was skipped goes to standard error, one line each."""
    from patchword.cli.left_out import told_left_out
    from patchword.files import printable

    if as_json:
        names = ("added", "changed", "moved", "removed", "kept", "pictures", "absent", "left_out")
        counts: dict[str, Any] = {name: getattr(report, name) for name in names}
        bad = [{"path": path, "reason": reason} for path, reason in report.bad]
        print(json.dumps({**counts, "bad": bad}))
        return
    for path, reason in report.bad:
        complain(f"skipped {printable(path)}: {printable(reason)}")
    for place, count in report.absent.items():
        said = "cannot be read, is empty or is not mounted; --allow-empty forgets them"
        complain(f"kept {counted(count, 'picture')} of {printable(place)}, which {said}")
    told = f"{report.added} added, {report.changed} changed, {report.moved} moved, {report.removed} removed"
    told = f"{told}, {report.kept} as before, {len(report.bad)} skipped"
    told += told_left_out(report.left_out)
    print(f"{counted(report.pictures, 'picture')} in {printable(str(out))}: {told}")


def _checked(out: Path, as_json: bool) -> None:
    from patchword.files import printable
    from patchword.search.check import check_index
    from patchword.search.manifest import repair_line

    with progress_bar() as bar:
        report: CheckReport = check_index(out, bar.show)
    if as_json:
        damaged = [{"file": file, "reason": reason} for file, reason in report.damaged]
        print(json.dumps({"pictures": report.pictures, "segments": report.segments, "damaged": damaged}))
    else:
        for file, reason in report.damaged:
            print(f"{printable(str(out / file))}: {reason}")
        cure = f"; {repair_line(out)} embeds again only what is lost" if report.damaged else ""
        said = "all as it was written"
        if report.damaged:
            cure = f"{repair_line(out)} embeds again only what is lost"
            said = f"{counted(len(report.damaged), 'damaged file')}; {cure}"
        print(
            f"{counted(report.pictures, 'picture')} in {counted(report.segments, 'segment')}: "
            f"{printable(said)}"
        )
    if report.damaged:
        raise typer.Exit(1)


def _show_repair(report: RepairReport, out: Path) -> None:
    from patchword.files import printable

    for file, reason in report.damaged:
        complain(f"{printable(str(out / file))}: {printable(reason)}")
    if not report.damaged:
        complain("nothing is damaged")
        return
    said = f"{counted(report.kept, 'picture')} kept their vectors, {report.lost} are known to have lost them"
    complain(said)
    for root in report.roots:
        complain(f"{printable(root)}: its pictures are in this index: an update of it embeds what is lost")
