"""Two streams and two towers on the same photographs: retrieval, and captions with a word exchanged.

python benchmarks/pretrain_photographs.py STREAMS TOWERS --data dataset_flickr8k.json --images IMAGES

The first caption of each picture counts. Retrieval is within the first `--pool` pictures of the split; a
caption with a word exchanged for one of its kind is compared with the own one on all of them. Both models
read the same words: those that the streams know.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from patchword.tasks.pretrain.evaluate import pair_data
from patchword.tasks.pretrain.hard_negatives import replaced
from patchword.tasks.pretrain.vilbert import PairData, measure, retrieval
from patchword.tasks.pretrain.vilbert_model import load_two_streams
from patchword.tasks.retrieve.load import load_two_towers

RANKS = (1, 5, 10)


def of_streams(model, data: PairData, pool: int) -> dict[str, float]:
    """What `patchword evaluate` measures, with retrieval in one pool of the first pictures."""
    found = measure(model.model, data, model.device)
    part = PairData(
        data.files[:pool],
        data.rows[:pool],
        data.regions._replace(
            features_nNF=data.regions.features_nNF[:pool],
            classes_nNK=None if data.regions.classes_nNK is None else data.regions.classes_nNK[:pool],
        ),
        data.vocabulary,
        data.kinds,
        data.config,
    )
    return found | retrieval(model.model, part, model.device, lambda _: None, pool)


def of_towers(model, data: PairData, images: Path, pool: int) -> dict[str, float]:
    """The same of two towers, by cosines."""
    rng = np.random.default_rng(0)
    words = [" ".join(data.vocabulary.tokens(row[0])) for row in data.rows]
    changed = [replaced(row[0], data.kinds, rng) for row in data.rows]
    hard = [" ".join(data.vocabulary.tokens(row)) if row else None for row in changed]
    pictures_nE = model.embed_images([images / name for name in data.files])
    texts_nE = model.embed_texts(words)
    own_n = (pictures_nE * texts_nE).sum(1)
    kept = [place for place, text in enumerate(hard) if text is not None]
    false_m = (pictures_nE[kept] * model.embed_texts([hard[place] or "" for place in kept])).sum(1)
    others_n = (pictures_nE * np.roll(texts_nE, -1, 0)).sum(1)
    found = {
        "pair_auc": float((own_n[:, None] > others_n).mean()),
        "hard": float((own_n[kept] > false_m).mean()),
    }
    cosines = pictures_nE[:pool] @ texts_nE[:pool].T
    own = np.diagonal(cosines)
    ranks = {
        "picture_to_text": (cosines > own[:, None]).sum(1),
        "text_to_picture": (cosines > own[None]).sum(0),
    }
    for way, above in ranks.items():
        found |= {f"{way}_R@{k}": float((above < k).mean()) for k in RANKS}
    return found


def chance(pool: int) -> dict[str, float]:
    """What guessing gives."""
    ways = ("picture_to_text", "text_to_picture")
    return {"pair_auc": 0.5, "hard": 0.5} | {f"{way}_R@{k}": k / pool for way in ways for k in RANKS}


def table(found: Mapping[str, Mapping[str, float]]) -> None:
    """A column for each model."""
    print(f"| | {' | '.join(found)} |\n| --- |{' --: |' * len(found)}")
    for name in dict.fromkeys(name for scores in found.values() for name in scores):
        cells = [f"{scores[name]:.3f}" if name in scores else "" for scores in found.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams")
    parser.add_argument("towers")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--pool", type=int, default=200)
    given = parser.parse_args()
    torch.manual_seed(0)
    streams = load_two_streams(Path(given.streams), "cpu")
    data = pair_data(streams, given.data, given.images, given.split)
    size = min(given.pool, len(data.files))
    towers = load_two_towers(given.towers, "cpu")
    print(f"{len(data.files)} pictures of {given.split}; retrieval among the first {size}")
    table(
        {
            "chance": chance(size),
            "streams": of_streams(streams, data, size),
            "two towers": of_towers(towers, data, given.images, size),
        }
    )
