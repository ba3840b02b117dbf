"""What makes the features of pictures for distances: the ImageNet tower, the reader of drawn scenes, two
towers, or Inception from a file.

A distance carries the name of what made its features. Only Inception's public weights make it FID, and they
are no part of the package: a file of them is named as `inception:FILE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from patchword.composed import build_tower, reader_preprocessing
from patchword.data.pictures import open_picture
from patchword.device import choose_device
from patchword.tasks.paint.oracle import load_oracle
from patchword.tasks.retrieve.load import load_two_towers
from patchword.towers.inception import load_inception
from patchword.towers.settings import EfficientNetLiteConfig

IMAGENET, SCENES, INCEPTION = "imagenet", "scenes", "inception:"


class Extractor(NamedTuple):
    """Features of pictures, and what made them."""

    name: str
    see: Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray | None]]
    """Pictures uint8 (H, W, 3) -> features (n, D), and where there are classes their probabilities (n, Y)."""
    published: tuple[str, str] | None = None
    """The field's own names of both numbers, where these are the features with which it measures."""

    @property
    def distance(self) -> str:
        """What the Frechet distance over these features is called."""
        return f"Frechet distance ({self.name})" if self.published is None else self.published[0]

    @property
    def classes(self) -> str:
        """What the Inception score over these classes is called."""
        return f"class score ({self.name})" if self.published is None else self.published[1]


def find_extractor(name: str, device: str | None = None) -> Extractor:
    """`imagenet`, `scenes`, `inception:FILE`, or the name of two towers.

    Raises MissingExtra where the ImageNet weights are not installed, ModelError for no such model.
    """
    if name.startswith(INCEPTION):
        return _inception(Path(name.removeprefix(INCEPTION)), choose_device(device))
    if name == IMAGENET:
        return _imagenet(choose_device(device))
    if name == SCENES:
        oracle = load_oracle()

        def read(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
            seen = oracle.read(list(pictures))
            return seen.features_NC, seen.probabilities_NY

        return Extractor("scene reader", read)
    towers = load_two_towers(name, device)
    return Extractor(name, lambda pictures: (towers.embed_images(list(pictures)), None))


def _inception(path: Path, device: torch.device) -> Extractor:
    file = load_inception(path)
    network = file.network.to(device)

    @torch.inference_mode()
    def see(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        pixels = torch.from_numpy(np.stack([np.asarray(open_picture(picture)) for picture in pictures]))
        features_BD, scores_BY = network(pixels.to(device).permute(0, 3, 1, 2).float() / 255)
        return features_BD.cpu().numpy(), scores_BY.softmax(-1).cpu().numpy()

    if file.is_public:
        return Extractor("Inception", see, ("FID", "Inception score"))
    return Extractor(f"Inception of SHA-256 {file.digest[:8]}", see)


def _imagenet(device: torch.device) -> Extractor:
    config = EfficientNetLiteConfig()
    tower = build_tower(config).to(device).eval()
    preprocessing = reader_preprocessing(tower.preprocessing)

    @torch.inference_mode()
    def see(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        made = np.stack([preprocessing.apply(open_picture(picture)) for picture in pictures])
        features, logits = tower.look(torch.from_numpy(preprocessing.normalise(made)).to(device))
        pooled_BC = features.grid_BNC.float().mean(1)
        return pooled_BC.cpu().numpy(), logits.picture_BK.float().softmax(-1).cpu().numpy()

    return Extractor(config.kind, see)
