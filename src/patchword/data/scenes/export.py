"""Writes scenes as a data set on disk, so that commands run on them as on any other."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Literal

from PIL import Image

from patchword.data.scenes.describe import describe
from patchword.data.scenes.draw import boxes, draw, masks
from patchword.data.scenes.questions import ask
from patchword.data.scenes.world import HeldOut, make_scenes
from patchword.files import write_bytes, write_text


def write_questions(
    folder: Path | str,
    n: int,
    level: int = 1,
    split: str = "train",
    held_out: HeldOut | None = None,
    seed: int = 0,
    questions: int = 4,
) -> Path:
    """Writes questions about the scenes that `write_scenes` draws with the same arguments, as JSON lines.

    Returns the path of folder/questions.jsonl. Call it once per split: other splits in the file are kept.
    """
    file = Path(folder) / "questions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept = [line for line in lines if json.loads(line)["split"] != split]
    for scene in make_scenes(n, level, split, held_out, seed):
        for asked in ask(scene, questions):
            row = {
                "image": f"{scene.name}.png",
                "question": asked.text,
                "answer": asked.answer,
                "type": asked.kind,
                "split": split,
            }
            kept.append(json.dumps(row))
    write_text(file, "\n".join(kept) + "\n")
    return file


def write_phrases(
    folder: Path | str,
    n: int,
    level: int = 2,
    size: int = 32,
    split: str = "train",
    held_out: HeldOut | None = None,
    seed: int = 0,
) -> Path:
    """Writes what things of the scenes that `write_scenes` draws with the same arguments are called, with
    their boxes, as JSON lines: colour and shape, where no other thing of the scene has both. Boxes are those
    of the visible pixels, left, top, right, bottom as shares of the picture.

    Returns the path of folder/phrases.jsonl. Call it once per split: other splits in the file are kept.
    """
    file = Path(folder) / "phrases.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept = [line for line in lines if json.loads(line)["split"] != split]
    scenes = make_scenes(n, level, split, held_out, seed)
    for scene, boxes_K4 in zip(scenes, boxes(masks(scenes, size)).tolist(), strict=True):
        names = [f"the {thing.colour} {thing.shape}" for thing in scene.things]
        for name, box in zip(names, boxes_K4, strict=False):
            if names.count(name) == 1 and any(box):
                shares = [round(edge / size, 4) for edge in box]
                row = {"image": f"{scene.name}.png", "phrase": name, "box": shares, "split": split}
                kept.append(json.dumps(row))
    write_text(file, "\n".join(kept) + "\n")
    return file


def write_labels(
    folder: Path | str,
    n: int,
    attribute: Literal["shape", "colour", "size"] = "shape",
    split: str = "train",
    held_out: HeldOut | None = None,
    seed: int = 0,
) -> Path:
    """Writes the shape, colour or size of the one thing in each scene of level 1 that `write_scenes` draws
    with the same arguments, as a table for labelling: JSON lines of image, text (always "a thing"), label
    and split.

    Returns the path of folder/labels.jsonl. Call it once per split: other splits in the file are kept.
    """
    file = Path(folder) / "labels.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept = [line for line in lines if json.loads(line)["split"] != split]
    for scene in make_scenes(n, 1, split, held_out, seed):
        label = getattr(scene.things[0], attribute)
        kept.append(
            json.dumps({"image": f"{scene.name}.png", "text": "a thing", "label": label, "split": split})
        )
    write_text(file, "\n".join(kept) + "\n")
    return file


def write_scenes(
    folder: Path | str,
    n: int,
    level: int = 1,
    size: int = 32,
    split: str = "train",
    held_out: HeldOut | None = None,
    seed: int = 0,
    captions: int = 5,
) -> Path:
    """Writes `n` scenes of a split as PNG files under folder/images and as Karpathy JSON.

    Returns the path of folder/dataset.json. Call it once per split: other splits in the file are kept, and
    the split itself is replaced.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    file = folder / "dataset.json"
    entries = (
        [one for one in json.loads(file.read_text(encoding="utf-8"))["images"] if one["split"] != split]
        if file.exists()
        else []
    )
    scenes = make_scenes(n, level, split, held_out, seed)
    taken = {one["imgid"] for one in entries}
    free = (number for number in range(len(taken) + n) if number not in taken)
    for scene, pixels_SSC, image_id in zip(scenes, draw(scenes, size), free, strict=False):
        written = io.BytesIO()
        Image.fromarray(pixels_SSC).save(written, "png")
        write_bytes(folder / "images" / f"{scene.name}.png", written.getvalue())
        told = [{"raw": caption.text, "tokens": list(caption.words)} for caption in describe(scene, captions)]
        entries.append(
            {"imgid": image_id, "filename": f"{scene.name}.png", "split": split, "sentences": told}
        )
    write_text(file, json.dumps({"dataset": "scenes", "images": entries}))
    return file
