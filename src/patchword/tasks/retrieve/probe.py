"""A linear probe: multinomial logistic regression by L-BFGS on frozen features (Radford et al. 2021, A.3).

    min over W, b of  mean CE(W x + b, y) + (strength / 2) |W|^2

The features are standardised by those of the training rows. The strength is chosen on rows set aside, from a
grid of powers of ten; then all training rows are fitted again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.checkpoints.towers import load_tower
from patchword.data.formats.labels import LabelTable, TableColumns
from patchword.data.isolated import PictureReader
from patchword.errors import DataError, counted
from patchword.layers.features import masked_mean

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_AT_ONCE = 32


class Probe(NamedTuple):
    """A fitted probe and how good it is."""

    accuracy: float
    strength: float
    chosen_on: dict[float, float]
    """Accuracy on the rows set aside, by strength."""
    rows: int
    evaluated: int


def fit_probe(
    features_NC: Tensor, classes_N: Tensor, classes: int, strength: float, steps: int = 200
) -> Tensor:
    """Weights and bias (classes, C + 1), float64, by L-BFGS with a line search by strong Wolfe conditions."""
    inputs_NC = _with_one(features_NC)
    weights = torch.zeros(classes, inputs_NC.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(inputs_NC @ weights.T, classes_N)
        value = value + strength / 2 * weights[:, :-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach()


def accuracy(weights: Tensor, features_NC: Tensor, classes_N: Tensor) -> float:
    """Share of rows whose likeliest class is theirs."""
    return float(((_with_one(features_NC) @ weights.T).argmax(1) == classes_N).double().mean())


def _with_one(features_NC: Tensor) -> Tensor:
    return torch.cat((features_NC.double(), torch.ones(len(features_NC), 1, dtype=torch.float64)), 1)


def probe(train: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], classes: int, seed: int = 0) -> Probe:
    """Chooses the strength on a fifth of the training rows, fits all of them, and evaluates on `others`.

    Raises DataError for fewer than five training rows.
    """
    features_NC, classes_N = train
    if classes < 2 or len(classes_N.unique()) < 2:
        raise DataError("all training rows have the same label: a classifier needs two labels or more")
    if len(features_NC) < 5:
        raise DataError(f"{counted(len(features_NC), 'training row')}: a probe needs at least five")
    mean_C, spread_C = features_NC.mean(0), features_NC.std(0).clamp_min(1e-6)
    features_NC, others_NC = (features_NC - mean_C) / spread_C, (others[0] - mean_C) / spread_C
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features_NC)))
    aside, kept = order[: len(order) // 5], order[len(order) // 5 :]
    tried = {}
    for strength in STRENGTHS:
        weights = fit_probe(features_NC[kept], classes_N[kept], classes, strength)
        tried[strength] = accuracy(weights, features_NC[aside], classes_N[aside])
    best = max(tried, key=lambda strength: (tried[strength], strength))
    weights = fit_probe(features_NC, classes_N, classes, best)
    found = accuracy(weights, others_NC, others[1])
    return Probe(found, best, tried, len(features_NC), len(others_NC))


def rows_of(table: Path, split: str, share: float = 1.0) -> list[tuple[str, str]]:
    """(picture, label) of a split of a table; of a share below 1 the same rows every time.

    Raises DataError where there is none.
    """
    rows = [
        (record.file, record.labels[0])
        for record in LabelTable(table, TableColumns()).rows()
        if record.split == split and record.labels and record.file
    ]
    if not rows:
        raise DataError(f"{table} has no labelled picture of split {split!r}: mark some in a column split")
    if share == 1.0:
        return rows
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[place] for place in np.sort(order[: max(5, round(share * len(rows)))])]


def class_numbers(numbers: Sequence[int]) -> Tensor:
    """Class numbers (n,) as a tensor."""
    return torch.tensor(numbers, dtype=torch.long)


@torch.inference_mode()
def features_of(
    name: str, images: Path, files: Sequence[str], advance: Callable[[int], None] = lambda count: None
) -> Tensor:
    """Features (n, C) of pictures: the mean patch of the tower of any model that has one.

    Raises PictureError for a picture that cannot be decoded.
    """
    tower: Any
    tower, preprocessing = load_tower(name)
    tower.eval()
    found = []
    with PictureReader() as reader:
        for first in range(0, len(files), _AT_ONCE):
            part = files[first : first + _AT_ONCE]
            pixels_BHWC = np.stack([preprocessing.apply(reader.open(images / file)) for file in part])
            features = tower(torch.from_numpy(preprocessing.normalise(pixels_BHWC)))
            found.append(masked_mean(features.grid_BNC, features.mask_BN).float())
            advance(len(part))
    return torch.cat(found)
