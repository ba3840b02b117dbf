"""Word vectors on real data: text, pictures, each fusion and each joint model, over seeds, on the published
sets.

    python benchmarks/words.py --data FLICKR8K --pairs FOLDER_OF_SIMILARITY_FILES --out runs/words --seeds 1 2
    3 4 5

Trains the four shipped configurations (skip_gram in both variants) for each seed, with every setting as
shipped, and prints Spearman's correlation per set, part and kind of vectors: mean over the seeds, and the 95
% interval over pairs of the first one. What is there already is not trained again, so that it can be run in
pieces.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from patchword.data.formats.similarity import PUBLISHED, find_set, read_pairs
from patchword.tasks.words.evaluate import dispersion_scores, evaluate_set
from patchword.tasks.words.model import WordVectors, load_words
from patchword.tasks.words.train import train_words

RUNS = {
    "distributional": ("words-distributional-flickr8k", []),
    "distributional, scores": ("words-distributional-flickr8k", ["model.fusion=scores"]),
    "distributional, rank 100": ("words-distributional-flickr8k", ["model.rank=100"]),
    "distributional, rank 50": ("words-distributional-flickr8k", ["model.rank=50"]),
    "skip_gram B": ("words-skip-gram-flickr8k", []),
    "skip_gram A": ("words-skip-gram-flickr8k", ['model.variant="A"', "baseline=false"]),
    "autoencoder": ("words-autoencoder-flickr8k", []),
    "grounded_space": ("words-grounded-space-flickr8k", []),
}


def sentence_encoder(words: tuple[str, ...]) -> torch.Tensor:
    """The static token vectors of all-MiniLM-L6-v2: the mean of the embeddings of a word's pieces, no
    layer."""
    from tokenizers import Tokenizer

    from patchword.towers.packages import read_weights, tokenizer_file

    table = read_weights("all-minilm-l6-v2")["embeddings.word_embeddings.weight"]
    tokenizer = Tokenizer.from_file(str(tokenizer_file("all-minilm-l6-v2")))
    tokenizer.no_padding()
    rows = [
        table[torch.tensor(tokenizer.encode(word, add_special_tokens=False).ids)].mean(0) for word in words
    ]
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    parser.add_argument(
        "--print", action="store_true", help="print the table of what is there, and train nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.only:
            measured(name, seed, options)
    table(options)


def measured(name: str, seed: int, options: argparse.Namespace) -> None:
    target = options.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    rows = target.with_suffix(".json")
    if rows.exists() or options.print:
        return
    config, changes = RUNS[name]
    annotations = options.data / "dataset_flickr8k.json"
    overrides = [
        f"out={target}",
        f"seed={seed}",
        f"corpus.captions={annotations}",
        f"pictures.annotations={annotations}",
        f"pictures.images={options.data / 'images'}",
        *changes,
    ]
    if options.cache:
        overrides.append(f"pictures.cache={options.cache}")
    resume = target.exists()
    train_words(Path(config), overrides, resume, "cpu", "benchmarks/words.py")
    model = load_words(target / "best")
    found = judged(name, model, options.pairs)
    if name == "distributional" and seed == 1:
        outside = WordVectors(
            model.settings, model.words, {"text": sentence_encoder(model.words)}, {}, model.facts
        )
        both = WordVectors(
            model.settings,
            model.words,
            {"text": outside.tensors["text"], "picture": model.tensors["picture"]},
            {},
            model.facts,
        )
        found += judged("static vectors of all-MiniLM-L6-v2", both, options.pairs, model)
    rows.write_text(json.dumps(found))


def judged(name: str, model: WordVectors, pairs: Path, seen: WordVectors | None = None) -> list[dict]:
    """Rows of all sets; concrete and abstract by how much alike the pictures look."""
    concreteness = dispersion_scores(seen or model)
    found = []
    for set_name in PUBLISHED:
        for row in evaluate_set(set_name, read_pairs(find_set(set_name, pairs)), model, None, concreteness):
            one = {
                "model": name,
                "set": set_name,
                "part": row.part,
                "vectors": row.space,
                **row.agreement._asdict(),
            }
            found.append({**one, "gain": None if row.gain is None else row.gain._asdict()})
    return found


def table(options: argparse.Namespace) -> None:
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for path in sorted(options.out.glob("*.json")):
        for row in json.loads(path.read_text()):
            groups[row["set"], row["part"], row["model"], row["vectors"]].append(row)
    print(
        "set | part | model | vectors | pairs | rho mean | least to most over seeds | interval, seed 1 | "
        "gain over text (p), seed 1"
    )
    for key, rows in groups.items():
        values = np.array([row["spearman"] for row in rows])
        low, high = rows[0]["interval"]
        gain = rows[0]["gain"]
        told = ""
        if gain is not None:
            around = [f"{end:+.3f}" for end in gain["interval"]]
            told = f"{gain['value']:+.3f} [{', '.join(around)}] p {gain['p']:.3f}"
        spread = f"{values.min():.3f} to {values.max():.3f} ({len(values)})"
        print(
            " | ".join(
                [
                    *key,
                    str(rows[0]["covered"]),
                    f"{values.mean():.3f}",
                    spread,
                    f"[{low:.3f}, {high:.3f}]",
                    told,
                ]
            )
        )


if __name__ == "__main__":
    main()
