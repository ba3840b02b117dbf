"""Two towers as ONNX files, which run without torch wherever there is an onnxruntime.

    OUT/pictures.onnx    pixels (B, 3, H, W), float32, as `preprocessing` makes them -> unit vectors (B, E)
    OUT/texts.onnx       ids (J, L) and mask (J, L), int64 -> unit vectors (J, E)
    OUT/vocab.json       the tokenizer;  OUT/exported.json    preprocessing, lengths, what it was made of

B, J and L are free. With `to` "int8" the weights of products and convolutions are bytes with a scale for each
output, made from the same files by onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Picture
from patchword.errors import counted
from patchword.files import whole_folder, write_json
from patchword.metrics.retrieval import retrieval
from patchword.models.pairs.two_towers import TwoTowers
from patchword.onnx_graphs import Kind, load_runtime, sample_photo, size_of, turn_into_int8, write_graph
from patchword.tasks.requests import MeasuredOn
from patchword.tasks.retrieve.exported import PICTURES, TEXTS, ExportedTowers
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel

_FREE = {"pixels": {0: "B"}, "ids": {0: "J", 1: "L"}, "mask": {0: "J", 1: "L"}, "vectors": {0: "B"}}
KNOWN_TEXTS = (
    "a dog runs through the snow",
    "two children in red jackets",
    "a plate of food on a table",
    "water",
)
"""Texts whose vectors are compared."""


class _Pictures(nn.Module):
    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.towers.embed_pictures(pixels_B3HW)


class _Texts(nn.Module):
    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, ids_JL: Tensor, mask_JL: Tensor) -> Tensor:
        return self.towers.embed_texts(ids_JL, mask_JL.bool())


def export(name: str, out: Path, to: Kind, measured: MeasuredOn | None) -> Iterator[str]:
    """Write the folder; gives lines that say how near the vectors are, and the recall that it costs. Raises
    what `export_towers` raises, DataError, PictureError."""
    towers, exported = export_towers(name, out, to)
    known = [text for text in KNOWN_TEXTS if towers.knows(text)] or [towers.vocabulary.tokens([5])[0]]
    pictures, texts = agreement(towers, exported, [sample_photo()], known)
    yield (
        f"{out}: {size_of(out):.1f} MiB; lowest cosine with the model's vectors: {pictures:.6f} for a "
        f"photograph, {texts:.6f} for {counted(len(known), 'text')}"
    )
    if measured is not None:
        before, after = recall_of((towers, exported), measured)
        yield from (f"{score} {before[score]:.2f} -> {after[score]:.2f}" for score in before)


def export_towers(name: str, out: Path, to: Kind) -> tuple[TwoTowerModel, ExportedTowers]:
    """Write the folder, which appears when it is complete; gives the model and what was made of it.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
        ModelError: there is no such model, or it has a part that ONNX cannot hold.
    """
    load_runtime()
    model = load_two_towers(name, "cpu")
    height, width = model.settings.preprocessing.hw
    ids_JL = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]]) % model.settings.vocabulary_size
    mask_JL = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with whole_folder(out) as aside:
        pixels = {"pixels": torch.zeros(2, 3, height, width)}
        write_graph(_Pictures(model.model), pixels, ["vectors"], _FREE, aside / PICTURES)
        texts = {"ids": ids_JL, "mask": mask_JL}
        write_graph(_Texts(model.model), texts, ["vectors"], _FREE, aside / TEXTS)
        for file in (PICTURES, TEXTS) if to == "int8" else ():
            turn_into_int8(aside / file)
        write_json(aside / checkpoint.VOCABULARY, model.vocabulary.to_json(), indent=1)
        made_of = model.identity
        facts: dict[str, Any] = {"format": 1, "task": "retrieve", "to": to, "identity": made_of}
        facts |= {"name": str(name)}
        facts |= {"preprocessing": model.settings.preprocessing.model_dump(mode="json")}
        facts |= {"longest": model.model.text.max_length, "width": model.settings.two_towers.width}
        write_json(aside / checkpoint.EXPORTED, facts, indent=1)
    return model, ExportedTowers(out)


def agreement(
    model: TwoTowerModel, exported: ExportedTowers, pictures: Sequence[Picture], texts: Sequence[str]
) -> tuple[float, float]:
    """The lowest cosine between the vectors of both, over pictures and over texts."""
    return (
        float((model.embed_images(pictures) * exported.embed_images(pictures)).sum(1).min()),
        float((model.embed_texts(texts) * exported.embed_texts(texts)).sum(1).min()),
    )


def recall_of(
    towers: Sequence[TwoTowerModel | ExportedTowers], measured: MeasuredOn
) -> list[dict[str, float]]:
    """Recalls and rSum of each on a split, by all captions of every picture. Raises DataError,
    PictureError."""
    records = split_records(read_captions(measured.data), measured.split)
    texts = [caption for record in records for caption in record.captions]
    owner_C = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    found = []
    for one in towers:
        with PictureReader() as reader:
            pictures_NE = np.concatenate(
                [
                    one.embed_images([reader.open(measured.images / record.file) for record in some])
                    for some in (records[at : at + 32] for at in range(0, len(records), 32))
                ]
            )
        texts_CE = np.concatenate([one.embed_texts(texts[at : at + 64]) for at in range(0, len(texts), 64)])
        scores = retrieval(pictures_NE @ texts_CE.T, owner_C)
        found.append({name: score.value for name, score in scores.items() if "R@" in name or name == "rSum"})
    return found
