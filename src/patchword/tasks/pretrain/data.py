"""Pictures or texts without labels, and the batches of a pre-training that fills gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from patchword.data.captions import PixelInputs, padded
from patchword.data.sources import find_pictures
from patchword.errors import DataError
from patchword.ids import SpecialIds
from patchword.layers.masking import block_masks, span_masks
from patchword.tasks.pretrain.settings import PretrainDataSettings
from patchword.train.data import hold_out


class GapBatch(NamedTuple):
    """B pictures or texts with positions that are hidden from the student."""

    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    """What the tower reads: pixels (B, 3, H, W), or ids and mask (B, L)."""
    hidden_BT: Tensor

    @property
    def target_count(self) -> int:
        """Number of hidden positions."""
        return int(self.hidden_BT.sum())

    @property
    def picture_count(self) -> int:
        """Number of pictures or texts, B."""
        return len(self.names)

    def to(self, device: torch.device) -> GapBatch:
        """Moves all tensors to a device."""
        inputs = tuple(part.to(device, non_blocking=True) for part in self.inputs)
        return self._replace(inputs=inputs, hidden_BT=self.hidden_BT.to(device))


class Gaps(Protocol):
    """What can be hidden, by number: pictures or texts."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def batch(self, places: Sequence[int], generator: torch.Generator, views: bool) -> GapBatch: ...


@dataclass(frozen=True)
class PictureGaps:
    """Pictures of which blocks of patches are hidden."""

    names: tuple[str, ...]
    pixels: PixelInputs
    hw: tuple[int, int]
    share: float
    smallest: int

    def batch(self, places: Sequence[int], generator: torch.Generator, views: bool) -> GapBatch:
        """The batch of these pictures; `views`: in random views."""
        names = tuple(self.names[place] for place in places)
        pixels_B3HW = self.pixels.load(names, generator if views else None).pixels_B3HW
        assert pixels_B3HW is not None  # these inputs are pixels
        hidden_BN = block_masks(len(names), self.hw, self.share, self.smallest, generator)
        return GapBatch(names, (pixels_B3HW,), hidden_BN)


@dataclass(frozen=True)
class TextGaps:
    """Texts of which spans of words are hidden; start and end never are."""

    names: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    special: SpecialIds
    share: float
    span: int

    def batch(self, places: Sequence[int], generator: torch.Generator, views: bool) -> GapBatch:
        """The batch of these texts; texts have no views."""
        ids_BL, _ = padded([self.rows[place] for place in places], self.special, ends=True)
        real_BL = ids_BL != self.special.pad
        words_BL = real_BL & (ids_BL != self.special.start) & (ids_BL != self.special.end)
        hidden_BL = span_masks(words_BL, self.share, self.span, generator)
        return GapBatch(tuple(self.names[place] for place in places), (ids_BL, real_BL), hidden_BL)


def picture_files(data: PretrainDataSettings) -> list[str]:
    """The pictures of the folder, by their names in it. Raises DataError where there is none."""
    folder = Path(str(data.pictures))
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: data.pictures names the folder of the pictures")
    files = [str(Path(path).relative_to(folder)) for path in find_pictures([str(folder)]).pictures]
    return files[: data.limit] if data.limit else files


def text_lines(data: PretrainDataSettings) -> list[tuple[str, str]]:
    """(file and line, text) of every line that is not blank. Raises DataError where there is none."""
    place = Path(str(data.texts))
    files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    lines = []
    for file in files:
        try:
            content = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error
        lines += [(f"{file}, line {number}", text) for number, text in enumerate(content, 1) if text.strip()]
    if not lines:
        raise DataError(f"{place} holds no text: expected a file with a text per line, or a folder of .txt")
    return lines[: data.limit] if data.limit else lines


def places(total: int, data: PretrainDataSettings, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Places that are learnt from, and those set aside. Raises ConfigError where too many are set aside."""
    return hold_out(total, data.held_out, what)


def plan(order: np.ndarray, batch: int, generator: np.random.Generator | None) -> list[list[Any]]:
    """The batches of an epoch, all of one size where there is more than one; shuffled by the generator."""
    shuffled = order if generator is None else order[generator.permutation(len(order))]
    batches = [shuffled[first : first + batch].tolist() for first in range(0, len(shuffled), batch)]
    whole = [part for part in batches if len(part) == batch]
    return batches if generator is None or not whole else whole
