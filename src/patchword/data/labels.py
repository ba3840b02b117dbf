"""Batches of labelled rows: a picture and its text, as they are or as stored tokens of frozen layers.

Rows are read from their table when a batch is made, by their position in the file; see `formats/labels.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from patchword.data.captions import PictureInputs, TokenSource, padded
from patchword.data.formats.labels import LabelTable, Missing, absent
from patchword.data.pictures import Preprocessing
from patchword.data.records import LabelRecord
from patchword.data.store import Store
from patchword.errors import DataError


class StoredTokens(NamedTuple):
    """Tokens of both towers from a store, taken before their last layers."""

    image_BNC: Tensor
    text_BLC: Tensor
    text_mask_BL: Tensor


class LabelBatch(NamedTuple):
    """B rows, with either pixels and token ids, or `tokens`.

    A row without a picture has grey pixels, a row without a text an empty text.
    """

    wheres: tuple[str, ...]
    pixels_B3HW: Tensor | None
    ids_BL: Tensor | None
    mask_BL: Tensor | None
    tokens: StoredTokens | None
    labels: Tensor
    """Class numbers (B,), or 0 and 1 per class (B, Y) where a row may have several labels; empty (0,)
    where labels are unknown."""
    has_image_B: Tensor
    has_text_B: Tensor

    @property
    def target_count(self) -> int:
        """Number of labelled rows, B."""
        return len(self.wheres)

    @property
    def picture_count(self) -> int:
        """Number of rows, B; each counts as a picture."""
        return len(self.wheres)

    def pixels_and_ids(self) -> tuple[Tensor, Tensor]:
        """What the towers read. Raises DataError where the rows come as stored tokens."""
        if self.pixels_B3HW is None or self.ids_BL is None:
            raise DataError("these rows are stored tokens: they have neither pixels nor ids")
        return self.pixels_B3HW, self.ids_BL

    def to(self, device: torch.device) -> LabelBatch:
        """Moves all tensors to a device."""
        moved: dict[str, Any] = {
            name: part.to(device, non_blocking=True)
            for name, part in self._asdict().items()
            if isinstance(part, Tensor)
        }
        tokens = (
            None
            if self.tokens is None
            else StoredTokens(*(part.to(device, non_blocking=True) for part in self.tokens))
        )
        return self._replace(tokens=tokens, **moved)


class PixelSource(PictureInputs, Protocol):
    """Inputs that are pixels, prepared for a tower."""

    @property
    def preprocessing(self) -> Preprocessing: ...


@dataclass(frozen=True)
class TokenInputs:
    """Tokens of frozen layers, one row of the store per row of the table, converted from fp16."""

    store: Store

    def load(self, places: Sequence[int]) -> StoredTokens:
        """Returns the tokens of the rows at these positions, padded to the longest text."""
        rows = self.store.rows([str(place) for place in places])
        image_BNC, text_BLC = (
            torch.from_numpy(np.stack([self.store.fields[name][row] for row in rows])).float()
            for name in ("image", "text")
        )
        lengths_B = torch.from_numpy(self.store.fields["length"][rows].astype(np.int64))
        mask_BL = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        return StoredTokens(image_BNC, text_BLC[:, : mask_BL.shape[1]], mask_BL)


@dataclass(frozen=True)
class LabelData:
    """The rows of one split.

    `classes` gives the number of each label; `reads` says whether a model reads pictures, and texts.
    """

    table: LabelTable
    places: np.ndarray
    classes: dict[str, int] | None
    """None where labels are not needed."""
    vocabulary: TokenSource
    max_words: int
    images: Path
    missing: Missing
    reads: tuple[bool, bool]
    inputs: PixelSource | TokenInputs | None
    """None where no picture is read."""

    @property
    def several(self) -> bool:
        """True where a row may have several labels."""
        return self.table.columns.separator is not None

    def first(self, count: int) -> LabelData:
        """Returns the same data with only its first rows."""
        return replace(self, places=self.places[:count])

    def plan(self, batch: int, generator: np.random.Generator | None) -> list[list[int]]:
        """Returns the batches of an epoch, each a list of positions; every row occurs once.

        The order is random, or that of the table without a generator.
        """
        order = self.places if generator is None else generator.permutation(self.places)
        return [order[first : first + batch].tolist() for first in range(0, len(order), batch)]

    def batch(self, places: Sequence[int], generator: torch.Generator | None) -> LabelBatch:
        """Builds the batch of rows; `generator` draws random views, and None takes the plain pictures."""
        records = [self.table.read(place) for place in places]
        gaps = [absent(record, self.images, self.reads, self.missing) for record in records]
        labels = (
            torch.zeros(0) if self.classes is None else encode_labels(records, self.classes, self.several)
        )
        has_image_B, has_text_B = (torch.tensor([not gap[side] for gap in gaps]) for side in (0, 1))
        wheres = tuple(f"{record.where}, byte {record.place}" for record in records)
        if isinstance(self.inputs, TokenInputs):
            return LabelBatch(
                wheres, None, None, None, self.inputs.load(places), labels, has_image_B, has_text_B
            )
        pixels = None
        if self.inputs is not None:
            there = [record.file for record, has in zip(records, has_image_B.tolist(), strict=True) if has]
            pixels = torch.zeros(len(records), 3, *self.inputs.preprocessing.hw)
            if there:
                views_B3HW = self.inputs.load(there, generator).pixels_B3HW
                assert views_B3HW is not None  # these inputs are pixels
                pixels[has_image_B] = views_B3HW
        ids_BL, mask_BL = encode_texts([record.text for record in records], self.vocabulary, self.max_words)
        return LabelBatch(wheres, pixels, ids_BL, mask_BL, None, labels, has_image_B, has_text_B)


def encode_texts(texts: Sequence[str], vocabulary: TokenSource, max_words: int) -> tuple[Tensor, Tensor]:
    """Returns ids (B, L) with start and end, and their mask; words beyond `max_words` are cut off."""
    ids_BL, lengths_B = padded(
        [vocabulary.encode(text)[:max_words] for text in texts], vocabulary.special, ends=True
    )
    return ids_BL, torch.arange(ids_BL.shape[1]) < lengths_B[:, None]


def encode_labels(records: Sequence[LabelRecord], classes: dict[str, int], several: bool) -> Tensor:
    """Returns class numbers (B,), or with `several` 0 and 1 (B, Y).

    Raises DataError with the row of a label that is not a class.
    """
    if not several:
        return torch.tensor([classes[_single(record, classes)] for record in records])
    labels_BY = torch.zeros(len(records), len(classes))
    for b, record in enumerate(records):
        for label in record.labels:
            labels_BY[b, classes[known(label, record.where, classes)]] = 1
    return labels_BY


def _single(record: LabelRecord, classes: dict[str, int]) -> str:
    if not record.labels:
        raise DataError(f"{record.where}: the row has no label: give one, or remove the row")
    return known(record.labels[0], record.where, classes)


def known(label: str, where: str, classes: dict[str, int]) -> str:
    """Returns the label. Raises DataError where the model has no such class."""
    if label not in classes:
        some = ", ".join(sorted(classes)[:8]) + (", ..." if len(classes) > 8 else "")
        raise DataError(
            f"{where}: the label {label!r} is none of the {len(classes)} labels of the training rows "
            f"({some}): correct it, or train with it"
        )
    return label
