"""iACE on drawn scenes: is a text judged better from few labels when it was drawn before?

    python benchmarks/imagination_scenes.py --reader scene-reader/reader.safetensors --seeds 1 2 3

Two small towers and a codec are trained on drawn scenes, and a small BERT on their texts by masked words.
Each text about one thing is drawn by moving a latent of the codec towards a high cosine of both towers.
Printed are the cosine before and after; how often an independent reader of scenes, which was no part of this,
sees the colour and the shape that the text names (of the drawings, and of real pictures through the codec);
and the accuracy on whether a text is about a warm thing, or a round one (words that no text has), from 5 % of
320 labels: from the BERT's features alone, with the drawing, with the drawing of another text, and with the
text tower's vector in place of a drawing. Features are frozen; each accuracy is a mean over ten draws of
labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from lexicon import eyes
from torch import Tensor
from vokens_scenes import (
    ROUND,
    SIZE,
    WARM,
    WIDTH,
    Towers,
    World,
    batches,
    ids_of,
    pixels,
    pretrained,
    trained_towers,
    world,
)

from patchword.data.scenes.world import Scene
from patchword.models.painters.vit_vqgan import VitVqgan, VitVqganConfig
from patchword.models.pretraining.imagination import ImaginationClassifier, ImaginationConfig, imagine
from patchword.tasks.paint.oracle import Oracle, load_oracle
from patchword.text.words import Vocabulary
from patchword.towers.convolutional import ConvolutionalTower

LABELLED, TRAINING, DRAWS = 16, 320, 10


def trained_codec(seed: int, pictures: Tensor, steps: int, generator: torch.Generator) -> VitVqgan:
    """A codec of the same pictures."""
    torch.manual_seed(seed)
    codec = VitVqgan(VitVqganConfig(size=SIZE, patch=4, codes=128, code_width=16, width=64, layers=1))
    optimiser = torch.optim.AdamW(codec.parameters(), lr=2e-3)
    codec.train()
    for step, chosen in enumerate(batches(steps, 64, len(pictures), generator)):
        found = codec.losses(pictures[chosen] / 2 + 0.5, step / steps)
        optimiser.zero_grad()
        (found.reconstruction + found.regulariser).backward()
        optimiser.step()
    return codec.eval().requires_grad_(False)


def drawn(
    towers: Towers, codec: VitVqgan, texts: list[str], steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pictures of texts in [0, 1], and the cosines before and after the search."""
    ids_BL, real_BL, _ = ids_of(towers.vocabulary, texts)
    texts_BE = towers.towers.embed_texts(ids_BL, real_BL)

    def score(pictures_B3HW: Tensor) -> Tensor:
        return (towers.towers.embed_pictures(2 * pictures_B3HW - 1) * texts_BE).sum(1)

    latent_BND = torch.randn(len(texts), codec.side**2, codec.config.code_width, generator=generator)
    found = imagine(codec.relaxed, score, latent_BND, steps, rate=0.1, generator=generator)
    return found.pictures_B3HW, found.scores_SB[[0, -1]].mean(1)


def read(oracle: Oracle, pictures_B3HW: Tensor, scenes: list[Scene]) -> tuple[float, float]:
    """How often the reader's surest thing has the colour, and the shape, of the scene's thing."""
    arrays = (pictures_B3HW.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    seen = oracle.read(list(arrays)).scenes
    pairs = [
        (one.things[0], scene.things[0]) if one.things else None
        for one, scene in zip(seen, scenes, strict=True)
    ]
    colours = [pair is not None and pair[0].colour == pair[1].colour for pair in pairs]
    shapes = [pair is not None and pair[0].shape == pair[1].shape for pair in pairs]
    return float(np.mean(colours)), float(np.mean(shapes))


def accuracy(
    seed: int, weight: float, text_BH: Tensor, seen_BV: Tensor, target_B: Tensor, label: Tensor
) -> float:
    """Accuracy on the rows behind the first `TRAINING` after learning from the rows of `label`."""
    torch.manual_seed(seed)
    model = ImaginationClassifier(ImaginationConfig(weight=weight), text_BH.shape[1], seen_BV.shape[1], 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        losses = model.loss(text_BH[label], seen_BV[label], target_B[label])
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        found_B = model(text_BH[TRAINING:], seen_BV[TRAINING:]).argmax(1)
    return float((found_B == target_B[TRAINING:]).float().mean())


def measured(seed: int, oracle: Oracle, sight: ConvolutionalTower, options: argparse.Namespace) -> None:
    """Print everything for a seed."""
    generator = torch.Generator().manual_seed(seed)
    towers = trained_towers(seed, options.towers, sight, generator)
    codec = trained_codec(seed, towers.pictures, options.codec_steps, generator)
    known = world(1, TRAINING + options.test, split="val", start=10_000 * seed)
    distinct = sorted(set(known.texts))
    pictures_D3HW, scores_2 = drawn(towers, codec, distinct, options.search, generator)
    place = torch.tensor([distinct.index(text) for text in known.texts])
    pictures_B3HW = pictures_D3HW[place]
    with torch.no_grad():
        whole = pixels(known.scenes) / 2 + 0.5
        real = read(oracle, whole, known.scenes)
        through = read(oracle, codec.decode(codec.encode(whole)), known.scenes)
        imagined = read(oracle, pictures_B3HW, known.scenes)
        seen_BV = towers.towers.embed_pictures(2 * pictures_B3HW - 1)
        ids_BL, real_BL, _ = ids_of(towers.vocabulary, known.texts)
        own_BV = towers.towers.embed_texts(ids_BL, real_BL)
    print(
        f"seed {seed}  {len(distinct)} texts  cosine {scores_2[0]:.3f} to {scores_2[1]:.3f}  "
        "colour and shape read right: "
        + ", ".join(
            f"{name} {colour:.3f} {shape:.3f}"
            for name, (colour, shape) in (("real", real), ("codec", through), ("imagined", imagined))
        ),
        flush=True,
    )
    other = torch.randperm(len(distinct), generator=generator)
    with torch.no_grad():
        shuffled_BV = towers.towers.embed_pictures(2 * pictures_D3HW[other][place] - 1)
    for one in options.language_seeds or [seed]:
        judged(one, known, towers.vocabulary, options.steps, (seen_BV, shuffled_BV, own_BV))


def judged(
    seed: int, known: World, vocabulary: Vocabulary, steps: int, vectors: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Print the accuracies of a language model with the vectors of imagined pictures, of those of other
    texts, and of the text tower."""
    seen_BV, shuffled_BV, own_BV = vectors
    lines = world(2, 3000).texts
    ids = ids_of(vocabulary, lines)[0]
    bert = pretrained(seed, vocabulary, lines, torch.full(ids.shape, -1), 0.0, steps).eval()
    ids_BL, real_BL, _ = ids_of(vocabulary, known.texts)
    with torch.no_grad():
        tokens_BLC = bert(ids_BL, real_BL).tokens_BLC
        text_BH = (tokens_BLC * real_BL[..., None]).sum(1) / real_BL.sum(1, keepdim=True)
    assert text_BH.shape[1] == WIDTH
    for task in ("warm", "round"):
        things = [scene.things[0] for scene in known.scenes]
        target_B = torch.tensor(
            [one.colour in WARM if task == "warm" else one.shape in ROUND for one in things]
        ).long()
        told = []
        for name, weight, vectors_BV in (
            ("text", 0.0, seen_BV),
            ("text and imagination", 0.5, seen_BV),
            ("text and shuffled imaginations", 0.5, shuffled_BV),
            ("text and the tower's text vector", 0.5, own_BV),
        ):
            draws = torch.Generator().manual_seed(seed)
            found = [
                accuracy(
                    seed,
                    weight,
                    text_BH,
                    vectors_BV,
                    target_B,
                    torch.randperm(TRAINING, generator=draws)[:LABELLED],
                )
                for _ in range(DRAWS)
            ]
            told.append(f"{name} {np.mean(found):.3f}")
        print(f"seed {seed}  {task}: {', '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reader", type=Path, help="weights of the reader; absent: the shipped ones")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--language-seeds",
        type=int,
        nargs="+",
        help="seeds of the language models over the imaginations of each pair of towers; absent: theirs",
    )
    parser.add_argument("--eyes", type=int, default=1600, help="steps in which the eyes learn single things")
    parser.add_argument("--towers", type=int, default=1200, help="steps of the two towers")
    parser.add_argument("--steps", type=int, default=400, help="steps of the BERT")
    parser.add_argument("--codec-steps", type=int, default=800)
    parser.add_argument("--search", type=int, default=80, help="steps of the search for a picture")
    parser.add_argument("--test", type=int, default=400, help="texts to be judged")
    options = parser.parse_args()
    torch.set_num_threads(1)
    oracle = load_oracle(options.reader) if options.reader else load_oracle()
    sight = eyes(options.eyes)
    for seed in options.seeds:
        measured(seed, oracle, sight, options)


if __name__ == "__main__":
    main()
