"""Trains the reader of drawn scenes: python tools/train_scene_reader.py OUT [--steps N]

Renders of one and two things at 16, 24 and 32 pixels, some of them blurred or noisy; never a painted
picture. It prints how often shape, colour, place and number are right on renders that were not trained on.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchword.checkpoints.state import pack_optimiser, prefixed, unpack_optimiser, without_prefix
from patchword.data.scenes import Scene, draw, make_scenes
from patchword.models.painters.scene_reader import SIDE, SceneReader, SceneReaderConfig, reading_loss
from patchword.tasks.paint.oracle import Oracle, as_pixels, things_of
from patchword.tensors import read_tensors, write_tensors

GRID = SIDE // 4
RATE = 4e-3
KINDS = ((1, 16), (1, 24), (2, 24), (2, 32))
"""Levels and sizes of the renders, in equal shares."""
TESTS = (*KINDS, (1, 32), (3, 32))
"""What is read in the end, of which the last two were never trained on."""


def renders(count: int, split: str) -> tuple[list[Scene], list[np.ndarray]]:
    """Scenes of all kinds and their pictures."""
    scenes: list[Scene] = []
    pictures: list[np.ndarray] = []
    for level, size in KINDS:
        made = make_scenes(count // len(KINDS), level, split, seed=11)
        scenes += made
        pictures += list(draw(made, size))
    return scenes, pictures


def worn(pixels_B3SS: Tensor) -> Tensor:
    """Pictures as a painter might leave them: half of them noisy, half of them a little blurred."""
    count = len(pixels_B3SS)
    noise = torch.rand(count, 1, 1, 1) * 0.2 * (torch.rand(count, 1, 1, 1) < 0.5)
    blurred = torch.nn.functional.avg_pool2d(pixels_B3SS, 3, 1, 1, count_include_pad=False)
    share = torch.rand(count, 1, 1, 1) * 0.7 * (torch.rand(count, 1, 1, 1) < 0.5)
    return pixels_B3SS + share * (blurred - pixels_B3SS) + noise * torch.randn_like(pixels_B3SS)


def accuracy(oracle: Oracle, scenes: list[Scene], pictures: list[np.ndarray]) -> dict[str, float]:
    """Shares of pictures: right number of things; right colours, shapes and both as multisets."""
    found = oracle.read(pictures).scenes
    names = {
        "number": lambda scene: len(scene.things),
        "colours": lambda scene: sorted(thing.colour for thing in scene.things),
        "shapes": lambda scene: sorted(thing.shape for thing in scene.things),
        "both": lambda scene: sorted((thing.colour, thing.shape) for thing in scene.things),
        "sizes too": lambda scene: sorted((thing.colour, thing.shape, thing.size) for thing in scene.things),
        "background": lambda scene: scene.background,
    }
    return {
        name: float(np.mean([of(a) == of(b) for a, b in zip(found, scenes, strict=True)]))
        for name, of in names.items()
    }


def keep(reader: SceneReader, optimiser: torch.optim.Optimizer, step: int, state: Path) -> None:
    """What the next call goes on from."""
    tensors = prefixed("reader.", reader.state_dict()) | prefixed("optimiser.", pack_optimiser(optimiser))
    write_tensors(state, tensors | {"step": torch.tensor(step)})


def resumed(reader: SceneReader, optimiser: torch.optim.Optimizer, state: Path) -> int:
    """The step at which an earlier call stopped; 0 where there was none."""
    if not state.is_file():
        return 0
    tensors = read_tensors(state)
    reader.load_state_dict(without_prefix("reader.", tensors))
    unpack_optimiser(optimiser, without_prefix("optimiser.", tensors))
    return int(tensors["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=90_000)
    parser.add_argument("--seconds", type=float, default=0, help="stop after so many, to be gone on with")
    parser.add_argument("--state", type=Path, default=Path("scene-reader.state.safetensors"))
    arguments = parser.parse_args()
    started = time.monotonic()
    torch.manual_seed(1)
    scenes, pictures = renders(arguments.count, "train")
    pixels = as_pixels(pictures)
    reader = SceneReader(SceneReaderConfig())
    optimiser = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=1e-4)
    first = resumed(reader, optimiser, arguments.state)
    began = time.process_time()
    for step in range(first, arguments.steps):
        if arguments.seconds and time.monotonic() - started > arguments.seconds:
            keep(reader, optimiser, step, arguments.state)
            print(f"stopped at step {step}, call again", flush=True)
            return
        torch.manual_seed(step)
        for group in optimiser.param_groups:
            group["lr"] = RATE * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / arguments.steps))
        places = torch.randint(len(scenes), (arguments.batch,))
        things, background_B = things_of([scenes[int(place)] for place in places], GRID)
        loss = reading_loss(reader(worn(pixels[places])), things, background_B)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.process_time() - began:.0f} CPU s", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(
        arguments.out,
        {name: t.half() if t.is_floating_point() else t for name, t in reader.state_dict().items()},
    )
    oracle = Oracle(reader)
    for level, size in TESTS:
        test = make_scenes(1000, level, "test", seed=12)
        found = accuracy(oracle, test, list(draw(test, size)))
        print(f"level {level}, {size} px:", {name: round(value, 4) for name, value in found.items()})
    print(f"{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
