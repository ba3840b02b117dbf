"""Skip-gram without pictures against gensim's word2vec on the same corpus: words per second of processor
time, quality, memory.

    python benchmarks/skip_gram.py --captions dataset_flickr8k.json --pairs FOLDER_OF_SIMILARITY_FILES
    --epochs 15

Each side trains in a process of its own, on one thread, after the corpus is in memory, with the same width,
window, negatives and subsampling. gensim decays its rate linearly from 0.025; ours is Adagrad. Needs the
extra bench.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, WINDOW, NEGATIVES, SAMPLE, MINIMUM = 100, 5, 5, 1e-3, 5


def sentences(path: Path, repeat: int) -> list[str]:
    from patchword.tasks.words.pictures import read_picture_texts

    return [caption for record in read_picture_texts(path) for caption in record.captions] * repeat


def ours(options: argparse.Namespace, folder: Path) -> dict:
    import torch

    from patchword.data.corpus import encode_corpus
    from patchword.models.word_vectors.skip_gram import SkipGram, SkipGramConfig
    from patchword.tasks.words.batches import SkipGramRows
    from patchword.tasks.words.objective import SkipGramObjective
    from patchword.train.step import Shares

    torch.set_num_threads(1)
    lines = sentences(options.captions, options.repeat)
    corpus = encode_corpus(lambda: lines, folder / "corpus", minimum_count=MINIMUM)
    config = SkipGramConfig(
        variant="text",
        width=WIDTH,
        window=WINDOW,
        negatives=NEGATIVES,
        subsample=SAMPLE,
        block=options.block,
        shared_negatives=options.shared,
    )
    torch.manual_seed(options.seed)
    model = SkipGram(config, len(corpus.words), None)
    objective = SkipGramObjective(model, None)
    rows = SkipGramRows(corpus, config, None, 8192, options.seed)
    optimiser = torch.optim.Adagrad(model.parameters(), lr=options.rate)
    began = time.process_time()
    for epoch in range(options.epochs):
        for entries in rows.plan(0, epoch):
            batch = rows.batch(0, entries, torch.Generator().manual_seed(1000 * epoch + entries[0]))
            loss = objective(batch, Shares(batch.target_count, 1, 0.0))["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    seconds = time.process_time() - began
    return told(
        corpus.words, model.words.weight.detach().numpy(), corpus.total * options.epochs / seconds, options
    )


def gensims(options: argparse.Namespace, folder: Path) -> dict:
    from gensim.models import Word2Vec

    from patchword.text.words import split_english

    lines = [split_english(line) for line in sentences(options.captions, options.repeat)]
    model = Word2Vec(
        vector_size=WIDTH,
        window=WINDOW,
        negative=NEGATIVES,
        sample=SAMPLE,
        min_count=MINIMUM,
        sg=1,
        workers=1,
        seed=options.seed,
    )
    model.build_vocab(lines)
    began = time.process_time()
    model.train(lines, total_examples=model.corpus_count, epochs=options.epochs)
    seconds = time.process_time() - began
    return told(
        model.wv.index_to_key, model.wv.vectors, model.corpus_total_words * options.epochs / seconds, options
    )


def told(words, vectors, speed: float, options: argparse.Namespace) -> dict:
    import numpy as np

    from patchword.data.formats.similarity import PUBLISHED, find_set, read_pairs
    from patchword.metrics.similarity import agreement

    place = {word: number for number, word in enumerate(words)}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = {
        "words_per_cpu_second": round(speed),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    for name in PUBLISHED if options.pairs else ():
        pairs = read_pairs(find_set(name, options.pairs))
        cosines = [
            float(unit[place[p.first]] @ unit[place[p.second]])
            if p.first in place and p.second in place
            else np.nan
            for p in pairs
        ]
        one = agreement([p.score for p in pairs], cosines)
        found[name] = f"{one.spearman:.3f} [{one.interval.low:.3f}, {one.interval.high:.3f}] of {one.covered}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--shared", type=int, default=32, help="negatives that a block shares")
    parser.add_argument("--side", choices=["ours", "gensim"])
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps((ours if options.side == "ours" else gensims)(options, Path(folder))))
        return
    for side in ("ours", "gensim"):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, text=True
        )
        print(side, done.stdout.strip() or done.stderr[-2000:], flush=True)


if __name__ == "__main__":
    main()
