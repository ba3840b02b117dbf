"""Vokens on drawn scenes: does a word find a picture of what it names, and does a language model gain by
them?

    python benchmarks/vokens_scenes.py match language --seeds 1 2 3

`match`: two small towers and a vokenizer are trained on scenes of one and of two things (the vision tower has
learnt colour, shape and size of single things before, as in `lexicon.py`); the bank are scenes
of one thing, the texts are about two ("a small red circle left of a large blue square"), so that a picture
can fit one of the two at most. Printed is how often the picture of a colour has that colour, and of a shape
that shape, with the paper's negatives and with the hardest of the batch; and how often the towers
themselves find a picture of the right colour and shape for a text about one thing, which bounds it.

`language`: a small BERT is pre-trained on such texts by masked language modelling alone, with vokens, and
with random vokens, and then learns from few labels whether a text entails that there is a warm thing, or a
round one: words that no text has. Each accuracy is a mean over draws of the labels.
"""

from __future__ import annotations

import argparse
import copy
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lexicon import eyes
from torch import Tensor

from patchword.data.scenes import describe, draw, make_scenes
from patchword.data.scenes.world import COLOURS, SHAPES, Scene
from patchword.models.pairs.two_towers import TwoTowers, TwoTowersConfig, softmax_loss
from patchword.models.pretraining.vokenizer import (
    TokenBatch,
    Vokenizer,
    VokenizerConfig,
    VokenLanguageModel,
    VokenLanguageModelConfig,
    nearest_pictures,
)
from patchword.tasks.vokens.model import token_states
from patchword.text.words import Vocabulary
from patchword.towers.bert import BertTower
from patchword.towers.convolutional import ConvolutionalTower
from patchword.towers.settings import BertTowerConfig, ConvolutionalConfig

SIZE, WIDTH = 24, 64
WARM, ROUND = ("red", "orange", "yellow", "pink"), ("circle", "ring", "half")


class World(NamedTuple):
    """Scenes with a text each."""

    scenes: list[Scene]
    texts: list[str]


@lru_cache(maxsize=8)
def world(level: int, count: int, start: int = 0, split: str = "train") -> World:
    """Scenes of a level, in the plainest words."""
    scenes = make_scenes(count, level, split, start=start)
    return World(scenes, [describe(scene, 1, styles=(0,))[0].text for scene in scenes])


def pixels(scenes: list[Scene]) -> Tensor:
    """(B, 3, S, S), centred."""
    return torch.from_numpy(draw(scenes, SIZE)).permute(0, 3, 1, 2).float() / 127.5 - 1


def ids_of(vocabulary: Vocabulary, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids with start and end, the mask of what is no padding, and of what is a word."""
    special = vocabulary.special
    rows = [vocabulary.encode(text) for text in texts]
    ids_BL = torch.full((len(rows), max(map(len, rows)) + 2), special.pad)
    words_BL = torch.zeros(ids_BL.shape, dtype=torch.bool)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row) + 2] = torch.tensor([special.start, *row, special.end])
        words_BL[b, 1 : len(row) + 1] = True
    return ids_BL, ids_BL != special.pad, words_BL


def small_bert(vocabulary: Vocabulary) -> BertTower:
    """Two layers."""
    architecture = {
        "vocab_size": vocabulary.size,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 48,
        "pad_token_id": vocabulary.special.pad,
    }
    return BertTower(BertTowerConfig(architecture=architecture, trainable_from=0))


class Matcher(NamedTuple):
    """What `match` trains."""

    towers: TwoTowers
    vokenizer: Vokenizer
    vocabulary: Vocabulary


class Towers(NamedTuple):
    """Two towers, and what they were trained on."""

    towers: TwoTowers
    vocabulary: Vocabulary
    texts: list[str]
    pictures: Tensor


def batches(count: int, size: int, among: int, generator: torch.Generator):
    """Places, drawn anew for each step."""
    for _ in range(count):
        yield torch.randint(among, (size,), generator=generator)


def trained_towers(
    seed: int, steps: int, sight: ConvolutionalTower, generator: torch.Generator, batch: int = 64
) -> Towers:
    """Two towers by their contrast, on scenes of one and of two things; the vision tower begins as `sight`,
    as the paper's begins with an ImageNet network."""
    ones, twos = world(1, 4000), world(2, 4000)
    scenes, texts = ones.scenes + twos.scenes, ones.texts + twos.texts
    pictures = pixels(scenes)
    vocabulary = Vocabulary.build(texts, 1)
    ids_BL, real_BL, _ = ids_of(vocabulary, texts)
    torch.manual_seed(seed)
    vision = ConvolutionalTower(
        ConvolutionalConfig(
            stem=16, widths=(32, 64), blocks=(1, 1), size=SIZE, shared_width=WIDTH, trainable_from=0
        )
    )
    vision.stem.load_state_dict(sight.stem.state_dict())
    vision.layers.load_state_dict(sight.layers.state_dict())
    towers = TwoTowers(TwoTowersConfig(width=WIDTH), vision, small_bert(vocabulary))
    seeing = [*vision.stem.parameters(), *vision.layers.parameters()]
    others = [p for p in towers.parameters() if all(p is not one for one in seeing)]
    optimiser = torch.optim.AdamW([{"params": seeing, "lr": 5e-4}, {"params": others}], lr=2e-3)
    towers.train()
    for chosen in batches(steps, batch, len(texts), generator):
        images_BE = towers.embed_pictures(pictures[chosen])
        texts_BE = towers.embed_texts(ids_BL[chosen], real_BL[chosen])
        similarity = towers.scale() * images_BE @ texts_BE.t()
        optimiser.zero_grad()
        (softmax_loss(similarity, torch.arange(batch), 0, batch) / batch).backward()
        optimiser.step()
    return Towers(towers.eval().requires_grad_(False), vocabulary, texts, pictures)


def trained_matcher(seed: int, found: Towers, steps: int, hardest: bool, batch: int = 64) -> Matcher:
    """The heads by the hinge, over towers that stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    towers, vocabulary, texts, pictures = found
    ids_BL, real_BL, words_BL = ids_of(vocabulary, texts)
    vectors_BE = torch.cat([towers.embed_pictures(part) for part in pictures.split(500)])
    torch.manual_seed(seed)
    heads = Vokenizer(VokenizerConfig(hardest_negatives=hardest), 2 * WIDTH, WIDTH)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    for chosen in batches(steps, batch, len(texts), generator):
        states_BLC = token_states(towers.text, ids_BL[chosen], real_BL[chosen], 4)
        optimiser.zero_grad()
        heads.loss(states_BLC, words_BL[chosen], vectors_BE[chosen]).backward()
        optimiser.step()
    return Matcher(towers, heads.eval(), vocabulary)


@torch.no_grad()
def vokens_of(matcher: Matcher, texts: list[str], bank: World) -> tuple[Tensor, Tensor, Tensor]:
    """Words of the texts as a mask (B, L), the picture of each (B, L; -1 elsewhere), and its preference."""
    ids_BL, real_BL, words_BL = ids_of(matcher.vocabulary, texts)
    bank_FD = matcher.vokenizer.pictures(matcher.towers.embed_pictures(pixels(bank.scenes)))
    states_BLC = token_states(matcher.towers.text, ids_BL, real_BL, 4)
    found = nearest_pictures(matcher.vokenizer.tokens(states_BLC)[words_BL], bank_FD.split(256))
    vokens_BL, preference_BL = torch.full(ids_BL.shape, -1), torch.zeros(ids_BL.shape)
    vokens_BL[words_BL], preference_BL[words_BL] = found.pictures_N, found.preference_N
    return words_BL, vokens_BL, preference_BL


@torch.no_grad()
def sight_of_towers(seed: int, found: Towers) -> None:
    """Print how often the nearest picture of a text about one thing has its colour, and its shape."""
    bank, asked = world(1, 1000, split="val"), world(1, 300, split="val", start=20_000)
    ids_BL, real_BL, _ = ids_of(found.vocabulary, asked.texts)
    bank_FE = found.towers.embed_pictures(pixels(bank.scenes))
    nearest_B = (found.towers.embed_texts(ids_BL, real_BL) @ bank_FE.t()).argmax(1).tolist()
    pairs = [(bank.scenes[f].things[0], s.things[0]) for f, s in zip(nearest_B, asked.scenes, strict=True)]
    colour = np.mean([one.colour == other.colour for one, other in pairs])
    shape = np.mean([one.shape == other.shape for one, other in pairs])
    print(f"seed {seed}  towers: colour {colour:.3f}  shape {shape:.3f} of {len(pairs)}", flush=True)


def match(seed: int, matcher: Matcher, negatives: str) -> None:
    """Print how often the picture of a word shows what the word names, or what the other thing is."""
    bank, asked = world(1, 1000, split="val"), world(2, 300, split="val")
    words_BL, vokens_BL, preference_BL = vokens_of(matcher, asked.texts, bank)
    hits: dict[str, list[bool]] = {"colour": [], "shape": []}
    others: list[bool] = []
    strengths: dict[str, list[float]] = {"content": [], "function": []}
    for b, text in enumerate(asked.texts):
        for place, word in enumerate(matcher.vocabulary.tokens(matcher.vocabulary.encode(text)), start=1):
            thing = bank.scenes[int(vokens_BL[b, place])].things[0]
            if word in COLOURS:
                hits["colour"].append(thing.colour == word)
            elif word in SHAPES:
                hits["shape"].append(thing.shape == word)
                others.append(thing.shape != word and thing.shape in text.split())
            strengths["content" if word in COLOURS or word in SHAPES else "function"].append(
                float(preference_BL[b, place])
            )
    told = "  ".join(f"{name} {np.mean(found):.3f} of {len(found)}" for name, found in hits.items())
    mean = "  ".join(f"{name} {np.mean(found):.2f}" for name, found in strengths.items())
    print(
        f"seed {seed}  {negatives}  {told}  both {np.mean(hits['colour'] + hits['shape']):.3f}  "
        f"shape of the other thing {np.mean(others):.3f}  preference: {mean}",
        flush=True,
    )


def language(seed: int, matcher: Matcher, steps: int, labelled: int, draws: int) -> None:
    """Print the accuracy on warm and round things after few labels, by what the language model learnt
    from."""
    bank, read = world(1, 200, split="val"), world(2, 3000)
    vocabulary = matcher.vocabulary
    _, vokens_BL, _ = vokens_of(matcher, read.texts, bank)
    random_BL = torch.randint(200, vokens_BL.shape, generator=torch.Generator().manual_seed(seed))
    variants = {
        "words alone": (0.0, vokens_BL),
        "words and vokens": (1.0, vokens_BL),
        "words and random vokens": (1.0, random_BL.where(vokens_BL >= 0, -1)),
    }
    told = []
    for name, (weight, targets_BL) in variants.items():
        tower = pretrained(seed, vocabulary, read.texts, targets_BL, weight, steps)
        found = {
            task: np.mean(
                [few_labels(seed, draw, tower, vocabulary, task, labelled) for draw in range(draws)]
            )
            for task in ("warm", "round")
        }
        told.append(f"{name}: " + ", ".join(f"{task} {mean:.3f}" for task, mean in found.items()))
    print(f"seed {seed}  {'  '.join(told)}", flush=True)


def pretrained(
    seed: int, vocabulary: Vocabulary, texts: list[str], vokens_BL: Tensor, weight: float, steps: int
) -> BertTower:
    """A text tower after its pre-training."""
    torch.manual_seed(seed)
    tower = small_bert(vocabulary)
    config = VokenLanguageModelConfig(voken_weight=weight)
    model = VokenLanguageModel(config, tower, vocabulary.size, 200, vocabulary.special.unknown)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids_BL, real_BL, words_BL = ids_of(vocabulary, texts)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(texts), (64,), generator=generator)
        hidden_BL = (torch.rand(ids_BL[chosen].shape, generator=generator) < config.hidden) & words_BL[chosen]
        losses = model.loss(TokenBatch(ids_BL[chosen], real_BL[chosen], hidden_BL, vokens_BL[chosen]))
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    return tower


def few_labels(
    seed: int, draw: int, tower: BertTower, vocabulary: Vocabulary, task: str, labelled: int
) -> float:
    """Accuracy on 1,000 scenes of one thing after learning from few; the whole tower is tuned."""
    few = world(1, labelled, start=10_000 + 1000 * seed + 100 * draw)
    test = world(1, 1000, split="val", start=5000)

    def labels(scenes: list[Scene]) -> Tensor:
        found = [s.things[0].colour in WARM if task == "warm" else s.things[0].shape in ROUND for s in scenes]
        return torch.tensor(found, dtype=torch.int64)

    torch.manual_seed(seed)
    tuned, head = copy.deepcopy(tower), torch.nn.Linear(WIDTH, 2)
    optimiser = torch.optim.AdamW([*tuned.parameters(), *head.parameters()], lr=5e-4)

    def logits(texts: list[str]) -> Tensor:
        ids_BL, real_BL, _ = ids_of(vocabulary, texts)
        tokens_BLC = tuned(ids_BL, real_BL).tokens_BLC
        mean_BC = (tokens_BLC * real_BL[..., None]).sum(1) / real_BL.sum(1, keepdim=True)
        return head(mean_BC)

    target = labels(few.scenes)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(logits(few.texts), target).backward()
        optimiser.step()
    tuned.eval()
    with torch.no_grad():
        return float((logits(test.texts).argmax(1) == labels(test.scenes)).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["match", "language"], nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--language-seeds",
        type=int,
        nargs="+",
        help="seeds of the language models over the vokens of each vokenizer; absent: the vokenizer's own",
    )
    parser.add_argument("--eyes", type=int, default=1600, help="steps in which the eyes learn single things")
    parser.add_argument("--towers", type=int, default=1200, help="steps of the two towers")
    parser.add_argument("--heads", type=int, default=400, help="steps of the vokenizer")
    parser.add_argument("--steps", type=int, default=400, help="steps of the BERT")
    parser.add_argument("--labelled", type=int, default=16)
    parser.add_argument("--draws", type=int, default=5, help="draws of the labels, at most 10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sight = eyes(options.eyes)
    for seed in options.seeds:
        generator = torch.Generator().manual_seed(seed)
        towers = trained_towers(seed, options.towers, sight, generator)
        hardest = trained_matcher(seed, towers, options.heads, hardest=True)
        if "match" in options.what:
            sight_of_towers(seed, towers)
            match(seed, hardest, "hardest negatives")
            paper = trained_matcher(seed, towers, options.heads, hardest=False)
            match(seed, paper, "half a batch away")
        if "language" in options.what:
            for one in options.language_seeds or [seed]:
                language(one, hardest, options.steps, options.labelled, options.draws)


if __name__ == "__main__":
    main()
