"""Labels of a picture by the cosines of two towers (CLIP, Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from patchword.data.pictures import Picture
from patchword.text.words import refuse_no_text, refuse_no_texts

TEMPLATES = ("a photo of {}.", "a picture of {}.", "{}.")
"""Sentences in which labels are embedded."""


class Labeller(Protocol):
    """What `patchword label` asks of two towers."""

    def label(self, pictures: Sequence[Picture], labels: Sequence[str]) -> np.ndarray:
        """The probability of each label for each picture (n, labels)."""

    def remarks(self, text: str) -> Sequence[str]:
        """What a person should know who asks with this text."""


class _Towers(Protocol):
    def embed_images(self, pictures: Sequence[Picture]) -> np.ndarray: ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray: ...


def label_shares(
    towers: _Towers,
    scale: float,
    pictures: Sequence[Picture],
    labels: Sequence[str],
    templates: Sequence[str],
) -> np.ndarray:
    """The probability of each label for each picture (n, labels): a softmax over scaled cosines with the mean
    vector of the label's prompts.
    """
    refuse_no_texts(labels)
    vectors = []
    for label in labels:
        refuse_no_text(label)
        mean_E = towers.embed_texts([template.format(label) for template in templates]).mean(0)
        vectors.append(mean_E / np.linalg.norm(mean_E))
    scores = towers.embed_images(pictures) @ np.stack(vectors).T * scale
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    shares: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return shares
