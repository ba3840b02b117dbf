"""Scenes as a data set on disk, so that commands run on them as on any other."""

from __future__ import annotations

import json
import os
from pathlib import Path

from PIL import Image

from patchword.data.scenes.describe import describe
from patchword.data.scenes.draw import draw
from patchword.data.scenes.world import HeldOut, make_scenes


def write_scenes(
    folder: Path | str,
    n: int,
    level: int = 1,
    size: int = 32,
    split: str = "train",
    held_out: HeldOut | None = None,
    seed: int = 0,
    captions: int = 5,
) -> Path:
    """Write `n` scenes of a split as PNG files under folder/images and as Karpathy JSON; returns the path of folder/dataset.json.

    Call it once per split: what the file already says of other splits is kept, the split itself is written anew.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    file = folder / "dataset.json"
    entries = [one for one in json.loads(file.read_text(encoding="utf-8"))["images"] if one["split"] != split] if file.exists() else []
    scenes = make_scenes(n, level, split, held_out, seed)
    taken = {one["imgid"] for one in entries}
    free = (number for number in range(len(taken) + n) if number not in taken)
    for scene, pixels_SSC, image_id in zip(scenes, draw(scenes, size), free, strict=False):
        Image.fromarray(pixels_SSC).save(folder / "images" / f"{scene.name}.png")
        told = [{"raw": caption.text, "tokens": list(caption.words)} for caption in describe(scene, captions)]
        entries.append({"imgid": image_id, "filename": f"{scene.name}.png", "split": split, "sentences": told})
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps({"dataset": "scenes", "images": entries}), encoding="utf-8")
    os.replace(partial, file)
    return file
