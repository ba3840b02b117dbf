"""`patchword evaluate`: how good a model is on a split whose right answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import Overwrite, refuse_existing
from patchword.errors import ConfigError
from patchword.lookup import import_torch
from patchword.tasks.requests import MissingChoice


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help=(
                "A shipped name, a folder or a hub id; or a file of another model's answers (JSON, JSONL, "
                "CSV)."
            )
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help=(
                "Questions with their answers (for VQA v2 the questions file), a table with labels, or "
                "captions."
            ),
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder of the pictures; not needed for a file of answers."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that is evaluated.")] = "val",
    answers: Annotated[
        Path | None, typer.Option(help="Annotations of VQA v2, where they do not lie beside the questions.")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            help="Training questions, for what the question alone tells; the train split of --data where "
            "left out."
        ),
    ] = None,
    missing: Annotated[
        MissingChoice,
        typer.Option(help="Labels: rows without text or picture: error, image-only or text-only."),
    ] = "error",
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for the values; labels: folder for predictions.csv, scores.json, confusion.png."
        ),
    ] = None,
    overwrite: Overwrite = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 32,
) -> None:
    """VQA accuracy by kind of question, beside what can be answered without the pictures; of labels accuracy,
    micro and macro F1 and a table per class; of two streams (ViLBERT) own texts against false ones, hidden
    words, and retrieval among 100. A picture that cannot be read is named and left out, and the exit status
    is 1.
    """
    import_torch()
    from patchword.lookup import look_up
    from patchword.tasks.requests import EvaluateRequest
    from patchword.tasks.table import TASKS, task_of

    if out is not None and not out.is_dir():
        refuse_existing(overwrite, {"--out": out}, makes_folder=True)
    elif out is not None:
        written = ("predictions.csv", "scores.json", "confusion.png")
        refuse_existing(overwrite, {f"--out {name}:": out / name for name in written})
    request = EvaluateRequest(model, data, images, split, answers, training, missing, out, device, batch)
    if Path(model).is_file():
        reader = next(task.evaluate_file for task in TASKS.values() if task.evaluate_file is not None)
        raise typer.Exit(look_up(reader)(request))
    task = task_of(model)
    evaluator = TASKS[task].evaluate
    if evaluator is None:
        raise ConfigError(
            f"evaluate takes a model that labels or answers questions, {model} is one for {task!r}: "
            "`patchword predict`, then `score`"
        )
    raise typer.Exit(look_up(evaluator)(request))
