"""What the painters of `benchmarks/paint_systems.py` do beyond its table: guidance, ranking, right captions.

    python benchmarks/paint_trained.py guidance OUT [--only denoiser dalle] [--scales 0 1 1.5 2 3 5]
    python benchmarks/paint_trained.py rank OUT [--only denoiser dalle]
    python benchmarks/paint_trained.py rank drawn-scenes --towers runs/eyes-scenes/best
    python benchmarks/paint_trained.py gap OUT
    python benchmarks/paint_trained.py towers OUT
    python benchmarks/paint_trained.py sheet OUT

OUT is the folder that `paint_systems.py run OUT` made; its models are read, never trained. With `--towers` it
is a painter, and these are the towers that rank.

`guidance`: pictures of captions of the validation scenes at several weights of the text, read back by the
reader of scenes, and their distance, precision and recall to renders of other scenes.

`rank`: eight pictures for each caption; of the first 1, 2, 4 and 8 the one is kept that the two towers of the
folder find nearest to the caption, and the reader says how often that one is right.

`gap`: nats for a token of a picture of the validation scenes, told its own caption and told another one's;
and what the reader finds in pictures that only went through the codec, which no painter of its tokens can
beat.

`towers`: for how many renders the folder's two towers find their colour, and their shape, among all pairs.

`sheet`: eight pictures of every painter that is there, of the same captions, in OUT/systems.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paint_systems import AT_ONCE, CONFIGS, SIZES, against, captions_of, judged, paint_all
from torch import Tensor
from torch.nn import functional

from patchword.data.scenes import draw
from patchword.data.scenes.world import COLOURS, SHAPES
from patchword.files import write_bytes
from patchword.models.painters.token_transformer import Dalle
from patchword.tasks.paint.families import Wish
from patchword.tasks.paint.model import PaintingModel, load_painter, to_pixels
from patchword.tasks.paint.oracle import load_oracle
from patchword.tasks.paint.sheet import png_of, sheet
from patchword.tasks.paint.tokens import fitted, to_unit
from patchword.tasks.retrieve.load import load_two_towers

GUIDED = ("denoiser", "latent_denoiser", "unclip", "dalle", "parti")
TOKENS = ("dalle", "parti")
BEST_OF = (1, 2, 4, 8)
SHOWN_PICTURES = 8
SHOWN = ("seen colour", "seen shape", "seen both", "held out both", "distance", "precision", "recall")


def guidance(painter: PaintingModel, scales: list[float], count: int, level: int) -> list[dict[str, Any]]:
    """A row for each weight of the text."""
    oracle, rows = load_oracle(), []
    for scale in scales:
        row: dict[str, Any] = {"guidance": scale}
        for part, split in (("seen", "val"), ("held out", "test")):
            captions, _ = captions_of(count, level, split)
            pictures = paint_all(painter, captions, scale)
            row |= {f"{part} {name}": value for name, value in judged(oracle, pictures, captions).items()}
            if part == "seen":
                row |= against(oracle, pictures, level, split)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def rank(painter: PaintingModel, towers: Path, count: int, level: int) -> dict[str, float]:
    """How often the picture that the towers choose is right, by the number to choose from."""
    oracle, judge = load_oracle(), load_two_towers(str(towers), "cpu")
    captions, _ = captions_of(count, level, "val")
    most = max(BEST_OF)
    painted = []
    for turn in range(most):
        for first in range(0, count, AT_ONCE):
            some = captions[first : first + AT_ONCE]
            seeds = range(turn * count + first, turn * count + first + len(some))
            painted += list(to_pixels(painter.draw(some, Wish(seeds))))
    texts_TE = judge.embed_texts(captions)
    scores_KT = (judge.embed_images(painted).reshape(most, count, -1) * texts_TE[None]).sum(-1)
    found = {}
    for number in BEST_OF:
        best_T = scores_KT[:number].argmax(0)
        kept = [painted[best * count + place] for place, best in enumerate(best_T.tolist())]
        found[f"best of {number}"] = judged(oracle, kept, captions)["both" if level == 1 else "all hold"]
    return found


@torch.inference_mode()
def gap(painter: PaintingModel, count: int, level: int) -> dict[str, float]:
    """Nats for a token with the right and with another caption, and what survives the codec."""
    captions, scenes = captions_of(count, level, "val")
    pixels_B3HW = torch.from_numpy(np.stack(list(draw(scenes, SIZES[level])))).permute(0, 3, 1, 2) / 255
    codec: Any = painter.model.painter.codec
    codes_BN = codec.encode(to_unit(2 * pixels_B3HW - 1))
    other = captions[1:] + captions[:1]
    differs_B = torch.tensor([one != two for one, two in zip(captions, other, strict=True)])
    nats = {
        name: float(nats_of(painter, told, codes_BN)[differs_B].mean())
        for name, told in (("own caption", captions), ("another caption", other))
    }
    given_back = codec.decode(codes_BN)
    error = float((given_back - pixels_B3HW).square().mean() / pixels_B3HW.var())
    pictures = list(to_pixels(2 * given_back - 1))
    seen = judged(load_oracle(), pictures, captions)
    used = len(codes_BN.unique()) / codec.codes
    found = {f"codec {name}": value for name, value in seen.items()}
    return nats | found | {"codes used": used, "squared error of the variance": error}


def nats_of(painter: PaintingModel, captions: list[str], codes_BN: Tensor) -> Tensor:
    """Cross-entropy of each picture's codes, a mean over its cells (B)."""
    told, writer = painter.tell(captions), painter.model.painter
    if isinstance(writer, Dalle):
        pad = painter.vocabulary.special.pad
        _, logits_BNK = writer(*fitted(told.ids_BL, writer.config.text_length, pad), codes_BN)
    else:
        logits_BNK = writer(writer.tell(told.text.tokens_BLC, told.mask_BL), codes_BN)
    return functional.cross_entropy(logits_BNK.transpose(1, 2), codes_BN, reduction="none").mean(1)


def zero_shot(towers: Path, count: int, level: int) -> dict[str, float]:
    """How often the nearest of the texts "a red circle" has the colour, and the shape, of a render."""
    judge, kinds = load_two_towers(str(towers), "cpu"), [(c, s) for c in COLOURS for s in SHAPES]
    texts_KE = judge.embed_texts([f"a {colour} {shape}" for colour, shape in kinds])
    found = {}
    for part, split in (("seen", "val"), ("held out", "test")):
        _, scenes = captions_of(count, level, split)
        best_T = (judge.embed_images(list(draw(scenes, SIZES[level]))) @ texts_KE.T).argmax(1)
        for place, name in enumerate(("colour", "shape")):
            right = [
                kinds[best][place] == (scene.things[0].colour, scene.things[0].shape)[place]
                for best, scene in zip(best_T.tolist(), scenes, strict=True)
            ]
            found[f"{part} {name}"] = float(np.mean(right))
    return found


def show(out: Path, seed: int, level: int) -> None:
    """Writes pictures of the same captions, a row for each painter."""
    captions, scenes = captions_of(SHOWN_PICTURES, level, "val")
    rows = [list(draw(scenes, SIZES[level]))]
    labels = [f"renders: {caption}" for caption in captions]
    for name in CONFIGS:
        folder = out / f"{name}-{level}-{seed}" / "model"
        if folder.exists():
            rows.append(paint_all(load_painter(folder, "cpu"), captions))
            labels += [name] * len(captions)
    picture = sheet(np.stack([one for row in rows for one in row]), labels, SHOWN_PICTURES)
    write_bytes(out / "systems.png", png_of(picture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("guidance", "rank", "gap", "towers", "sheet"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--towers", type=Path, help="two towers that rank the pictures of a single painter")
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS))
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 1.5, 2, 3, 5])
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--level", type=int, default=1, choices=SIZES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.towers is not None:
        found = rank(load_painter(str(given.out), "cpu"), given.towers, given.pictures, given.level)
        print(json.dumps(found), flush=True)
        return
    if given.what == "sheet":
        show(given.out, given.seed, given.level)
        return
    towers = given.out / f"towers-{given.level}-{given.seed}" / "towers"
    if given.what == "towers":
        print(json.dumps(zero_shot(towers, given.pictures, given.level)), flush=True)
        return
    for name in given.only or (TOKENS if given.what == "gap" else GUIDED):
        folder = given.out / f"{name}-{given.level}-{given.seed}"
        painter = load_painter(folder / "model", "cpu")
        print(f"{name}, seed {given.seed}, {given.pictures} captions", flush=True)
        if given.what == "guidance":
            rows = guidance(painter, given.scales, given.pictures, given.level)
            shown = SHOWN if given.level == 1 else ("seen all hold", "held out all hold", *SHOWN[4:])
            print("| guidance | " + " | ".join(shown) + " |")
            print("| --: | " + " | ".join("--:" for _ in shown) + " |")
            for row in rows:
                print(f"| {row['guidance']:g} | " + " | ".join(f"{row[key]:.3g}" for key in shown) + " |")
        elif given.what == "rank":
            print(json.dumps(rank(painter, towers, given.pictures, given.level)), flush=True)
        else:
            print(json.dumps(gap(painter, given.pictures, given.level)), flush=True)


if __name__ == "__main__":
    main()
