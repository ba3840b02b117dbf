"""Captions of a split, in the results format of COCO."""

from __future__ import annotations

import sys
from typing import Any

from patchword.data.formats.readers import read_captions, split_records
from patchword.data.isolated import PictureReader
from patchword.data.records import CaptionRecord
from patchword.errors import PictureError, counted
from patchword.files import write_json
from patchword.log import progress
from patchword.lookup import look_up
from patchword.tasks.caption.load import load
from patchword.tasks.requests import PredictRequest

Answers = tuple[list[dict[str, Any]], int, int]
"""Rows {image_id, caption}, pictures that could not be read, captions that were cut off."""


def predict(request: PredictRequest) -> int:
    """Write a list of {image_id, caption}; returns the exit status, 1 where a picture could not be read and
    is left out.
    """
    records = split_records(read_captions(request.data), request.split)
    if request.cluster is None:
        rows, bad, cut = _here(request, records)
        write_json(request.out, rows)
    else:
        rows, bad, cut = look_up("tasks.caption.many:write_captions")(request, records)
    print(
        f"{request.out}: {counted(len(rows), 'caption')}"
        + (f", {counted(bad, 'picture')} could not be read" if bad else "")
    )
    if cut:
        print(
            f"patchword: {counted(cut, 'caption was', 'captions were')} cut off at the longest "
            "length: --max-length makes it longer",
            file=sys.stderr,
        )
    return 1 if bad else 0


def _here(request: PredictRequest, records: list[CaptionRecord]) -> Answers:
    captioner = load(request.model, request.device)
    rows, bad, cut = [], 0, 0
    with progress() as bar, PictureReader() as reader:
        task = bar.add_task(f"captions of {request.split}", total=len(records), status="")
        for first in range(0, len(records), request.batch):
            part = records[first : first + request.batch]
            ids, pictures = [], []
            for record in part:
                try:
                    pictures.append(reader.open(request.images / record.file))
                    ids.append(record.image_id)
                except PictureError as error:
                    print(f"patchword: {' '.join(str(error).split())}", file=sys.stderr)
                    bad += 1
            results = captioner.caption(pictures, trace=False, options=request.decoding) if pictures else []
            cut += sum(not result.complete for result in results)
            rows += [
                {"image_id": image, "caption": result.text}
                for image, result in zip(ids, results, strict=True)
            ]
            bar.update(task, advance=len(part))
    return rows, bad, cut
