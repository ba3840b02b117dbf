"""Interleaved documents of scenes: pictures with captions that share one rule of the episode, its wording.

Without an example the wording can only be guessed; with one it is known. So what a model says of the first
picture and of the fifth tells whether it learns from its context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchword.data.scenes.draw import draw
from patchword.data.scenes.world import SPLITS, Scene, Thing, make_scenes
from patchword.files import write_text

WORDINGS = ("{colour} {shape}", "{shape} {colour}", "the {shape} is {colour}", "look a {colour} {shape}")
"""What is said of a picture, by the episode's rule."""
_PURPOSE = 7


class Episode(NamedTuple):
    """One document: scenes with their captions, all in one wording; None is a picture without a text."""

    scenes: tuple[Scene, ...]
    captions: tuple[str | None, ...]
    wording: int


def caption_of(thing: Thing, wording: int) -> str:
    """What a wording says of a thing."""
    return WORDINGS[wording].format(colour=thing.colour, shape=thing.shape)


def make_episodes(
    count: int, pictures: int = 5, split: str = "train", seed: int = 0, distractors: float = 0.0
) -> list[Episode]:
    """Documents 0 to `count - 1` of a split, each of `pictures` captioned scenes of level 1.

    Each depends only on its own number. With probability `distractors` a picture is followed by another that
    has no text.
    """
    episodes = []
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, _PURPOSE])
        wording = int(rng.integers(len(WORDINGS)))
        bare = [bool(rng.random() < distractors) for _ in range(pictures)]
        scenes = make_scenes(pictures + sum(bare), split=split, seed=seed, start=index * 2 * pictures)
        captions: list[str | None] = []
        for number in range(pictures):
            if bare[number]:
                captions.append(None)
            captions.append(caption_of(scenes[len(captions)].things[0], wording))
        episodes.append(Episode(tuple(scenes), tuple(captions), wording))
    return episodes


def write_documents(folder: Path | str, episodes: Sequence[Episode], split: str, size: int = 32) -> Path:
    """Writes pictures and folder/documents.jsonl; other splits in the file are kept. Returns its path."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    file = folder / "documents.jsonl"
    before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    lines = [line for line in before if json.loads(line)["split"] != split]
    for number, episode in enumerate(episodes):
        parts: list[dict[str, str]] = []
        for scene, pixels, caption in zip(
            episode.scenes, draw(episode.scenes, size), episode.captions, strict=True
        ):
            name = f"{scene.name}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            parts.append({"image": name})
            if caption is not None:
                parts.append({"text": caption})
        lines.append(json.dumps({"name": f"{split} {number}", "split": split, "parts": parts}))
    write_text(file, "\n".join(lines) + "\n")
    return file
