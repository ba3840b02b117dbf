"""Measures how much of indexing and captioning is the tower: pictures a second of `index`, of `caption`, of
their parts, and of the towers alone.

    python benchmarks/index_pictures.py PICTURES --count 256

PICTURES is a folder of photographs. One thread; CPU seconds count, as other work on the machine lengthens the
others. The tower alone gets pixels that are ready, in the batches of an index.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from patchword.data.pictures import open_picture
from patchword.data.sources import find_pictures
from patchword.search.index import update_index
from patchword.search.records import IndexModel
from patchword.tasks.caption.load import load
from patchword.tasks.retrieve.load import load_two_towers

BATCH = 32


def main() -> None:
    """Prints one row per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--model", default="two-towers")
    parser.add_argument("--captioner", default="flickr8k")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    towers = load_two_towers(arguments.model, "cpu")
    paths = find_pictures([str(arguments.pictures)]).pictures[: arguments.count]
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    decoded = [[open_picture(path) for path in batch] for batch in batches[:1]]
    towers.embed_images(decoded[0])  # warm

    rows: list[tuple[str, float]] = []

    def measure(name: str, do: Callable[[], object]) -> object:
        began = time.process_time()
        result = do()
        rows.append((name, len(paths) / (time.process_time() - began)))
        return result

    opened = measure("decode", lambda: [[open_picture(path) for path in batch] for batch in batches])
    pixels = measure("resize and normalise", lambda: [towers.pixels(batch) for batch in opened])

    @torch.inference_mode()
    def tower() -> None:
        for pixels_B3HW in pixels:
            towers.model.embed_pictures(pixels_B3HW)

    measure("tower alone", tower)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        model = IndexModel(towers.embed_images, towers.identity)
        for path in paths:
            shutil.copyfile(path, photos / Path(path).name)
        measure(
            "index",
            lambda: update_index(photos, Path(folder) / "index", model),
        )
        measure(
            "index without small copies",
            lambda: update_index(photos, Path(folder) / "index2", model, thumbnails=False),
        )
    captioner = load(arguments.captioner, "cpu")
    captioner.caption(decoded[0][:1], trace=False)  # warm
    prepared = [
        torch.from_numpy(np.stack([captioner.settings.preprocessing.apply(one) for one in batch]))
        for batch in opened
    ]

    @torch.inference_mode()
    def eyes() -> None:
        for pixels_BHWC in prepared:
            captioner.look(pixels_BHWC.numpy())

    measure("captioner's tower alone", eyes)
    measure("caption", lambda: [captioner.caption(batch, trace=False) for batch in opened])
    rates = dict(rows)
    print(f"{len(paths)} pictures\n| | pictures per CPU s | of its tower alone |\n| --- | --: | --: |")
    for name, rate in rows:
        alone = rates["captioner's tower alone" if "caption" in name else "tower alone"]
        print(f"| {name} | {rate:.1f} | {rate / alone:.2f} |")


if __name__ == "__main__":
    main()
