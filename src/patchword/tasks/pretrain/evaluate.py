"""What `patchword evaluate` says of pre-trained streams: pairs, hard false texts, hidden words, retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchword.data.formats.readers import read_captions, split_records
from patchword.errors import ConfigError
from patchword.files import write_json
from patchword.log import console, progress
from patchword.tasks.pretrain.hard_negatives import kinds_of
from patchword.tasks.pretrain.model import load_pretrained
from patchword.tasks.pretrain.regions import all_regions
from patchword.tasks.pretrain.vilbert import PairData, measure, retrieval
from patchword.tasks.pretrain.vilbert_model import TwoStreamModel
from patchword.tasks.requests import EvaluateRequest
from patchword.train.data import DataSettings, pixel_inputs

MEANING = {
    "pair_auc": "AUC of own against others' texts",
    "hard": "own text above one with a word exchanged",
    "words": "hidden words found",
    "words_without_picture": "the same without picture",
    "words_other_picture": "the same with another picture",
    "picture_to_text_R@1": "picture to text, R@1",
    "text_to_picture_R@1": "text to picture, R@1",
}


def evaluate(request: EvaluateRequest) -> int:
    """Print the scores of two streams on the captioned pictures of a split; the first caption of each counts.

    Raises ConfigError for a pre-trained tower, which has no answers of its own, DataError for other data.
    """
    model = load_pretrained(request.model, request.device)
    if not isinstance(model, TwoStreamModel):
        raise ConfigError(
            f"{request.model} is a pre-trained tower: what it is worth is told by a task that begins with it "
            "(`patchword shares`); evaluate takes two streams that model.kind vilbert pre-trained"
        )
    if request.images is None:
        raise ConfigError("two streams are evaluated on pictures with captions: give --images")
    data = pair_data(model, request.data, request.images, request.split)
    scores = measure(model.model, data, model.device)
    with progress() as bar:
        task = bar.add_task("retrieval", total=len(data.files), status="")
        scores |= retrieval(model.model, data, model.device, lambda count: bar.update(task, advance=count))
    _print(request, scores, len(data.files))
    if request.out is not None:
        write_json(request.out, {"model": request.model, "split": request.split, **scores}, indent=1)
    return 0


def pair_data(model: TwoStreamModel, annotations: Path, images: Path, split: str) -> PairData:
    """The captioned pictures of a split as the streams read them."""
    vocabulary: Any = model.vocabulary
    records = split_records(read_captions(annotations), split)
    files = [record.file for record in records]
    settings = DataSettings(annotations="", images=str(images))
    pixels = pixel_inputs(settings, model.settings.preprocessing, files)
    with progress() as bar:
        task = bar.add_task("regions", total=len(files), status="")
        kind = model.settings.vilbert.regions
        regions = all_regions(
            model.model.tower, pixels, files, kind, lambda count: bar.update(task, advance=count)
        )
    rows = tuple(
        tuple(tuple(vocabulary.encode(caption)[: model.settings.max_words]) for caption in record.captions)
        for record in records
    )
    kinds = kinds_of([row for some in rows for row in some], without=(vocabulary.special.unknown,))
    return PairData(tuple(files), rows, regions, vocabulary, kinds, model.settings.vilbert)


def _print(request: EvaluateRequest, scores: dict[str, float], pictures: int) -> None:
    from rich.table import Table

    table = Table("", "", title=f"{request.model}: {pictures} pictures of {request.split}")
    pools = int(scores["pool"])
    for name, value in scores.items():
        if name in MEANING:
            among = f", among {pools}" if "R@" in name else ""
            table.add_row(MEANING[name] + among, f"{value:.4f}")
    console(width=100).print(table)
