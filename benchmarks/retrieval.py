"""Recall of a two-tower model on a split, all pictures against all captions.

    python benchmarks/retrieval.py MODEL --data dataset_flickr8k.json --images DIR --split val
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from patchword.data.readers import read_captions, split_records
from patchword.metrics.retrieval import retrieval
from patchword.tasks.retrieve import load_two_towers


def measure(
    model: Annotated[str, typer.Argument(help="Two-tower model: a shipped name or a folder.")],
    data: Annotated[Path, typer.Option(help="Annotations.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "val",
) -> None:
    """Print R@1, R@5, R@10 both ways, median ranks and rSum."""
    records = split_records(read_captions(data), split)
    towers = load_two_towers(model, "cpu")
    began = time.process_time()
    pictures_NE = towers.embed_images([images / record.file for record in records])
    texts_CE = towers.embed_texts([caption for record in records for caption in record.captions])
    owner_C = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    scores = retrieval(pictures_NE @ texts_CE.T, owner_C)
    print(f"{model}: {len(records)} pictures of {split}, {len(owner_C)} captions, {time.process_time() - began:.1f} CPU seconds")
    for name, score in scores.items():
        print(f"{name:12s} {score.value:8.2f}")


if __name__ == "__main__":
    typer.run(measure)
