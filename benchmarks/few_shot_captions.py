"""Captions of a few-shot model after 0, 4 and 8 shots: CIDEr-D and BLEU-4 on a split of photographs.

python benchmarks/few_shot_captions.py MODEL --data dataset_flickr8k.json --images IMAGES --limit 500

The shots are drawn from the training split, the same for all pictures, and read once. Several draws, of which
mean and standard deviation are printed. "other" gives each question the picture of the next one; "constant"
says the same of every picture: of the captions of 60 training pictures the best for all of these.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from own_data import best_for_all

from patchword import score
from patchword.data.formats.readers import read_captions, split_records
from patchword.tasks.interleave.model import Shot, load_few_shot

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Captions of a few-shot model by the number of shots.")
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--draws", type=int, default=3)
    given = parser.parse_args()
    model = load_few_shot(given.model, "cpu")
    records = read_captions(given.data)
    train, asked = split_records(records, "train"), split_records(records, given.split)[: given.limit]
    references = {str(place): list(record.captions) for place, record in enumerate(asked)}
    pictures = [given.images / record.file for record in asked]
    print("| shots | pictures | CIDEr-D | BLEU-4 | different captions |\n| --: | --- | --: | --: | --: |")
    constant = best_for_all({record.file: list(record.captions) for record in train[:60]})
    found = score(references, dict.fromkeys(references, constant))
    values = " | ".join(f"{100 * found[name].value:.1f}" for name in ("CIDEr", "Bleu_4"))
    print(f"| | constant: {constant} | {values} | 1 |", flush=True)
    for shots in given.shots:
        for kind, seen in (("own", pictures), ("other", pictures[1:] + pictures[:1])):
            if kind == "other" and shots != max(given.shots):
                continue
            rows = []
            for draw in range(given.draws if shots else 1):
                rng = np.random.default_rng(draw)
                chosen = [train[place] for place in rng.choice(len(train), shots, replace=False)]
                read = model.read([Shot(given.images / one.file, one.captions[0]) for one in chosen])
                said: list[str] = []
                for first in range(0, len(seen), 50):
                    said += model.ask(seen[first : first + 50], "", read)
                found = score(references, {str(place): text for place, text in enumerate(said)})
                rows.append((100 * found["CIDEr"].value, 100 * found["Bleu_4"].value, len(set(said))))
            cells = [
                f"{statistics.fmean(column):.1f} ± {statistics.stdev(column) if len(rows) > 1 else 0:.1f}"
                for column in zip(*rows, strict=True)
            ]
            print(f"| {shots} | {kind} | {' | '.join(cells)} |", flush=True)
