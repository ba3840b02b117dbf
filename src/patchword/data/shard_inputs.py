"""Pictures that are decoded when a batch asks for them, for data that no cache of pixels should hold: shards.

The numbers are those of `PixelInputs` bit for bit: the same geometry, then the same views.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from patchword.data.augment import Augmentation
from patchword.data.captions import Inputs, UnreadablePictures, pixels_for
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Preprocessing
from patchword.errors import PictureError

_MOST_THREADS = 8


@dataclass(frozen=True)
class ShardInputs:
    """Pictures below a folder, in shards or as files, shrunk to `size` when they are decoded, then to the
    model's size, or seen in random views."""

    images: Path
    size: int | tuple[int, int]
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    bad: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be decoded so far, with the reasons."""
    idle: list[PictureReader] = field(default_factory=list)
    """Readers that no thread uses."""

    def load(self, files: Sequence[str], generator: torch.Generator | None) -> Inputs:
        """Raises UnreadablePictures naming all that cannot be decoded."""
        threads = min(_MOST_THREADS, os.cpu_count() or 1, max(1, len(files)))
        with ThreadPoolExecutor(threads) as pool:
            decoded = list(pool.map(self._decoded, files))
        problems = {file: self.bad[file] for file in files if file in self.bad}
        if problems:
            raise UnreadablePictures(problems)
        pixels_BHWC = np.stack([pixels for pixels in decoded if pixels is not None])
        return pixels_for(pixels_BHWC, self.preprocessing, self.augmentation, generator)

    def _decoded(self, file: str) -> np.ndarray | None:
        if file in self.bad:
            return None
        try:
            reader = self.idle.pop()
        except IndexError:  # all are in use
            reader = PictureReader()
        try:
            picture = reader.open(self.images / file)
        except PictureError as error:
            self.bad[file] = str(error)
            print(f"patchword: {' '.join(str(error).split())}; it is left out", file=sys.stderr)
            return None
        finally:
            self.idle.append(reader)
        return self.preprocessing.model_copy(update={"size": self.size}).apply(picture)
