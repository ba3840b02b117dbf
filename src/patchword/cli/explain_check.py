"""`patchword explain-check`: whether the maps of a captioner point at what its words name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import PAGES, Overwrite, complain, print_json, refuse_existing, refuse_suffix
from patchword.errors import ConfigError
from patchword.files import write_text

SHOWN = 12
"""Words whose maps the page shows."""
SCENE_SIDE = 64
"""Scenes are drawn at least this large, so that their masks are exact on every grid."""


def explain_check(
    model: Annotated[str, typer.Argument(help="A captioner: a shipped name, a folder or a hub id.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="COCO instances JSON: the boxes of the objects.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the pictures.")] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="Captions by people, in any format that training reads: their words are measured as well.",
        ),
    ] = None,
    references: Annotated[
        int,
        typer.Option(
            "--references", min=0, max=100, help="How many captions by people of each picture are measured."
        ),
    ] = 2,
    scenes: Annotated[
        int | None,
        typer.Option(
            "--scenes",
            min=1,
            max=10_000,
            help="Instead of data: this many drawn scenes, whose masks are exact.",
        ),
    ] = None,
    level: Annotated[
        int,
        typer.Option(
            "--level", min=1, max=3, help="With --scenes: 1 one thing, 2 two things, 3 three to six."
        ),
    ] = 2,
    synonyms: Annotated[
        Path | None,
        typer.Option(
            "--synonyms",
            help="Lines such as 'dog, puppy, hound'; a list for COCO's 80 categories is built in.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first pictures.")] = None,
    curves: Annotated[
        bool,
        typer.Option("--curves/--no-curves", help="Deletion and insertion, which take most of the time."),
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a page (.html) with the table and examples.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Measure maps of words against the places of objects: pointing, mass, deletion, insertion.

    Exit status 1 where a picture could not be read.
    """
    from patchword.log import progress
    from patchword.metrics.chair_files import read_synonyms
    from patchword.tasks.caption.explanations import (
        annotated_subjects,
        check_explanations,
        drawn_subjects,
        shape_synonyms,
    )
    from patchword.tasks.caption.explanations_page import (
        explanations_json,
        explanations_page,
        explanations_text,
    )
    from patchword.tasks.caption.load import load
    from patchword.tasks.caption.model import CaptioningModel
    from patchword.text.coco_objects import coco_words

    of_files = [option for option, path in (("--data", data), ("--images", images)) if path is not None]
    if len(of_files) != (0 if scenes is not None else 2) or (scenes is not None and captions is not None):
        given = ", ".join([*of_files, *(["--scenes"] if scenes is not None else [])]) or "neither"
        given += ", --captions" if captions is not None else ""
        raise ConfigError(
            f"explain-check needs --data with --images (and --captions), or --scenes N in their place; "
            f"given: {given}"
        )
    refuse_suffix("--out", out, PAGES)
    refuse_existing(overwrite, {"--out": out})
    captioner = load(model, device)
    if not isinstance(captioner, CaptioningModel):
        raise ConfigError(
            f"{model} gives no features of single cells: explain-check takes captioners of Patchword"
        )
    if scenes is not None:
        side = max(SCENE_SIDE, *captioner.settings.preprocessing.hw)
        subjects = drawn_subjects(scenes, level, side, references)
        names = shape_synonyms() if synonyms is None else read_synonyms(synonyms)
    elif data is not None and images is not None:
        subjects = annotated_subjects(data, images, captions, references)
        names = coco_words() if synonyms is None else read_synonyms(synonyms)
    subjects = subjects[:limit]
    with progress() as bar:
        task = bar.add_task("pictures", total=len(subjects), status="")
        found = check_explanations(
            captioner,
            subjects,
            names,
            curves,
            SHOWN if out else 0,
            lambda done: bar.update(task, advance=done),
        )
    for line in found.unreadable:
        complain(line)
    if out is not None:
        shown = explanations_page(found, subjects, model, captioner.settings.preprocessing)
        write_text(out, shown)
    if as_json:
        print_json(explanations_json(found))
    else:
        print(explanations_text(found))
    raise typer.Exit(1 if found.unreadable else 0)
