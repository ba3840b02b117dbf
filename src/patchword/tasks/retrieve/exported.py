"""Exported two towers, run by onnxruntime without torch; `tasks/retrieve/export.py` writes their folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchword.checkpoints import folder as checkpoint
from patchword.config import validate
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.onnx_graphs import Graph
from patchword.text.subwords import remarks_on, rows_of, vocabulary_from_json

PICTURES, TEXTS = "pictures.onnx", "texts.onnx"
_BATCH = 32


class ExportedTowers:
    """Pictures and texts as vectors of one space; takes the place of two towers in a search."""

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        """Raises ModelError for a folder that is no export; `threads` of 0 lets onnxruntime choose."""
        folder = Path(folder)
        facts = checkpoint.read_exported(
            folder, ("identity", "longest", "preprocessing", "width"), "two towers are"
        )
        self.identity, self._longest = str(facts["identity"]), int(facts["longest"])
        where = f"{folder / checkpoint.EXPORTED}, preprocessing"
        self._preprocessing = validate(facts["preprocessing"], Preprocessing, where)
        self.width = int(facts["width"])
        self._vocabulary = vocabulary_from_json(checkpoint.read_vocabulary(folder))
        self._pictures, self._texts = (Graph(folder / name, threads) for name in (PICTURES, TEXTS))

    def embed_images(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Unit vectors (n, E), float32. Raises PictureError for a picture that cannot be decoded."""
        parts = [np.zeros((0, self.width), dtype=np.float32)]
        for first in range(0, len(pictures), _BATCH):
            some = pictures[first : first + _BATCH]
            pixels_BHWC = np.stack([self._preprocessing.apply(open_picture(one)) for one in some])
            pixels_B3HW = self._preprocessing.normalise(pixels_BHWC)
            parts.append(self._pictures.run({"pixels": pixels_B3HW})["vectors"])
        return np.concatenate(parts)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, E), float32. Raises DataError for a text without a word that the model knows."""
        rows = rows_of(self._vocabulary, texts, self._longest)
        ids_JL = np.full((len(rows), max(map(len, rows), default=0)), self._vocabulary.special.pad)
        mask_JL = np.zeros_like(ids_JL)
        for number, row in enumerate(rows):
            ids_JL[number, : len(row)], mask_JL[number, : len(row)] = row, 1
        return self._texts.run({"ids": ids_JL, "mask": mask_JL})["vectors"]

    def remarks(self, text: str) -> list[str]:
        """What a person should know who asks with this text; see `TwoTowerModel.remarks`."""
        return remarks_on(self._vocabulary, text, self._longest)
