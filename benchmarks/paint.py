"""Painting: speed against diffusers in the same run, and what a model of drawn scenes really paints.

    python benchmarks/paint.py speed [--repeats 5]
    python benchmarks/paint.py tokens [--repeats 5]
    python benchmarks/paint.py memory
    python benchmarks/paint.py guidance MODEL [--scales 0 1 1.5 2 3 5 8] [--pictures 256] [--state rows.jsonl]
    python benchmarks/paint.py table rows.jsonl

`speed`: a U-Net of the same size (largest map, widths, levels, about as many parameters), the same number of
steps, guidance and pictures, DDIM on one thread; CPU seconds, median of repeats that take turns. Beside our
whole sampler it runs our network under diffusers' scheduler, so that network and sampler can be told apart.

`tokens`: the decoder of DALL-E against GPT-2 of transformers with the same width, layers and heads, which
`generate` samples; 8 pictures of 64 tokens after a text of 26, with and without guidance, all logits kept.

`memory`: MiB that a training step keeps for its backward pass, for both U-Nets of `speed` and the same batch.

`guidance`: for each scale pictures of scenes' own captions, read back by the reader of scenes: shares of
pictures whose statements all hold, whose colours and shapes are right (scenes of level 1), and distance,
precision and recall to as many renders. Rows that are in the state file already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchword.data.scenes import describe, draw, make_scenes
from patchword.diffuse import Sampling, cosine_schedule, guided, joined, sample, spaced
from patchword.metrics import painting
from patchword.models.painters.denoiser import Denoiser, DenoiserConfig
from patchword.types import TextFeatures

PICTURES, STEPS, GUIDANCE, WORDS, TEXT_WIDTH = 8, 10, 3.0, 12, 96
SIZE, WIDTHS = 32, (32, 64, 64)
AT_ONCE = 32


def of_ours() -> tuple[Denoiser, Callable[[], Tensor], Callable[[], Tensor]]:
    """Our network, our sampler over it, and diffusers' loop over it."""
    from diffusers import DDIMScheduler

    config = DenoiserConfig(
        size=SIZE, width=WIDTHS[0], multipliers=(1, 2, 2), attention_at=(16, 8), head_width=16
    )
    model = Denoiser(config, TEXT_WIDTH).eval()
    text, nothing = (model.encode(texts(seed)) for seed in (0, 1))
    noise, schedule = torch.randn(PICTURES, 3, SIZE, SIZE), cosine_schedule()

    def whole() -> Tensor:
        told = (model.encode(texts(0)), model.encode(texts(1)))
        denoise = guided(model, *told, GUIDANCE)
        *_, pictures = sample(denoise, schedule, noise, spaced(schedule, STEPS), Sampling())
        return pictures

    def theirs() -> Tensor:
        both = joined(nothing, text)
        return _loop(DDIMScheduler, noise, lambda x, t: model(x, t, both))

    return model, whole, theirs


def of_diffusers() -> tuple[Any, Callable[[], Tensor]]:
    """Their conditional U-Net of the same widths and levels under their scheduler."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    both = torch.cat([texts(1).tokens_BLC, texts(0).tokens_BLC])
    noise = torch.randn(PICTURES, 3, SIZE, SIZE)
    return model, lambda: _loop(
        DDIMScheduler, noise, lambda x, t: model(x, t, encoder_hidden_states=both).sample
    )


def _loop(scheduler_class: Any, noise: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Guided DDIM as diffusers' pipelines write it: both predictions in one batch."""
    scheduler = scheduler_class(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(STEPS)
    now = noise
    for step in scheduler.timesteps:
        found = predict(torch.cat([now, now]), step.expand(2 * PICTURES))
        without, with_text = found.chunk(2)
        now = scheduler.step(without + GUIDANCE * (with_text - without), step, now).prev_sample
    return now


def texts(seed: int) -> TextFeatures:
    """Features of texts of one length."""
    tokens_BLC = torch.randn(PICTURES, WORDS, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))
    return TextFeatures(tokens_BLC, mask_BL=torch.ones(PICTURES, WORDS, dtype=torch.bool))


@torch.inference_mode()
def speed(repeats: int) -> None:
    """Prints CPU seconds and ratios."""
    torch.set_num_threads(1)
    ours, whole, crossed = of_ours()
    theirs, loop = of_diffusers()
    runs = {"ours": whole, "our network, their sampler": crossed, "diffusers": loop}
    seconds = in_turns(runs, repeats)
    counts = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (ours, theirs)]
    print(
        f"{PICTURES} pictures of {SIZE} px, {STEPS} steps, guidance {GUIDANCE}, one thread, {repeats} repeats"
    )
    print(f"parameters: ours {counts[0]:.2f} M, diffusers {counts[1]:.2f} M")
    base = statistics.median(seconds["diffusers"])
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"{name:28} {middle:7.2f} CPU s  ({min(found):.2f} to {max(found):.2f})  x {base / middle:.2f}")


@torch.inference_mode()
def tokens(repeats: int) -> None:
    """Prints CPU seconds of sampling tokens, ours and those of `generate` of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from patchword.models.painters.discrete_vae import DiscreteVaeConfig
    from patchword.models.painters.token_transformer import Dalle, DalleConfig
    from patchword.tasks.paint.families import Wish
    from patchword.tasks.paint.tokens import write_tokens

    torch.set_num_threads(1)
    torch.manual_seed(0)
    length, words = 26, 64
    ours = Dalle(DalleConfig(codec=DiscreteVaeConfig(size=SIZE), text_length=length), words).eval()
    config, cells, codes = ours.config, ours.cells, ours.codec.codes
    shape = GPT2Config(
        vocab_size=words + codes,
        n_positions=length + cells,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = GPT2LMHeadModel(shape).eval()
    text_BL = torch.randint(words, (PICTURES, length))
    both_BL = torch.cat([text_BL, text_BL.flip(1)])

    @torch.inference_mode()
    def write(told_BL: Tensor) -> Tensor:
        first = ours.start(told_BL, torch.ones_like(told_BL, dtype=torch.bool))
        return write_tokens(first, ours.step, cells, Wish(range(PICTURES)), GUIDANCE)

    def generate(scale: float | None) -> Tensor:
        without = {} if scale is None else {"guidance_scale": scale, "negative_prompt_ids": text_BL.flip(1)}
        return theirs.generate(
            text_BL,
            attention_mask=torch.ones_like(text_BL),
            do_sample=True,
            top_k=0,
            min_new_tokens=cells,
            max_new_tokens=cells,
            pad_token_id=0,
            **without,
        )

    runs = {
        "ours": lambda: write(text_BL),
        "transformers": lambda: generate(None),
        "ours, guided": lambda: write(both_BL),
        "transformers, guided": lambda: generate(GUIDANCE),
    }
    assert [len(one()[0]) for one in runs.values()] == [cells, length + cells] * 2
    counts = [
        sum(p.numel() for p in model.parameters()) / 1e6 for model in (ours.layers, theirs.transformer.h)
    ]
    print(f"{PICTURES} pictures of {cells} tokens after {length}, one thread, {repeats} repeats")
    print(f"parameters of the layers: ours {counts[0]:.2f} M, transformers {counts[1]:.2f} M")
    seconds = in_turns(runs, repeats)
    for name, found in seconds.items():
        other = "transformers, guided" if "guided" in name else "transformers"
        base, middle = statistics.median(seconds[other]), statistics.median(found)
        print(f"{name:28} {middle:7.3f} CPU s  ({min(found):.3f} to {max(found):.3f})  x {base / middle:.2f}")


def in_turns(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each, taking turns after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - began)
    return seconds


def memory() -> None:
    """Prints what a training step of each network keeps for its backward pass."""
    (ours, _, _), (theirs, _) = of_ours(), of_diffusers()
    noise, times = torch.randn(PICTURES, 3, SIZE, SIZE), torch.randint(1000, (PICTURES,))
    text = texts(0)
    runs = {
        "ours": (ours, lambda: ours(noise, times, ours.encode(text))),
        "diffusers": (
            theirs,
            lambda: theirs(noise, times, encoder_hidden_states=text.tokens_BLC).sample,
        ),
    }
    print(f"training step of {PICTURES} pictures of {SIZE} px, float32")
    for name, (model, run) in runs.items():
        model.train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor, weights: set[int] = weights, kept: dict[int, Tensor] = kept) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = run().square().mean()
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2**20
        print(f"{name:12} {count:.2f} M parameters, {total:7.1f} MiB kept, loss {loss.item():.3f}")


def guidance(model: str, scales: list[float], count: int, state: Path, steps: int | None) -> None:
    """Measures what is not in the state file yet, one line per scale and level."""
    from patchword.tasks.paint.families import Wish
    from patchword.tasks.paint.model import load_painter, to_pixels
    from patchword.tasks.paint.oracle import load_oracle, share_true

    painter, oracle = load_painter(model, "cpu"), load_oracle()
    rows = [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []
    done = {(row["model"], row["level"], row["held_out"], row["scale"]) for row in rows}
    for level, held_out in ((1, None), (2, None)):
        scenes = make_scenes(count, level, "test", held_out)
        captions = [describe(scene, 1)[0].text for scene in scenes]
        real = oracle.read(list(draw(scenes, painter.size))).features_NC
        for scale in scales:
            if (model, level, held_out, scale) in done:
                continue
            began, pictures = time.process_time(), []
            for first in range(0, count, AT_ONCE):
                seeds = range(first, min(count, first + AT_ONCE))
                drawn = painter.draw([captions[seed] for seed in seeds], Wish(seeds, scale, steps))
                pictures += list(to_pixels(drawn))
            seconds = (time.process_time() - began) / count
            seen = oracle.read(pictures)
            true = np.array([share_true(s, c) for s, c in zip(seen.scenes, captions, strict=True)])
            near = painting.neighbourhood(seen.features_NC, real)
            distance = painting.frechet_distance(
                painting.moments([seen.features_NC]), painting.moments([real])
            )
            row = {"model": model, "level": level, "held_out": held_out, "scale": scale, "pictures": count}
            row |= {"all hold": float((true == 1).mean()), "statements": float(true.mean())}
            row |= attributes(seen.scenes, captions) | {"distance": distance, **near._asdict()}
            row["CPU s per picture"] = seconds
            with open(state, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def attributes(seen: list, captions: list[str]) -> dict[str, float]:
    """Of captions of one thing that name a colour, a shape, or both: how often a thing that is found has
    them."""
    from patchword.data.scenes.sayings import ExistenceStatement, parse

    found: dict[str, list[bool]] = {"colour": [], "shape": [], "both": []}
    for scene, caption in zip(seen, captions, strict=True):
        facts = parse(caption)
        if facts is None or len(facts) != 1 or not isinstance(facts[0], ExistenceStatement):
            continue
        phrase = facts[0].phrase
        colour = any(thing.colour == phrase.colour for thing in scene.things)
        shape = any(thing.shape == phrase.shape for thing in scene.things)
        if phrase.colour is not None:
            found["colour"].append(colour)
        if phrase.shape is not None:
            found["shape"].append(shape)
        if phrase.colour is not None and phrase.shape is not None:
            both = any((t.colour, t.shape) == (phrase.colour, phrase.shape) for t in scene.things)
            found["both"].append(both)
    return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}


def table(state: Path) -> None:
    """Prints the rows as a table of Markdown."""
    rows = [json.loads(line) for line in state.read_text().splitlines()]
    names = [name for name in rows[0] if name not in ("model", "held_out", "pictures")]
    print("| " + " | ".join(names) + " |\n| " + " | ".join("--:" for _ in names) + " |")
    for row in sorted(rows, key=lambda row: (row["level"], row["scale"])):
        print("| " + " | ".join(f"{row[name]:.4g}" for name in names) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--repeats", type=int, default=5)
    four = commands.add_parser("tokens")
    four.add_argument("--repeats", type=int, default=5)
    commands.add_parser("memory")
    two = commands.add_parser("guidance")
    two.add_argument("model")
    two.add_argument("--scales", type=float, nargs="+", default=[0, 1, 1.5, 2, 3, 5, 8])
    two.add_argument("--pictures", type=int, default=256)
    two.add_argument("--steps", type=int, default=None)
    two.add_argument("--state", type=Path, default=Path("guidance.jsonl"))
    three = commands.add_parser("table")
    three.add_argument("state", type=Path)
    given = parser.parse_args()
    if given.command == "speed":
        speed(given.repeats)
    elif given.command == "tokens":
        tokens(given.repeats)
    elif given.command == "memory":
        memory()
    elif given.command == "guidance":
        guidance(given.model, given.scales, given.pictures, given.state, given.steps)
    else:
        table(given.state)


if __name__ == "__main__":
    main()
