"""Skip-gram with pictures on the drawn lexicon, where meaning and looks are known exactly.

    python benchmarks/lexicon.py --seeds 1 2 3

80 nouns with 20 drawn exemplars each, 12,000 sentences, a visual adjective before 5 % of the nouns (or
`--adjectives`). Trains skip-gram, variant A and variant B from the same numbers, the pictures of 20 nouns
hidden, and prints Spearman's correlation of the cosines of the 60 others with what they look like, with their
taxa, and with both; and the median rank, among 80, of the own pictures of the hidden nouns.

The exemplars are seen by a small network that learnt colour, shape and size from other drawn scenes, as an
ImageNet network has learnt its classes from other photographs. `--pixels` leaves it out: pixels tell the
colour and nothing of shape and size (line "pictures"), and no word vector can then learn them.
"""

from __future__ import annotations

import argparse
import itertools
from typing import NamedTuple

import numpy as np
import torch

from patchword.data.corpus import END, Corpus
from patchword.data.scenes import draw, make_scenes
from patchword.data.scenes.lexicon import Lexicon, lexicon
from patchword.data.scenes.world import COLOURS, SHAPES, SIZES
from patchword.metrics.similarity import spearman
from patchword.models.word_vectors.distributional import unit_rows
from patchword.models.word_vectors.skip_gram import SkipGram, SkipGramConfig
from patchword.tasks.words.batches import SkipGramRows
from patchword.tasks.words.objective import SkipGramObjective
from patchword.tasks.words.pictures import place_words
from patchword.tasks.words.settings import WordPicturesSettings
from patchword.towers.convolutional import ConvolutionalTower
from patchword.towers.settings import ConvolutionalConfig
from patchword.train.step import Shares

WIDTH, HIDDEN, SIDE = 50, 20, 24


def eyes(steps: int = 800, seed: int = 0) -> ConvolutionalTower:
    """A network that learnt colour, shape and size of the one thing in 12,000 drawn scenes."""
    scenes = make_scenes(12_000, 1)
    pixels = as_pixels(draw(scenes, SIDE))
    things = [scene.things[0] for scene in scenes]
    kinds = (tuple(COLOURS), SHAPES, SIZES)
    looks = zip(*((thing.colour, thing.shape, thing.size) for thing in things), strict=True)
    targets = [
        torch.tensor([kind.index(value) for value in values])
        for kind, values in zip(kinds, looks, strict=True)
    ]
    torch.manual_seed(seed)
    tower = ConvolutionalTower(
        ConvolutionalConfig(stem=16, widths=(32, 64), blocks=(1, 1), size=SIDE, trainable_from=0)
    )
    heads = torch.nn.ModuleList(torch.nn.Linear(tower.width, len(kind)) for kind in kinds)
    optimiser = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    tower.train()
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (64,), generator=generator)
        seen_BC = tower(pixels[chosen]).grid_BNC.mean(1)
        losses = [
            torch.nn.functional.cross_entropy(head(seen_BC), target[chosen])
            for head, target in zip(heads, targets, strict=True)
        ]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
        schedule.step()
    return tower.eval()


def as_pixels(pictures: np.ndarray) -> torch.Tensor:
    """(B, 3, S, S), centred."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def seen_by(tower: ConvolutionalTower | None, pictures: np.ndarray) -> np.ndarray:
    """What a tower sees in pictures, or their pixels where there is none."""
    if tower is None:
        return pictures.reshape(len(pictures), -1).astype(np.float32) / 255
    return torch.cat([tower(part).grid_BNC.mean(1) for part in as_pixels(pictures).split(400)]).numpy()


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


def measured(
    seed: int,
    tower: ConvolutionalTower | None,
    epochs: int,
    window: int,
    adjectives: float,
    margin: float,
    weight: float,
    penalty: float,
    power: float,
) -> dict[str, Found]:
    """Skip-gram, A and B on the lexicon of a seed."""
    world = lexicon(seed=seed)
    corpus, count = corpus_of(world, 12_000, adjectives), len(world.nouns)
    pictures = seen_by(tower, world.exemplars(20, SIDE).reshape(count * 20, SIDE, SIDE, 3))
    places = [list(range(20 * n, 20 * n + 20)) for n in range(count)] + [[] for _ in corpus.words[count:]]
    settings = WordPicturesSettings(annotations="", images="", width=WIDTH, power=power, held_out=HIDDEN)
    seen = place_words(corpus.words, places, pictures, [str(n) for n in range(len(pictures))], settings, seed)
    hidden = (seen.words_WP != 0).any(1)[:count] & ~(seen.training_WP != 0).any(1)[:count]
    own = seen.words_WP[:count]
    found = {"pictures": judged(world, own, own, seen.words_WP, hidden)}
    for variant in ("A", "B"):
        config = SkipGramConfig(
            variant=variant,
            width=WIDTH,
            window=window,
            margin=margin,
            visual_weight=weight,
            penalty=penalty,
        )
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
            0.1,
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
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--window", type=int, default=2, help="neighbours on each side")
    parser.add_argument("--adjectives", type=float, nargs="+", default=[0.05], help="share of nouns with one")
    parser.add_argument("--margin", type=float, default=1.0, help="margin of the visual loss")
    parser.add_argument("--weight", type=float, default=0.1, help="weight of the visual loss")
    parser.add_argument("--penalty", type=float, default=0.3, help="B: weight of the squares of M")
    parser.add_argument("--power", type=float, default=1.0, help="pictures.power")
    parser.add_argument("--pixels", action="store_true", help="pixels in place of what a network sees")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tower = None if options.pixels else eyes()
    for adjectives, seed in itertools.product(options.adjectives, options.seeds):
        found_by = measured(
            seed,
            tower,
            options.epochs,
            options.window,
            adjectives,
            options.margin,
            options.weight,
            options.penalty,
            options.power,
        )
        for variant, found in found_by.items():
            told = "  ".join(f"{name} {value:.3f}" for name, value in found._asdict().items())
            print(f"adjectives {adjectives}  seed {seed}  {variant:9s}{told}", flush=True)


if __name__ == "__main__":
    main()
