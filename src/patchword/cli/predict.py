"""`patchword predict`: captions of a data set's split, in the results format of COCO, answers in that of VQA,
or labels as a table.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.caption import Beam, Device, Dtype, LengthPenalty, MaxLength, MinLength, NoRepeat
from patchword.cli.many import Parts, Workers, check_together
from patchword.cli.outputs import Overwrite, refuse_existing
from patchword.errors import ConfigError
from patchword.heap import keep
from patchword.lookup import import_torch
from patchword.tasks.caption.options import DecodingOptions
from patchword.tasks.requests import MissingChoice


def predict(
    model: Annotated[
        str, typer.Argument(help="A shipped name, a folder, a hub id, or hub:ID of a transformers captioner.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Annotations that name the pictures, questions about them, or a table with texts."
        ),
    ],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="File to write: a list of {image_id, caption} or {question_id, answer}; labels: .csv or "
            ".jsonl.",
        ),
    ],
    overwrite: Overwrite = False,
    split: Annotated[str, typer.Option(help="Split whose pictures are captioned or asked about.")] = "test",
    answers: Annotated[
        Path | None,
        typer.Option(help="Questions: annotations of VQA v2, where they do not lie beside the questions."),
    ] = None,
    beam: Beam = None,
    length_penalty: LengthPenalty = None,
    no_repeat: NoRepeat = None,
    max_length: MaxLength = None,
    min_length: MinLength = 0,
    missing: Annotated[
        MissingChoice,
        typer.Option(help="Labels: rows without text or picture: error, image-only or text-only."),
    ] = "error",
    device: Device = None,
    dtype: Dtype = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 32,
    cluster: Workers = None,
    parts: Parts = None,
) -> None:
    """Caption every picture of a split, answer the questions about it, or label its rows; a picture that
    cannot be read is named on standard error and left out, and the exit status is 1.
    """
    from patchword.lookup import look_up
    from patchword.tasks.requests import PredictRequest
    from patchword.tasks.table import TASKS, task_of

    refuse_existing(overwrite, {"--out": out})
    check_together(cluster, parts)
    import_torch()
    keep()
    task = task_of(model)
    predictor = TASKS[task].predict
    if predictor is None:
        offered = ", ".join(name for name, one in TASKS.items() if one.predict is not None)
        raise ConfigError(f"predict takes models for {offered}, and {model} is one for {task!r}")
    options = DecodingOptions(beam, length_penalty, no_repeat, max_length, min_length, (), dtype)
    request = PredictRequest(model, data, images, out, split, answers, options, missing, device, batch)
    request = replace(request, cluster=cluster, parts=parts)
    raise typer.Exit(look_up(predictor)(request))
