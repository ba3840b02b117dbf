"""Features of a frozen tower, computed once and stored: an epoch of a decoder then costs the decoder alone.

Fields are cast to fp16; a training from the store equals one from the pictures after the same cast, as long
as pictures are not augmented. With `until_layer` the store holds the tokens that go into that layer, for
towers whose last layers are trained. With `views` it also holds random views of every picture, of which a
training draws one each time: augmentation at the price of disk instead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

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


@torch.inference_mode()
def store_features(
    tower: nn.Module,
    preprocessing: Preprocessing,
    images: Path,
    files: list[str],
    folder: Path,
    device: torch.device,
    advance: Callable[[int], None],
    until_layer: int | None = None,
    batch: int | None = None,
    views: int = 1,
    with_features: bool = False,
    mirror: bool = False,
    unreadable: Callable[[str, PictureError], None] | None = None,
) -> Store:
    """Write the store of `files`; it appears under `folder` when it is complete.

    With `mirror` every picture is stored plain and mirrored, and there are two views. Else `views` counts the
    plain picture, which comes first; the others are random views (data/augment.py) of a picture a third
    larger. With `until_layer` and `with_features` it holds both the tokens that go into that layer and the
    tower's features, made in one pass. `batch` is the number of pictures in a pass: a small one keeps the
    maps in a processor's cache; absent, it suits the device. `unreadable` hears of a picture that cannot be
    decoded, which then has no rows, and stands under `left_out` in the manifest.

    Raises:
        ConfigError: `until_layer` is beyond the tower's last layer.
        PictureError: a picture that cannot be decoded, where there is no `unreadable`.
        DataError: none of the pictures can be decoded.
    """
    if until_layer is not None and not 0 <= until_layer < len(tower.layers):
        raise ConfigError(f"--until-layer {until_layer}: the tower has layers 0 to {len(tower.layers) - 1}")
    tower = tower.to(device).eval()
    batch = batch or (8 if device.type == "cpu" else 64)
    whole = until_layer is None or with_features
    views = 2 if mirror else views
    hw: list[int] = []

    left_out: dict[str, str] = {}
    height, width = preprocessing.hw
    larger = preprocessing.model_copy(update={"size": (round(height * 4 / 3), round(width * 4 / 3))})
    generator = torch.Generator().manual_seed(VIEW_SEED)

    def decoded(names: list[str], prepared: Preprocessing) -> np.ndarray | None:
        """Those that can be decoded, (B, H, W, 3); the plain view decides which these are."""
        found = []
        for name in names:
            try:
                found.append(prepared.apply(reader.open(images / name)))
            except PictureError as error:
                if unreadable is None:
                    raise
                left_out[name] = str(error)
                unreadable(name, error)
        return np.stack(found) if found else None

    def pixels(names: list[str], view: int) -> Tensor | None:
        pixels_BHWC = decoded(names, larger if view and not mirror else preprocessing)
        if pixels_BHWC is None:
            return None
        if not view or mirror:
            plain_B3HW = torch.from_numpy(preprocessing.normalise(pixels_BHWC)).to(device)
            return plain_B3HW.flip(3) if view else plain_B3HW
        views_B3HW = random_views(torch.from_numpy(pixels_BHWC), height, Augmentation(), generator)
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        return ((views_B3HW - mean) / std).to(device)

    def batches() -> Iterator[Tensor]:
        for view in range(views):
            names = [name for name in files if name not in left_out]
            for first in range(0, len(names), batch):
                pixels_B3HW = pixels(names[first : first + batch], view)
                if pixels_B3HW is not None:
                    yield pixels_B3HW

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for pixels_B3HW in batches():
            tokens, mask = tower.embed(pixels_B3HW)
            tokens = run_layers(tower.layers, tokens, mask, stop=until_layer or 0)
            stored = {} if until_layer is None else {"tokens": _half(tokens)}
            if whole:
                features = tower.resume(tokens, mask, until_layer or 0)
                hw[:] = features.hw or ()
                stored |= {
                    name: _half(getattr(features, name))
                    for name in FIELDS
                    if getattr(features, name) is not None
                }
            yield stored
        if files and len(left_out) == len(files):
            raise DataError(f"{images}: none of {len(files)} pictures can be read")

    # The shape of the grid is known after the first chunk, what is left out after the plain view; the
    # manifest is written after the last one.
    entries = {
        "tower": stored_digest(tower, None if whole else until_layer),
        **({"lower_tower": stored_digest(tower, until_layer)} if whole and until_layer is not None else {}),
        "until_layer": until_layer,
        "preprocessing": preprocessing.model_dump(mode="json"),
        "pictures": fingerprint(picture_files(images, [name for name in files if (images / name).exists()])),
        "hw": hw,
        "views": views,
        "left_out": left_out,
    }
    rows = {view_name(name, view): name for view in range(views) for name in files}
    without = _Without(rows, left_out)
    with PictureReader() as reader:
        return write_store(folder, list(rows), entries, chunks(), advance, without)


class _Without:
    """Rows of files that are left out, as far as is known by the time that one asks."""

    def __init__(self, rows: Mapping[str, str], left_out: Mapping[str, str]) -> None:
        self._rows, self._left_out = rows, left_out

    def __contains__(self, row: object) -> bool:
        return isinstance(row, str) and self._rows.get(row) in self._left_out


def _half(tensor: Tensor) -> np.ndarray:
    return tensor.half().cpu().numpy()
