"""The oracle of drawn scenes: what a picture shows, and whether that is what a text says.

The reader (`models/painters/scene_reader.py`) was trained on renders alone and has never seen a painted
picture; what it reads becomes a `Scene`, about which the grammar of scenes decides every statement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.checkpoints.model import SHIPPED
from patchword.data.pictures import Picture, open_picture
from patchword.data.scenes.sayings import is_true, parse
from patchword.data.scenes.world import BACKGROUNDS, COLOURS, RADII, SHAPES, SIZES, Scene, Thing
from patchword.errors import ModelError
from patchword.models.painters.scene_reader import (
    SIDE,
    SLOTS,
    Reading,
    SceneReader,
    SceneReaderConfig,
    Things,
)
from patchword.tensors import read_tensors

WEIGHTS = SHIPPED / "scene-reader" / "reader.safetensors"
AT_ONCE = 256
SURE = 0.3
"""Probability from which a slot holds a thing: the reader is trained to find rather than to be sure."""


class SceneReadings(NamedTuple):
    """What the oracle saw in n pictures."""

    scenes: list[Scene]
    features_NC: np.ndarray
    """Features for distances between sets of pictures."""
    probabilities_NY: np.ndarray
    """Scores of each pair of shape and colour, for the surest thing of each picture."""


class Oracle:
    """Reads pictures of drawn scenes."""

    def __init__(self, reader: SceneReader) -> None:
        self.reader = reader.eval()

    @torch.inference_mode()
    def read(self, pictures: Sequence[Picture]) -> SceneReadings:
        """What pictures of any size show. Raises PictureError for one that cannot be decoded."""
        scenes: list[Scene] = []
        features, probabilities = [np.zeros((0, 2 * self.reader.config.width), np.float32)], []
        for first in range(0, len(pictures), AT_ONCE):
            found = self.reader(as_pixels(pictures[first : first + AT_ONCE]))
            scenes += [_scene(found, b) for b in range(len(found.there_BRGG))]
            features.append(found.features_BC.float().numpy())
            probabilities.append(_kinds(found))
        return SceneReadings(
            scenes, np.concatenate(features), np.concatenate(probabilities or [np.zeros((0, 64))])
        )

    def truth(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[float]:
        """For each picture, the share of its caption's statements that hold in it.

        A caption outside the grammar of scenes gives NaN: nobody can say whether it is true.
        """
        seen = self.read(pictures).scenes
        return [share_true(scene, caption) for scene, caption in zip(seen, captions, strict=True)]

    def ranker(self, prompt: str) -> Callable[[Sequence[np.ndarray]], list[float]] | None:
        """A ranker by the share of statements that hold; None for a prompt outside the grammar."""
        if parse(prompt) is None:
            return None
        return lambda pictures: self.truth(list(pictures), [prompt] * len(pictures))


def share_true(scene: Scene, caption: str) -> float:
    """The share of a caption's statements that hold in a scene; NaN for one outside the grammar."""
    facts = parse(caption)
    if facts is None:
        return float("nan")
    return sum(is_true(scene, fact) for fact in facts) / len(facts)


def load_oracle(path: Path = WEIGHTS) -> Oracle:
    """The reader of scenes. Raises ModelError where it was not trained yet, or holds other weights."""
    if not path.is_file():
        raise ModelError(
            f"there is no reader of scenes at {path}: make it with `python tools/train_scene_reader.py "
            f"{path}` "
            "of the checkout, in minutes"
        )
    reader, tensors = SceneReader(SceneReaderConfig()), read_tensors(path)
    wanted = reader.state_dict()
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in wanted.items()}:
        raise ModelError(f"{path} holds other weights than the reader has: train it anew")
    reader.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})
    return Oracle(reader)


def as_pixels(pictures: Sequence[Picture]) -> Tensor:
    """Pictures (B, 3, 32, 32) in [-1, 1]; smaller ones are enlarged by repeating pixels, larger ones
    averaged."""
    made = []
    for picture in pictures:
        array = picture if isinstance(picture, np.ndarray) else np.asarray(open_picture(picture))
        pixels_3HW = torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 127.5 - 1
        if pixels_3HW.shape[1:] != (SIDE, SIDE):
            pixels_3HW = F.interpolate(pixels_3HW[None], (SIDE, SIDE), mode="area")[0]
        made.append(pixels_3HW)
    return torch.stack(made)


def things_of(scenes: Sequence[Scene], grid: int) -> tuple[Things, Tensor]:
    """What a reader is to find in scenes, and their backgrounds."""
    rows = []
    for b, scene in enumerate(scenes):
        for thing in scene.things:
            slot = sum(thing.radius > bound for bound in SLOTS)
            column, row = (min(grid - 1, int(value * grid)) for value in (thing.x, thing.y))
            place = (thing.x * grid - column, thing.y * grid - row, thing.radius)
            kinds = (SHAPES.index(thing.shape), tuple(COLOURS).index(thing.colour))
            rows.append((b, slot, row, column, place, *kinds))
    columns = list(zip(*rows, strict=True))
    tensors = [torch.tensor(column) for column in columns]
    background_B = torch.tensor([tuple(BACKGROUNDS).index(scene.background) for scene in scenes])
    return Things(*tensors), background_B


def _scene(found: Reading, b: int) -> Scene:
    """The things of one picture: every slot that is sure enough, the surest first, but for what is one of the
    surer ones again."""
    there_RGG = found.there_BRGG[b].sigmoid()
    grid = there_RGG.shape[-1]
    places = (there_RGG > SURE).nonzero().tolist()
    kept: list[Thing] = []
    for slot, row, column in sorted(places, key=lambda place: -float(there_RGG[tuple(place)])):
        dx, dy, radius = found.place_BR3GG[b, slot, :, row, column].tolist()
        shape = SHAPES[int(found.shape_BRFGG[b, slot, :, row, column].argmax())]
        colour = tuple(COLOURS)[int(found.colour_BRFGG[b, slot, :, row, column].argmax())]
        thing = Thing(shape, colour, "", (column + dx) / grid, (row + dy) / grid, radius, 0.0)
        if not any(_is_again(thing, other) for other in kept):
            kept.append(thing)
    level = min(3, max(1, len(kept)))
    sized = tuple(
        thing._replace(size=_size(thing.radius, level)) for thing in sorted(kept, key=lambda t: -t.radius)
    )  # large things lie below small ones
    background = tuple(BACKGROUNDS)[int(found.background_BF[b].argmax())]
    return Scene(sized, background, level, "test", 0, 0)


def _is_again(thing: Thing, other: Thing) -> bool:
    """Whether two readings are of one thing, as an arm of a cross is of the cross: they are near one another.
    Things that touch have different colours, so those of one colour may lie further apart, and within a thing
    of its colour nothing can be seen, but in the hole of a ring."""
    smaller, larger = sorted((thing, other), key=lambda one: one.radius)
    apart = ((thing.x - other.x) ** 2 + (thing.y - other.y) ** 2) ** 0.5
    if thing.colour != other.colour:
        return larger.radius < 1.7 * smaller.radius and apart < 0.3 * smaller.radius
    within = larger.radius if larger.shape != "ring" else 0.0
    return apart < max(1.6 * smaller.radius, within)


def _size(radius: float, level: int) -> str:
    return SIZES[min(range(3), key=lambda n: abs(RADII[level][n] - radius))]


def _kinds(found: Reading) -> np.ndarray:
    """Probability of each pair of shape and colour, of the surest thing (B, shapes * colours)."""
    count = len(found.there_BRGG)
    best_B = found.there_BRGG.flatten(1).argmax(1)
    shape, colour = (
        part.transpose(1, 2).flatten(2)[torch.arange(count), :, best_B].softmax(-1)
        for part in (found.shape_BRFGG, found.colour_BRFGG)
    )
    return (shape[:, :, None] * colour[:, None]).flatten(1).numpy()
