"""Indexes and data files of every format, as victims of the mutations of `mutants.py`: what is read from a
damaged one is an error that names it, or records; never a traceback.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutants
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from patchword.data.formats.instances import read_instances
from patchword.data.formats.labels import LabelTable, TableColumns
from patchword.data.formats.questions import read_questions
from patchword.data.formats.readers import read_captions
from patchword.errors import DataError
from patchword.metrics.answer_files import read_answers, read_given
from patchword.metrics.chair_files import read_objects
from patchword.metrics.files import read_predictions, read_references
from patchword.search.index import open_index, update_index
from patchword.search.records import IndexModel

ROWS = [
    (f"photo {number}.jpg", f"a dog, number {number}", "train" if number else "val") for number in range(4)
]


def victims(folder: Path) -> dict[str, mutants.Victim]:
    """One folder of each kind. A data file is a person's own: another value in it is no damage."""
    found = {"index": index(folder)}
    for kind, (files, read) in data_files().items():
        (folder / kind).mkdir()
        for name, content in files.items():
            (folder / kind / name).write_bytes(content)
        result = repr(read(folder / kind))
        found[kind] = mutants.Victim(folder / kind, Path, read, result, tuple(files))
    return found


def index(folder: Path) -> mutants.Victim:
    """Two segments of pictures that are told apart by their colours."""

    def embed(pictures):
        return np.stack([np.asarray(one.resize((1, 1)), np.float32).reshape(3) + 1 for one in pictures])

    photos, out = folder / "photos", folder / "index"
    photos.mkdir()
    for number in range(6):
        Image.new("RGB", (4, 4), (40 * number, 255 - 40 * number, 37)).save(photos / f"{number}.png")
        if number in (3, 5):
            update_index(photos, out, IndexModel(embed, "colours"), thumbnails=False)

    def hits(path: Path) -> list[list[tuple[str, float]]]:
        with open_index(path, "colours") as opened:
            queries = np.eye(3, dtype=np.float32) + 0.1
            return [
                [(os.path.basename(one.path), round(one.score, 5)) for one in opened.search(query, 9)]
                for query in queries
            ]

    return mutants.Victim(out, hits, lambda found: found, repr(hits(out)))


def leniently(read: Callable[..., Any]) -> Callable[[Path], Any]:
    """Both ways in which a reader is used: with the complaints gathered, as `check` does, then stopping at
    the first one."""

    def both(path: Path) -> Any:
        complaints: list[tuple[str, ...]] = []
        try:
            found = read(path, complain=lambda *said, **more: complaints.append(said))
        except DataError as error:
            complaints.append((str(error),))
            found = None
        strictly = read(path)
        assert complaints or found == strictly
        return strictly

    return both


def data_files() -> dict[str, tuple[dict[str, bytes], Callable[[Path], Any]]]:
    """The files of each format, and what reads them."""
    images = [{"id": number, "file_name": file} for number, (file, _, _) in enumerate(ROWS)]
    told = [{"id": n, "image_id": n, "caption": text} for n, (_, text, _) in enumerate(ROWS)]
    karpathy = [
        {"filename": file, "split": split, "imgid": n, "sentences": [{"raw": text, "tokens": text.split()}]}
        for n, (file, text, split) in enumerate(ROWS)
    ]
    asked = [{"question_id": n, "image_id": n, "question": "what is it?"} for n in range(4)]
    people = [{"answer": "dog", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    answered = [{**one, "answers": people, "answer_type": "other"} for one in asked]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12} for n in range(4)]
    sized = [{**image, "width": 9, "height": 8} for image in images]
    categories = [{"id": 1, "name": "dog"}]
    table = "".join(f'"{file}","{text}",{split}\n' for file, text, split in ROWS)
    lines = "".join(json.dumps({"file_name": f, "text": t}) + "\n" for f, t, _ in ROWS)
    said = [{"image_id": str(n), "caption": text} for n, (_, text, _) in enumerate(ROWS)]
    parquet = pyarrow.BufferOutputStream()
    columns = {"image": [row[0] for row in ROWS], "caption": [row[1] for row in ROWS]}
    pyarrow.parquet.write_table(pyarrow.table(columns), parquet)

    def one(name: str, read: Callable[..., Any]) -> Callable[[Path], Any]:
        return lambda folder: read(folder / name)

    captions, questions = leniently(read_captions), leniently(read_questions)
    labels = lambda path: list(LabelTable(path, TableColumns()).rows())  # noqa: E731
    return {
        "coco": (
            {"captions.json": dumped({"images": images, "annotations": told})},
            one("captions.json", captions),
        ),
        "karpathy": ({"dataset.json": dumped({"images": karpathy})}, one("dataset.json", captions)),
        "csv": ({"mine.csv": f"image,caption,split\n{table}".encode()}, one("mine.csv", captions)),
        "lines": ({"mine.jsonl": lines.encode()}, one("mine.jsonl", captions)),
        "metadata csv": ({"metadata.csv": f"file_name,text,split\n{table}".encode()}, captions),
        "metadata lines": ({"metadata.jsonl": lines.encode()}, captions),
        "parquet": ({"mine.parquet": parquet.getvalue().to_pybytes()}, one("mine.parquet", captions)),
        "vqa": (
            {
                "v2_OpenEnded_mscoco_val2014_questions.json": dumped(
                    {"questions": asked, "data_subtype": "val2014"}
                ),
                "v2_mscoco_val2014_annotations.json": dumped(
                    {"annotations": answered, "data_subtype": "val2014"}
                ),
            },
            one("v2_OpenEnded_mscoco_val2014_questions.json", questions),
        ),
        "vqa annotations": (
            {"annotations.json": dumped({"annotations": answered, "data_subtype": "val2014"})},
            one("annotations.json", read_given),
        ),
        "vqa answers": (
            {"results.json": dumped([{"question_id": n, "answer": "dog"} for n in range(4)])},
            one("results.json", read_answers),
        ),
        "predictions": ({"said.json": dumped(said)}, one("said.json", read_predictions)),
        "references": (
            {"refs.json": dumped({"images": images, "annotations": told})},
            one("refs.json", read_references),
        ),
        "instances": (
            {"boxes.json": dumped({"images": sized, "annotations": boxes, "categories": categories})},
            one("boxes.json", leniently(read_instances)),
        ),
        "objects": (
            {"boxes.json": dumped({"images": sized, "annotations": boxes, "categories": categories})},
            one("boxes.json", read_objects),
        ),
        "labels": (
            {"rows.csv": b"image,text,label\na.jpg,a dog,dog\nb.jpg,a cat,cat\n"},
            one("rows.csv", labels),
        ),
    }


def dumped(content: Any) -> bytes:
    return json.dumps(content).encode()
