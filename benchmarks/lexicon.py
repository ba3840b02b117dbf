"""Skip-gram with pictures on the drawn lexicon, where meaning and looks are known exactly.

    python benchmarks/lexicon.py --seeds 1 2 3

80 nouns with 20 drawn exemplars each, 12,000 sentences, a visual adjective before 5 % of the nouns. Trains
skip-gram, variant A and variant B from the same numbers, the pictures of 20 nouns hidden, and prints
Spearman's correlation of the cosines of the 60 others with what they look like, with their taxa, and with
both; and the median rank, among 80, of the own pictures of the hidden nouns.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import torch

from patchword.data.corpus import END, Corpus
from patchword.data.scenes.lexicon import Lexicon, lexicon
from patchword.metrics.similarity import spearman
from patchword.models.word_vectors.distributional import unit_rows
from patchword.models.word_vectors.skip_gram import SkipGram, SkipGramConfig
from patchword.tasks.words.batches import SkipGramRows
from patchword.tasks.words.objective import SkipGramObjective
from patchword.tasks.words.pictures import place_words
from patchword.tasks.words.settings import WordPicturesSettings
from patchword.train.step import Shares

WIDTH, HIDDEN = 50, 20


class Found(NamedTuple):
    """What a variant reaches."""

    visual: float
    semantic: float
    mixed: float
    rank: float


def corpus_of(world: Lexicon, count: int, adjectives: float) -> Corpus:
    """The text of a lexicon as ids, its nouns first."""
    lines = [line.split() for line in world.sentences(count, adjectives)]
    words = list(
        dict.fromkeys([noun.word for noun in world.nouns] + [word for line in lines for word in line])
    )
    ids = {word: number for number, word in enumerate(words)}
    ids_P = np.array([number for line in lines for number in (*(ids[word] for word in line), END)], np.int32)
    return Corpus(
        tuple(words), np.bincount(ids_P[ids_P >= 0], minlength=len(words)), ids_P, int((ids_P >= 0).sum())
    )


def measured(seed: int, epochs: int = 8, rate: float = 0.1, sentences: int = 12_000) -> dict[str, Found]:
    """Skip-gram, A and B on the lexicon of a seed."""
    world = lexicon(seed=seed)
    corpus, count = corpus_of(world, sentences, 0.05), len(world.nouns)
    pictures = world.exemplars().reshape(count * 20, -1).astype(np.float32) / 255
    places = [list(range(20 * n, 20 * n + 20)) for n in range(count)] + [[] for _ in corpus.words[count:]]
    settings = WordPicturesSettings(annotations="", images="", width=WIDTH, minimum=5, held_out=HIDDEN)
    seen = place_words(corpus.words, places, pictures, [str(n) for n in range(len(pictures))], settings, seed)
    hidden = (seen.words_WP != 0).any(1)[:count] & ~(seen.training_WP != 0).any(1)[:count]
    own = seen.words_WP[:count]
    found = {"pictures": judged(world, own, own, seen.words_WP, hidden)}
    for variant in ("A", "B"):
        config = SkipGramConfig(variant=variant, width=WIDTH, window=4)
        models = []
        for one in (config, config.model_copy(update={"variant": "text"})):
            torch.manual_seed(seed)
            models.append(
                SkipGram(one, len(corpus.words), seen.training_WP if one.variant != "text" else None)
            )
        trained(
            SkipGramObjective(*models),
            SkipGramRows(corpus, config, seen.training_WP, 4096, seed),
            epochs,
            rate,
        )
        found[variant] = judged(
            world,
            models[0].words.weight,
            models[0].towards_pictures(models[0].words.weight),
            seen.words_WP,
            hidden,
        )
        text = models[1].words.weight
        found["text"] = judged(world, text, text, seen.words_WP, hidden)
    return found


def trained(objective: SkipGramObjective, rows: SkipGramRows, epochs: int, rate: float) -> None:
    """Adagrad over the batches."""
    optimiser = torch.optim.Adagrad([p for p in objective.parameters() if p.requires_grad], lr=rate)
    for epoch in range(epochs):
        for entries in rows.plan(0, epoch):
            batch = rows.batch(0, entries, torch.Generator().manual_seed(100_000 * epoch + entries[0]))
            optimiser.zero_grad()
            objective(batch, Shares(batch.target_count, 1, 0.0))["loss"].backward()
            with torch.sparse.check_sparse_tensor_invariants(False):
                optimiser.step()


def judged(
    world: Lexicon,
    words_WD: torch.Tensor,
    towards_WP: torch.Tensor,
    pictures_WP: torch.Tensor,
    hidden: torch.Tensor,
) -> Found:
    """Correlations over pairs of nouns whose pictures were there, and the rank of the own pictures of the
    others."""
    count = len(world.nouns)
    with torch.no_grad():
        unit = unit_rows(words_WD[:count])[~hidden]
        cosines = (unit @ unit.t()).numpy()
        scores = unit_rows(towards_WP[:count]) @ pictures_WP[:count].t()
    upper = np.triu_indices(len(cosines), 1)
    chosen = np.ix_(~hidden.numpy(), ~hidden.numpy())
    golds = [gold[chosen][upper] for gold in (world.visual(), world.semantic(), world.mixed())]
    own = scores.diagonal()[:, None]
    ranks = 1 + (scores > own).sum(1)[hidden]
    return Found(*(spearman(cosines[upper], gold) for gold in golds), float(ranks.float().median()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for variant, found in measured(seed, options.epochs).items():
            told = "  ".join(f"{name} {value:.3f}" for name, value in found._asdict().items())
            print(f"seed {seed}  {variant:9s}{told}", flush=True)


if __name__ == "__main__":
    main()
