"""The batches that travel: named fields, made only here (questions: `question_batches.py`), checked on the
CPU before they reach a device.

A plan lists the batches of an epoch as (picture, captions) pairs; it depends on the seed and the epoch alone,
so that an interrupted run can go on in the middle of an epoch, and the processes of a distributed run each
take every n-th entry of the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from patchword.data.augment import Augmentation, random_views
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord
from patchword.data.store import Store, view_name
from patchword.errors import DataError, PictureError
from patchword.ids import SpecialIds
from patchword.types import VisualFeatures


class TokenSource(Protocol):
    """What a batch needs of a vocabulary."""

    @property
    def size(self) -> int: ...

    @property
    def special(self) -> SpecialIds: ...

    def encode(self, caption: str) -> list[int]: ...


class Inputs(NamedTuple):
    """Pictures for a model: pixels, or in their place the tower's features, or the tokens that go into its
    layer `first_layer`.
    """

    pixels_B3HW: Tensor | None = None
    features: VisualFeatures | None = None
    tokens: Tensor | None = None
    first_layer: int = 0

    def to(self, device: torch.device) -> Inputs:
        moved = [
            part.to(device, non_blocking=True) if isinstance(part, Tensor) else part
            for part in (self.pixels_B3HW, self.tokens)
        ]
        features = self.features
        if features is not None:
            features = VisualFeatures._make(
                part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in features
            )
        return Inputs(moved[0], features, moved[1], self.first_layer)


class CaptionBatch(NamedTuple):
    """B pictures and R captions of them.

    `tokens_RT` holds start, words, end, padding; `lengths_R` counts all but the padding.
    """

    image_ids: tuple[int | str, ...]
    inputs: Inputs
    tokens_RT: Tensor
    lengths_R: Tensor
    picture_of_row_R: Tensor
    labels_BN: Tensor | None = None
    """Class of each patch by a segmentation, -1 for none; None where there is no segmentation."""
    texts_RE: Tensor | None = None
    """Each caption in the text space of a two-tower model, for the regulariser against it; None where
    there is no such loss."""
    lost: tuple[str, ...] = ()
    """Pictures that were to be here and could not be decoded, with the reasons."""

    @property
    def target_count(self) -> int:
        """Tokens that are predicted: all but the start."""
        return int((self.lengths_R - 1).sum())

    @property
    def picture_count(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device) -> CaptionBatch:
        return self._replace(
            inputs=self.inputs.to(device),
            tokens_RT=self.tokens_RT.to(device, non_blocking=True),
            lengths_R=self.lengths_R.to(device, non_blocking=True),
            picture_of_row_R=self.picture_of_row_R.to(device, non_blocking=True),
            labels_BN=None if self.labels_BN is None else self.labels_BN.to(device, non_blocking=True),
            texts_RE=None if self.texts_RE is None else self.texts_RE.to(device, non_blocking=True),
        )


class UnreadablePictures(PictureError):
    """Pictures of a batch that cannot be decoded: `problems` has the reason of each file."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(problems.values()))
        self.problems = problems


class PictureInputs(Protocol):
    """Where the inputs of a batch come from.

    The generator draws random views; None asks for the plain picture.
    """

    def load(self, files: Sequence[str], generator: torch.Generator | None) -> Inputs: ...


@dataclass(frozen=True)
class PixelInputs:
    """Pixels from a store that is at least as large as the model wants; shrunk to the model's size, or seen
    in random views.
    """

    store: Store
    preprocessing: Preprocessing
    augmentation: Augmentation | None

    def load(self, files: Sequence[str], generator: torch.Generator | None) -> Inputs:
        pixels_BHWC = np.stack([self.store.fields["pixels"][row] for row in self.store.rows(files)])
        return pixels_for(pixels_BHWC, self.preprocessing, self.augmentation, generator)


def pixels_for(
    pixels_BHWC: np.ndarray,
    preprocessing: Preprocessing,
    augmentation: Augmentation | None,
    generator: torch.Generator | None,
) -> Inputs:
    """Decoded pictures, uint8, at the model's size, or in random views where a generator draws them."""
    height, width = preprocessing.hw
    if generator is not None and augmentation is not None:
        views_B3HW = random_views(torch.from_numpy(pixels_BHWC), height, augmentation, generator)
    elif pixels_BHWC.shape[1:3] == (height, width):
        # as at test time, to the last bit
        return Inputs(pixels_B3HW=torch.from_numpy(preprocessing.normalise(pixels_BHWC)))
    else:
        views_B3HW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 255
        views_B3HW = torch.nn.functional.interpolate(
            views_B3HW, (height, width), mode="bicubic", antialias=True
        ).clamp(0, 1)
    mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)
    return Inputs(pixels_B3HW=(views_B3HW - mean) / std)


@dataclass(frozen=True)
class FeatureInputs:
    """Features of a frozen tower, read from a store and cast from fp16; of a store with random views, one
    drawn for each picture.

    Of a store that holds both, `resume` chooses the tokens that go on inside the tower, and not the tower's
    features.
    """

    store: Store
    resume: bool = False

    def load(self, files: Sequence[str], generator: torch.Generator | None) -> Inputs:
        views = self.store.manifest.get("views", 1)
        if generator is not None and views > 1:
            drawn = torch.randint(views, (len(files),), generator=generator).tolist()
            files = [view_name(file, view) for file, view in zip(files, drawn, strict=True)]
        rows = self.store.rows(files)
        resumed = "tokens" in self.store.fields and (self.resume or len(self.store.fields) == 1)
        parts = {
            name: torch.from_numpy(np.stack([array[row] for row in rows])).float()
            for name, array in self.store.fields.items()
            if (name == "tokens") == resumed
        }
        if resumed:
            return Inputs(tokens=parts["tokens"], first_layer=self.store.manifest["until_layer"])
        hw = self.store.manifest["hw"]
        return Inputs(features=VisualFeatures(**parts, hw=(hw[0], hw[1]) if hw else None))


class PlanEntry(NamedTuple):
    """One picture of a batch, by its index among the records, and the captions of it that take part."""

    record: int
    captions: tuple[int, ...]


Rows = tuple[tuple[tuple[int, ...], ...], ...]
"""Token ids of each text of each picture."""


def plan_epoch(
    rows: Rows,
    batch: int,
    per_picture: int,
    bucketed: bool,
    generator: np.random.Generator | None,
    window: int = 0,
) -> list[list[PlanEntry]]:
    """The batches of one epoch.

    Every picture comes once with `per_picture` of its captions; 0 means that every caption comes once, as a
    row of its own. `bucketed` puts captions of similar length together. Without a generator the order is that
    of the records, nothing is drawn. With a `window` neighbours stay near each other, see `shuffled`.
    """
    if per_picture == 0:
        entries = [PlanEntry(i, (j,)) for i, captions in enumerate(rows) for j in range(len(captions))]
    else:
        entries = [
            PlanEntry(i, _drawn(len(captions), per_picture, generator)) for i, captions in enumerate(rows)
        ]
    if generator is None:
        return [entries[first : first + batch] for first in range(0, len(entries), batch)]
    entries = [entries[i] for i in shuffled(len(entries), window, generator)]
    if bucketed:
        # Sorted within pools of 32 batches: near-equal lengths inside a batch, and still another composition
        # every epoch.
        pool, longest = 32 * batch, [[len(row) for row in captions] for captions in rows]
        entries = [
            entry
            for first in range(0, len(entries), pool)
            for entry in sorted(
                entries[first : first + pool],
                key=lambda entry: max(longest[entry.record][j] for j in entry.captions),
            )
        ]
    batches = [entries[first : first + batch] for first in range(0, len(entries), batch)]
    return [batches[i] for i in generator.permutation(len(batches))] if bucketed else batches


RUNS_IN_A_WINDOW = 8


def shuffled(count: int, window: int, generator: np.random.Generator) -> np.ndarray:
    """The numbers below `count` in random order; 0 for `window`: any order, all alike.

    Else runs of neighbours, an eighth of a window long, come in random order, and all is shuffled within
    windows of them: whoever reads them in this order has nine runs of the data at hand at a time.
    """
    if not window:
        return generator.permutation(count)
    run = max(1, window // RUNS_IN_A_WINDOW)
    firsts = generator.permutation(-(-count // run)) * run
    order = np.concatenate([np.arange(first, min(first + run, count)) for first in firsts] or [np.arange(0)])
    for first in range(0, count, window):
        generator.shuffle(order[first : first + window])
    return order


def _drawn(available: int, count: int, generator: np.random.Generator | None) -> tuple[int, ...]:
    if generator is None or available <= count:
        return tuple(range(min(count, available)))
    return tuple(int(j) for j in generator.choice(available, count, replace=False))


def padded(rows: Sequence[Sequence[int]], special: SpecialIds, ends: bool) -> tuple[Tensor, Tensor]:
    """Start, words, where wanted the end, padding; and the lengths without the padding."""
    extra = 2 if ends else 1
    tokens_RT = torch.full((len(rows), max((len(row) for row in rows), default=0) + extra), special.pad)
    for r, row in enumerate(rows):
        tokens_RT[r, : len(row) + extra] = torch.tensor(
            [special.start, *row, *([special.end] if ends else [])]
        )
    return tokens_RT, torch.tensor([len(row) + extra for row in rows], dtype=torch.long)


@dataclass(frozen=True)
class CaptionData:
    """Records of one split with their encoded captions."""

    records: tuple[CaptionRecord, ...]
    tokens: tuple[tuple[tuple[int, ...], ...], ...]
    special: SpecialIds
    inputs: PictureInputs
    segmentation: Store | None = None
    """Classes of each picture's patches (`data/formats/panoptic.py`)."""
    texts: tuple[np.ndarray, ...] | None = None
    """The vectors of the captions of each record, (captions, E) fp16."""

    @classmethod
    def build(
        cls, records: Sequence[CaptionRecord], vocabulary: TokenSource, inputs: PictureInputs, max_length: int
    ) -> CaptionData:
        """Captions into ids; words beyond `max_length` are cut off.

        Raises:
            DataError: a caption without a word, or an id that the vocabulary does not have, with the image
                id.
        """
        encoded = []
        for record in records:
            rows = [tuple(vocabulary.encode(caption)[:max_length]) for caption in record.captions]
            for row, caption in zip(rows, record.captions, strict=True):
                if not row:
                    raise DataError(
                        f"image {record.image_id}: caption {caption!r} has no word; `patchword check` lists "
                        "all such captions"
                    )
                if not 0 <= min(row) <= max(row) < vocabulary.size:
                    raise DataError(
                        f"image {record.image_id}: token id {max(row)} is outside the vocabulary of "
                        f"{vocabulary.size} words"
                    )
            encoded.append(tuple(rows))
        return cls(tuple(records), tuple(encoded), vocabulary.special, inputs)

    def plan(
        self,
        batch: int,
        captions_per_picture: int,
        bucketed: bool,
        generator: np.random.Generator | None,
        window: int = 0,
    ) -> list[list[PlanEntry]]:
        """The batches of one epoch, see `plan_epoch`."""
        return plan_epoch(self.tokens, batch, captions_per_picture, bucketed, generator, window)

    def batch(self, entries: Sequence[PlanEntry], generator: torch.Generator | None) -> CaptionBatch:
        """The batch of plan entries; `generator` draws random views, None takes the plain pictures. Pictures
        of shards that cannot be decoded are left out; raises UnreadablePictures where none can."""
        try:
            return self._batch(entries, generator)
        except UnreadablePictures as error:
            left = [entry for entry in entries if self.records[entry.record].file not in error.problems]
            if not left:
                raise
            return self._batch(left, generator)._replace(lost=tuple(error.problems.values()))

    def _batch(self, entries: Sequence[PlanEntry], generator: torch.Generator | None) -> CaptionBatch:
        records = [self.records[entry.record] for entry in entries]
        rows = [self.tokens[entry.record][j] for entry in entries for j in entry.captions]
        owners = [b for b, entry in enumerate(entries) for _ in entry.captions]
        tokens_RT, lengths_R = padded(rows, self.special, ends=True)
        return CaptionBatch(
            image_ids=tuple(record.image_id for record in records),
            inputs=self.inputs.load([record.file for record in records], generator),
            tokens_RT=tokens_RT,
            lengths_R=lengths_R,
            picture_of_row_R=torch.tensor(owners, dtype=torch.long),
            labels_BN=self._labels_of(records),
            texts_RE=self._texts_of(entries),
        )

    def _labels_of(self, records: Sequence[CaptionRecord]) -> Tensor | None:
        if self.segmentation is None:
            return None
        rows = self.segmentation.rows([record.file for record in records])
        return torch.from_numpy(np.stack([self.segmentation.fields["classes"][row] for row in rows])).long()

    def _texts_of(self, entries: Sequence[PlanEntry]) -> Tensor | None:
        if self.texts is None:
            return None
        return torch.from_numpy(
            np.stack([self.texts[entry.record][j] for entry in entries for j in entry.captions])
        ).float()
