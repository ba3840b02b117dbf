"""`patchword predict`: captions of a data set's split, in the results format of COCO, answers in that of VQA, or labels as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.tables import MissingChoice
from patchword.errors import PictureError


def predict(
    model: Annotated[str, typer.Argument(help="A shipped name, a folder, a hub id, or hub:ID of a transformers captioner.")],
    data: Annotated[Path, typer.Option("--data", help="Annotations that name the pictures, questions about them, or a table with texts.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the pictures.")],
    out: Annotated[
        Path, typer.Option("--out", help="File to write: a list of {image_id, caption} or {question_id, answer}; labels: .csv or .jsonl.")
    ],
    split: Annotated[str, typer.Option(help="Split whose pictures are captioned or asked about.")] = "test",
    answers: Annotated[
        Path | None, typer.Option(help="Questions: annotations of VQA v2, where they do not lie beside the questions.")
    ] = None,
    beam: Annotated[int | None, typer.Option(help="Hypotheses that the search follows; the model's own number where left out.")] = None,
    missing: Annotated[MissingChoice, typer.Option(help="Labels: rows without text or picture: error, image-only or text-only.")] = "error",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures that go through the model together.")] = 32,
) -> None:
    """Caption every picture of a split, answer the questions about it, or label its rows; a picture that cannot be read is named on
    standard error and left out, and the exit status is 1."""
    from patchword.tasks.load import task_of

    task_name = task_of(model)
    if task_name == "classify":
        from patchword.cli.tables import predict_table

        raise typer.Exit(predict_table(model, data, images, out, split, missing, device, batch))
    if task_name == "answer":
        from patchword.cli.questions import predict_answers

        raise typer.Exit(predict_answers(model, data, answers, images, out, split, device, batch))
    from patchword.data.pictures import open_picture
    from patchword.data.readers import read_captions, split_records
    from patchword.log import progress
    from patchword.tasks.caption import load

    records = split_records(read_captions(data), split)
    captioner = load(model, device)
    rows, bad = [], 0
    with progress() as bar:
        task = bar.add_task(f"captions of {split}", total=len(records), status="")
        for first in range(0, len(records), batch):
            ids, pictures = [], []
            for record in records[first : first + batch]:
                try:
                    pictures.append(open_picture(images / record.file))
                    ids.append(record.image_id)
                except PictureError as error:
                    print(f"patchword: {' '.join(str(error).split())}", file=sys.stderr)
                    bad += 1
            results = captioner.caption(pictures, beams=beam, trace=False) if pictures else []
            rows += [{"image_id": image, "caption": result.text} for image, result in zip(ids, results, strict=True)]
            bar.update(task, advance=batch)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    partial.replace(out)
    print(f"{out}: {len(rows)} captions" + (f", {bad} pictures could not be read" if bad else ""))
    raise typer.Exit(1 if bad else 0)
