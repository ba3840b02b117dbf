"""Documents as token ids with pictures among them, and their batches.

    start  MARK text end  MARK text end  ...

An end closes every text: it is where a model that was asked about a picture stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchword.data.captions import Inputs, PictureInputs, TokenSource
from patchword.data.formats.interleaved import Document, Part
from patchword.data.records import CaptionRecord
from patchword.errors import DataError
from patchword.models.captioners.flamingo import MARK


class EncodedDocument(NamedTuple):
    """One document: ids with marks, and the file of each picture."""

    name: str
    ids: tuple[int, ...]
    files: tuple[str, ...]


class DocumentBatch(NamedTuple):
    """B documents and the P pictures of all of them."""

    names: tuple[str, ...]
    inputs: Inputs
    """Every picture once, P of them."""
    pictures_BM: Tensor
    """Which of them stand in each document, in order; padded by 0, which no token looks at."""
    ids_BT: Tensor
    counted_BT: Tensor
    """Tokens that the loss counts: texts and ends."""

    @property
    def target_count(self) -> int:
        """Tokens that are predicted."""
        return int((self.counted_BT[:, 1:] & (self.ids_BT[:, 1:] != MARK)).sum())

    @property
    def picture_count(self) -> int:
        """Number of documents, B: a document counts as one."""
        return len(self.names)

    def to(self, device: torch.device) -> DocumentBatch:
        """Moves all tensors to a device."""
        return self._replace(
            inputs=self.inputs.to(device),
            pictures_BM=self.pictures_BM.to(device),
            ids_BT=self.ids_BT.to(device),
            counted_BT=self.counted_BT.to(device),
        )


def encode(document: Document, vocabulary: TokenSource, tokens: int, pictures: int) -> EncodedDocument:
    """A document as ids, cut after `tokens` tokens or before the picture after `pictures`."""
    special = vocabulary.special
    ids = [special.start]
    files: list[str] = []
    for part in document.parts:
        if part.image is not None:
            if len(files) == pictures:
                break
            files.append(part.image)
            ids.append(MARK)
        else:
            ids += [*vocabulary.encode(part.text or ""), special.end]
    ids = ids[:tokens]
    return EncodedDocument(document.name, tuple(ids), tuple(files[: ids.count(MARK)]))


def from_captions(
    records: Sequence[CaptionRecord], pictures: int, generator: np.random.Generator | None
) -> list[Document]:
    """Documents of captioned pictures: each picture once, with one of its captions drawn (the first without a
    generator). Pictures that are left over make no document."""
    order = np.arange(len(records)) if generator is None else generator.permutation(len(records))
    documents = []
    for first in range(0, len(order) - pictures + 1, pictures):
        parts = []
        for place in order[first : first + pictures]:
            record = records[place]
            chosen = 0 if generator is None else int(generator.integers(len(record.captions)))
            parts += [Part(image=record.file), Part(text=record.captions[chosen])]
        documents.append(Document(f"captions {first // pictures}", tuple(parts)))
    return documents


@dataclass(frozen=True)
class Documents:
    """Encoded documents and where their pictures come from."""

    rows: tuple[EncodedDocument, ...]
    pad: int
    inputs: PictureInputs

    def batch(self, places: Sequence[int], generator: torch.Generator | None) -> DocumentBatch:
        """The batch of these documents. Raises DataError where none has a picture."""
        rows = [self.rows[place] for place in places]
        files = list(dict.fromkeys(file for row in rows for file in row.files))
        if not files:
            raise DataError(f"{rows[0].name} and {len(rows) - 1} others have no picture between their texts")
        number = {file: place for place, file in enumerate(files)}
        most = max(len(row.files) for row in rows)
        pictures_BM = torch.zeros(len(rows), most, dtype=torch.long)
        ids_BT = torch.full((len(rows), max(len(row.ids) for row in rows)), self.pad)
        counted_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            pictures_BM[b, : len(row.files)] = torch.tensor([number[file] for file in row.files])
            ids_BT[b, : len(row.ids)] = torch.tensor(row.ids)
            counted_BT[b, : len(row.ids)] = True
        names = tuple(row.name for row in rows)
        return DocumentBatch(names, self.inputs.load(files, generator), pictures_BM, ids_BT, counted_BT)


def plan(count: int, batch: int, generator: np.random.Generator | None) -> list[list[int]]:
    """The batches of an epoch as places of documents, shuffled by the generator."""
    order = np.arange(count) if generator is None else generator.permutation(count)
    return [order[first : first + batch].tolist() for first in range(0, count, batch)]
