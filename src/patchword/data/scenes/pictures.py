"""Drawn scenes as a data set in memory: records with captions, and their pixels, for trainings that begin
at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, Field

from patchword.data.captions import Inputs
from patchword.data.records import CaptionRecord
from patchword.data.scenes.describe import STYLES, describe
from patchword.data.scenes.draw import draw
from patchword.data.scenes.world import HeldOut, Scene, make_scenes
from patchword.errors import ConfigError


class SceneSettings(BaseModel, extra="forbid", frozen=True):
    """Which scenes a training draws for itself."""

    levels: tuple[int, ...] = Field(
        (1,),
        min_length=1,
        description="1: one thing; 2: two in a relation; 3: three to six; shares are equal",
    )
    count: int = Field(20_000, gt=0, description="scenes that are trained on")
    selection: int = Field(512, gt=0, description="other scenes, on which the model is selected")
    held_out: HeldOut | None = Field(
        None, description="what is never seen while training: combo, relation or count; absent: nothing"
    )
    captions: int = Field(4, gt=0, le=100, description="captions of each scene")
    styles: tuple[int, ...] = Field(
        (0, 1, 2, 3), min_length=1, description="wordings of the captions, in turn (0 is the plainest)"
    )
    max_words: int = Field(24, gt=0, description="words beyond this are cut off while training")
    seed: int = Field(0, ge=0, description="of the scenes; another one gives other scenes")


class DrawnPictures:
    """Pixels of drawn scenes by the names of their records; there are no random views."""

    def __init__(self, names: Sequence[str], pixels_NSSC: np.ndarray) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self.pixels_NSSC = pixels_NSSC

    def load(self, files: Sequence[str], generator: torch.Generator | None) -> Inputs:
        """Pictures (B, 3, S, S) in [-1, 1]."""
        pixels_BSSC = self.pixels_NSSC[[self._places[file] for file in files]]
        pixels_B3SS = torch.from_numpy(pixels_BSSC).permute(0, 3, 1, 2).float()
        return Inputs(pixels_B3HW=pixels_B3SS / 127.5 - 1)


def scenes_of(settings: SceneSettings, split: str) -> list[Scene]:
    """The scenes of a split: `count` of train or `selection` of any other, level by level in turn.

    Raises ConfigError for a level that there is not, DataError for held-out parts that do not fit it.
    """
    wrong = [level for level in settings.levels if level not in (1, 2, 3)]
    if wrong:
        raise ConfigError(f"scenes.levels has {wrong[0]}: expected 1, 2 or 3")
    unknown = [style for style in settings.styles if not 0 <= style < len(STYLES)]
    if unknown:
        raise ConfigError(f"scenes.styles has {unknown[0]}: expected 0 to {len(STYLES) - 1}")
    total = settings.count if split == "train" else settings.selection
    levels = settings.levels
    each = [total // len(levels) + (place < total % len(levels)) for place in range(len(levels))]
    made = [
        make_scenes(count, level, split, settings.held_out, settings.seed)
        for count, level in zip(each, levels, strict=True)
    ]
    return [scene for part in made for scene in part]


def scene_data(
    settings: SceneSettings, size: int, splits: Sequence[str] = ("train", "val")
) -> tuple[dict[str, list[CaptionRecord]], DrawnPictures]:
    """Records of the splits, and the pictures of all of them at `size` pixels. Raises what `scenes_of`
    does."""
    records: dict[str, list[CaptionRecord]] = {}
    names, pixels = [], []
    for split in splits:
        scenes = scenes_of(settings, split)
        pixels.append(draw(scenes, size))
        records[split] = []
        for scene in scenes:
            name = f"level{scene.level}_{scene.name}"
            told = dict.fromkeys(one.text for one in describe(scene, settings.captions, settings.styles))
            records[split].append(CaptionRecord(name, name, tuple(told), split))
            names.append(name)
    return records, DrawnPictures(names, np.concatenate(pixels))
