"""Features of a frozen tower, computed once and stored: an epoch of a decoder then costs the decoder alone.

Fields are cast to fp16; a training from the store equals one from the pictures after the same cast, as long
as pictures are not augmented. With `until_layer` the store holds the tokens that go into that layer, for
towers whose last layers are trained. With `views` it also holds random views of every picture, of which a
training draws one each time: augmentation at the price of disk instead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patchword.checkpoints.towers import stored_digest
from patchword.data.augment import Augmentation, random_views
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Preprocessing
from patchword.data.store import Store, fingerprint, picture_files, view_name, write_store
from patchword.errors import ConfigError, DataError, PictureError
from patchword.towers.layered import run_layers

VIEW_SEED = 20240229
FIELDS = ("grid_BNC", "class_BC", "pooled_BE", "aligned_BNE")


class Pictures(NamedTuple):
    """Files of a folder, and how they are prepared for a tower."""

    images: Path
    files: list[str]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class StoreOptions:
    """What is stored of every picture, and how many go through the tower together."""

    until_layer: int | None = None
    """Store the tokens that go into this layer, in place of the tower's features."""
    with_features: bool = False
    """With `until_layer`: store the features as well, made in one pass."""
    views: int = 1
    """Views of each picture: the plain one comes first, the others are random ones (data/augment.py) of a
    picture a third larger."""
    mirror: bool = False
    """Store every picture plain and mirrored, in place of `views`."""
    batch: int | None = None
    """Pictures in a pass: few keep the maps in a processor's cache; absent, it suits the device."""

    @property
    def whole(self) -> bool:
        """Whether the tower's features are stored."""
        return self.until_layer is None or self.with_features

    @property
    def view_count(self) -> int:
        """Rows of each picture."""
        return 2 if self.mirror else self.views


FEATURES = StoreOptions()
"""The tower's features of the plain picture."""
Unreadable = Callable[[str, PictureError], None]
"""Hears of a picture that cannot be decoded."""


def store_features(
    tower: nn.Module,
    pictures: Pictures,
    folder: Path,
    device: torch.device,
    advance: Callable[[int], None],
    options: StoreOptions = FEATURES,
    unreadable: Unreadable | None = None,
) -> Store:
    """Write the store of `pictures`; it appears under `folder` when it is complete.

    `unreadable` hears of a picture that cannot be decoded, which then has no rows, and stands under
    `left_out` in the manifest.

    Raises:
        ConfigError: `until_layer` is beyond the tower's last layer.
        PictureError: a picture that cannot be decoded, where there is no `unreadable`.
        DataError: none of the pictures can be decoded.
    """
    check_layer(tower, options)
    files = pictures.files
    tower = tower.to(device).eval()
    left_out: dict[str, str] = {}
    hw: list[int] = []
    # The shape of the grid is known after the first chunk, what is left out after the plain view; the
    # manifest is written after the last one.
    entries = {**manifest_entries(tower, pictures, options), "hw": hw, "left_out": left_out}
    rows = {view_name(name, view): name for view in range(options.view_count) for name in files}
    with PictureReader() as reader:
        views = _Views(pictures, options, device, reader, left_out, unreadable)
        chunks = _chunks(tower, views.batches(), options, hw)
        return write_store(folder, list(rows), entries, chunks, advance, Without(rows, left_out))


def check_layer(tower: nn.Module, options: StoreOptions) -> None:
    """Raises ConfigError where `until_layer` is beyond the tower's last layer."""
    until = options.until_layer
    if until is not None and not 0 <= until < len(tower.layers):
        raise ConfigError(f"--until-layer {until}: the tower has layers 0 to {len(tower.layers) - 1}")


def manifest_entries(tower: nn.Module, pictures: Pictures, options: StoreOptions) -> dict[str, Any]:
    """What the manifest says of tower, pictures and views."""
    until, images = options.until_layer, pictures.images
    there = [name for name in pictures.files if (images / name).exists()]
    return {
        "tower": stored_digest(tower, None if options.whole else until),
        **({"lower_tower": stored_digest(tower, until)} if options.whole and until is not None else {}),
        "until_layer": until,
        "preprocessing": pictures.preprocessing.model_dump(mode="json"),
        "pictures": fingerprint(picture_files(images, there)),
        "views": options.view_count,
    }


def _chunks(
    tower: nn.Module, batches: Iterator[Tensor], options: StoreOptions, hw: list[int]
) -> Iterator[dict[str, np.ndarray]]:
    """The fields of every batch; `hw` takes the shape of the grid."""
    for pixels_B3HW in batches:
        stored, grid = tower_fields(tower, pixels_B3HW, options)
        hw[:] = grid or ()
        yield stored


@torch.inference_mode()
def tower_fields(
    tower: nn.Module, pixels_B3HW: Tensor, options: StoreOptions
) -> tuple[dict[str, np.ndarray], tuple[int, int] | None]:
    """What is stored of a batch, fp16, and the shape of the grid where there is one."""
    until, hw = options.until_layer, None
    tokens, mask = tower.embed(pixels_B3HW)
    tokens = run_layers(tower.layers, tokens, mask, stop=until or 0)
    stored = {} if until is None else {"tokens": _half(tokens)}
    if options.whole:
        features = tower.resume(tokens, mask, until or 0)
        hw = features.hw
        found = {name: getattr(features, name) for name in FIELDS}
        stored |= {name: _half(value) for name, value in found.items() if value is not None}
    return stored, hw


class _Views:
    """The pixels of every view of every picture, batch by batch, and which pictures cannot be decoded."""

    def __init__(
        self,
        pictures: Pictures,
        options: StoreOptions,
        device: torch.device,
        reader: PictureReader,
        left_out: dict[str, str],
        unreadable: Unreadable | None,
    ) -> None:
        self.pictures, self.options, self.device, self.reader = pictures, options, device, reader
        self.left_out, self.unreadable = left_out, unreadable
        self.batch = options.batch or (8 if device.type == "cpu" else 64)
        self.larger = larger(pictures.preprocessing)
        self.generator = torch.Generator().manual_seed(VIEW_SEED)

    def batches(self) -> Iterator[Tensor]:
        """View after view. Raises DataError where none of the pictures can be decoded."""
        files = self.pictures.files
        for view in range(self.options.view_count):
            names = [name for name in files if name not in self.left_out]
            for first in range(0, len(names), self.batch):
                pixels_B3HW = self._pixels(names[first : first + self.batch], view)
                if pixels_B3HW is not None:
                    yield pixels_B3HW
        if files and len(self.left_out) == len(files):
            raise DataError(f"{self.pictures.images}: none of {len(files)} pictures can be read")

    def _pixels(self, names: list[str], view: int) -> Tensor | None:
        """Those that can be decoded; None where none can."""
        plain, mirror = self.pictures.preprocessing, self.options.mirror
        pixels_BHWC = self._decoded(names, self.larger if view and not mirror else plain)
        if pixels_BHWC is None:
            return None
        if not view or mirror:
            plain_B3HW = torch.from_numpy(plain.normalise(pixels_BHWC)).to(self.device)
            return plain_B3HW.flip(3) if view else plain_B3HW
        views_B3HW = random_views(torch.from_numpy(pixels_BHWC), plain.hw[0], Augmentation(), self.generator)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (plain.mean, plain.std))
        return ((views_B3HW - mean) / std).to(self.device)

    def _decoded(self, names: list[str], prepared: Preprocessing) -> np.ndarray | None:
        """(B, H, W, 3) of those that can be decoded; the plain view decides which these are."""
        found = []
        for name in names:
            try:
                found.append(prepared.apply(self.reader.open(self.pictures.images / name)))
            except PictureError as error:
                if self.unreadable is None:
                    raise
                self.left_out[name] = str(error)
                self.unreadable(name, error)
        return np.stack(found) if found else None


def larger(plain: Preprocessing) -> Preprocessing:
    """Of what random views are cut: a picture a third larger."""
    height, width = plain.hw
    return plain.model_copy(update={"size": (round(height * 4 / 3), round(width * 4 / 3))})


class Without:
    """Rows of files that are left out, as far as is known by the time that one asks."""

    def __init__(self, rows: Mapping[str, str], left_out: Mapping[str, str]) -> None:
        self._rows, self._left_out = rows, left_out

    def __contains__(self, row: object) -> bool:
        return isinstance(row, str) and self._rows.get(row) in self._left_out


def _half(tensor: Tensor) -> np.ndarray:
    return tensor.half().cpu().numpy()
