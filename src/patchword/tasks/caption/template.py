"""Template captions of a split, as a run folder that `compare` and `score` take: the row below all models.

The eyes are annotated objects (COCO instances) or the concepts that a captioning model's tower names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchword.data.formats.instances import PictureObjects, read_instances
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.isolated import PictureReader
from patchword.data.records import CaptionRecord
from patchword.errors import ConfigError, DataError, ModelError, PictureError
from patchword.files import write_json, write_text
from patchword.models.captioners.template import Pairs, Sight, count_pairs, sentence, smooth

_AT_ONCE = 16


class Agreement(NamedTuple):
    """How well names go together, and how much that counts beside the eyes."""

    pairs: Pairs
    weight: float

    def choose(self, named: Sequence[Sight], count: int) -> list[Sight]:
        """`count` of the sights, which come the surest first."""
        if self.weight == 0 or count < 2:
            return list(named[:count])
        shares = {sight.name: sight.share for sight in named}
        kept = smooth([shares] * count, self.pairs, self.weight, distinct=True)
        return [sight for sight in named if sight.name in kept]


NO_AGREEMENT = Agreement({}, 0.0)
"""The eyes alone decide."""


def sights_of(objects: PictureObjects, most: int) -> list[Sight]:
    """The annotated objects of a picture; their share is the share of the picture that their box takes."""
    width, height = objects.size
    found = [
        Sight(name, (box[2] - box[0]) * (box[3] - box[1]) / (width * height), box)
        for name, boxes in objects.boxes.items()
        for box in boxes
    ]
    surest = sorted({sight.name for sight in found}, key=lambda name: -_share(found, name))[:most]
    return [sight for sight in found if sight.name in surest]


def _share(sights: Sequence[Sight], name: str) -> float:
    return max(sight.share for sight in sights if sight.name == name)


def captions_from_instances(
    records: Sequence[CaptionRecord], instances: Path, most: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows {image_id, caption}, and a complaint for each picture that the instances do not have.

    A picture is found by its file name, because ids of two files need not agree.
    """
    by_file = {Path(one.file).name: one for one in read_instances(instances)}
    rows, troubles = [], []
    for record in records:
        objects = by_file.get(Path(record.file).name)
        if objects is None:
            troubles.append(f"{instances} has no picture {record.file}: it is left out")
        else:
            caption = sentence(sights_of(objects, most), most)
            rows.append({"image_id": record.image_id, "caption": caption})
    return rows, troubles


def captions_from_concepts(
    records: Sequence[CaptionRecord],
    images: Path,
    captioner: Any,
    most: int,
    least: float,
    advance: Callable[[int], None],
    agreement: Agreement = NO_AGREEMENT,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows {image_id, caption} from the concepts of at least the probability `least` that the model's tower
    names, at least one for each picture that has any. With an `agreement` as many are chosen, by what
    captions name together as well.

    Raises ModelError for a model whose tower names no concepts.
    """
    if captioner.settings.concepts is None:
        raise ModelError(
            f"{captioner.facts.name}: its tower names no concepts, and the template needs some: choose one "
            "that `patchword concepts` calibrated, or give --instances"
        )
    rows, troubles = [], []
    with PictureReader() as reader:
        for first in range(0, len(records), _AT_ONCE):
            part, opened = records[first : first + _AT_ONCE], []
            for record in part:
                try:
                    picture = reader.open(images / record.file)
                    opened.append((record, captioner.settings.preprocessing.apply(picture)))
                except PictureError as error:
                    troubles.append(str(error))
            if opened:
                seen = captioner.look(np.stack([pixels for _, pixels in opened])).concepts
                for (record, _), concepts in zip(opened, seen, strict=True):
                    named = [Sight(one.word, one.probability) for one in concepts.named]
                    sure = [sight for sight in named if sight.share >= least] or named[:1]
                    chosen = agreement.choose(named, len(sure[:most]))
                    rows.append({"image_id": record.image_id, "caption": sentence(chosen, most)})
            advance(len(part))
    return rows, troubles


def agreement_of(data: Path, weight: float) -> Agreement:
    """What the captions of the split train name together. Raises DataError where there is no such split."""
    from patchword.tasks.caption.calibrate import named_in
    from patchword.text.imagenet import common_words

    records, words = records_of(data, "train"), list(common_words())
    names = ([words[place] for place in row.nonzero().flatten().tolist()] for row in named_in(records))
    return Agreement(count_pairs(names), weight)


def records_of(data: Path, split: str) -> list[CaptionRecord]:
    """The pictures of a split. Raises DataError where there are none."""
    return split_records(read_captions(data), split)


def refuse_other_run(out: Path) -> None:
    """Raises ConfigError where the folder holds a run that no template wrote: its metrics and configuration
    would be replaced."""
    path = out / "config.json"
    there = [name for name in ("config.json", "metrics.jsonl", "samples.json") if (out / name).exists()]
    if not there:
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["captioner"]["kind"] == "template":
            return
    except (OSError, ValueError, KeyError, TypeError):  # whatever is there, no template wrote it
        pass
    raise ConfigError(
        f"{out} holds {', '.join(there)} of another run, which would be replaced: choose another folder for "
        "--out"
    )


def write_run(out: Path, rows: Sequence[dict[str, Any]], split: str, eyes: str) -> Path:
    """Writes predictions/SPLIT.json in a run folder that `compare` takes; returns the file.

    Raises DataError where no caption was made.
    """
    if not rows:
        raise DataError("no picture could be captioned: nothing is written")
    path = out / "predictions" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, list(rows))
    captioner = {"kind": "template", "eyes": eyes}
    write_json(out / "config.json", {"task": "caption", "out": str(out), "captioner": captioner}, indent=1)
    write_json(out / "samples.json", [])
    write_text(out / "metrics.jsonl", "")
    return path
