"""Measures how often the concepts that `index --concepts` stores occur in a picture's own captions.

    patchword codebook --from-captions dataset_flickr8k.json --minimum-count 1000 --tower MODEL --out CODEBOOK
    python benchmarks/concepts.py MODEL CODEBOOK --data dataset_flickr8k.json --images DIR --split val

Chance is the same count with the captions of another picture. A concept counts as wrong even where people
merely did not mention it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.data.formats.readers import read_captions, split_records
from patchword.layers.codebook import Codebook
from patchword.tasks.retrieve.codebook import picture_concepts
from patchword.tasks.retrieve.load import load_two_towers


def measure(
    model: Annotated[str, typer.Argument(help="Two towers.")],
    codebook: Annotated[Path, typer.Argument(help="Codebook made with these towers.")],
    data: Annotated[Path, typer.Option(help="Annotations.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "val",
) -> None:
    """Print the precision of all concepts, and precision and recall of the most frequent ones."""
    records = split_records(read_captions(data), split)
    towers = load_two_towers(model, "cpu")
    concepts = picture_concepts(towers, Codebook.read(codebook))
    files = [images / record.file for record in records]
    found = [
        set(words) for first in range(0, len(files), 64) for words in concepts.of(files[first : first + 64])
    ]
    said = [{word for caption in record.captions for word in caption.lower().split()} for record in records]
    total = sum(map(len, found))
    hits, chance = (
        sum(len(a & b) for a, b in zip(found, captions, strict=True))
        for captions in (said, said[1:] + said[:1])
    )
    print(f"{len(concepts.words)} words, {total / len(records):.2f} concepts a picture")
    print(f"named by a caption of the picture: {hits / total:.1%}; of another picture: {chance / total:.1%}")
    often = sorted(concepts.words, key=lambda word: -sum(word in words for words in said))[:12]
    for word in often:
        named, given = [word in words for words in said], [word in words for words in found]
        both = sum(a and b for a, b in zip(named, given, strict=True))
        precision = f"{both / sum(given):.0%}" if any(given) else "-"
        print(
            f"{word:10s} named of {sum(named):3d} pictures, found in {sum(given):3d}: precision "
            f"{precision}, recall {both / sum(named):.0%}"
        )


if __name__ == "__main__":
    typer.run(measure)
