"""Features of a frozen tower, computed once and stored: an epoch of a decoder then costs the decoder alone.

Fields are cast to fp16; a training from the store equals one from the pictures after the same cast, as long
as pictures are not augmented. With `until_layer` the store holds the tokens that go into that layer, for
towers whose last layers are trained. With `views` it also holds random views of every picture, of which a
training draws one each time: augmentation at the price of disk instead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patchword.checkpoints.towers import stored_digest
from patchword.data.augment import Augmentation, random_views
from patchword.data.pictures import Preprocessing, open_picture
from patchword.data.store import Store, fingerprint, picture_files, view_name, write_store
from patchword.errors import ConfigError
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
) -> Store:
    """Write the store of `files`; it appears under `folder` when it is complete.

    With `mirror` every picture is stored plain and mirrored, and there are two views. Else `views` counts the
    plain picture, which comes first; the others are random views (data/augment.py) of a picture a third
    larger. With `until_layer` and `with_features` it holds both the tokens that go into that layer and the
    tower's features, made in one pass. `batch` is the number of pictures in a pass: a small one keeps the
    maps in a processor's cache; absent, it suits the device.

    Raises:
        ConfigError: `until_layer` is beyond the tower's last layer.
        PictureError: a picture that cannot be decoded.
    """
    if until_layer is not None and not 0 <= until_layer < len(tower.layers):
        raise ConfigError(f"--until-layer {until_layer}: the tower has layers 0 to {len(tower.layers) - 1}")
    tower = tower.to(device).eval()
    batch = batch or (8 if device.type == "cpu" else 64)
    whole = until_layer is None or with_features
    views = 2 if mirror else views
    hw: list[int] = []

    height, width = preprocessing.hw
    larger = preprocessing.model_copy(update={"size": (round(height * 4 / 3), round(width * 4 / 3))})
    generator = torch.Generator().manual_seed(VIEW_SEED)

    def pixels(names: list[str], view: int) -> Tensor:
        prepared = larger if view and not mirror else preprocessing
        pixels_BHWC = np.stack([prepared.apply(open_picture(images / name)) for name in names])
        if not view or mirror:
            plain_B3HW = torch.from_numpy(preprocessing.normalise(pixels_BHWC)).to(device)
            return plain_B3HW.flip(3) if view else plain_B3HW
        views_B3HW = random_views(torch.from_numpy(pixels_BHWC), height, Augmentation(), generator)
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        return ((views_B3HW - mean) / std).to(device)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for view, first in ((view, first) for view in range(views) for first in range(0, len(files), batch)):
            pixels_B3HW = pixels(files[first : first + batch], view)
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

    # The shape of the grid is known after the first chunk; the manifest is written after the last one.
    entries = {
        "tower": stored_digest(tower, None if whole else until_layer),
        **({"lower_tower": stored_digest(tower, until_layer)} if whole and until_layer is not None else {}),
        "until_layer": until_layer,
        "preprocessing": preprocessing.model_dump(mode="json"),
        "pictures": fingerprint(picture_files(images, files)),
        "hw": hw,
        "views": views,
    }
    rows = [view_name(name, view) for view in range(views) for name in files]
    return write_store(folder, rows, entries, chunks(), advance)


def _half(tensor: Tensor) -> np.ndarray:
    return tensor.half().cpu().numpy()
