"""Rankers: how well a picture fits a prompt, so that the best of several comes first (DALL-E 1, section
2.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from patchword.tasks.retrieve.load import load_two_towers


def two_tower_ranker(
    name: str, prompt: str, device: str | None = None
) -> Callable[[Sequence[np.ndarray]], list[float]]:
    """A ranker by the cosine between picture and prompt in the space of two towers.

    Raises ModelError where it is no such model, DataError for a prompt without a word that it knows.
    """
    towers = load_two_towers(name, device)
    text_E = towers.embed_texts([prompt])[0]

    def rank(pictures: Sequence[np.ndarray]) -> list[float]:
        return (towers.embed_images(list(pictures)) @ text_E).tolist()

    return rank
