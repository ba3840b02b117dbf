"""All families of painters on drawn scenes of one thing at 16 pixels, each within the same CPU seconds.

    python benchmarks/paint_systems.py run OUT [--seconds 60] [--seeds 1] [--only df_gan denoiser]
    python benchmarks/paint_systems.py table OUT/rows.jsonl

Every system is its configuration of the package (`CONFIGS` below, with what differs). Its stages share the
seconds as `SHARES` says, autoencoder and two towers of the systems that need them included; a cosine decay
ends when the seconds do. Eight pairs of colour and shape are held out of all trainings. Drawing the training
scenes and building the model is not counted.

The reader of scenes judges: pictures of captions whose pair was trained on, and of captions whose pair was
not. "renders" is the drawing program itself, on other scenes: what no system can beat. Rows that are in the
file already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from paint import attributes
from torch.nn import functional

from patchword.config import override, read_toml, validate
from patchword.data.scenes import describe, draw, make_scenes, write_scenes
from patchword.data.scenes.pictures import SceneSettings, scene_data
from patchword.lookup import look_up
from patchword.metrics import painting
from patchword.tasks.paint.families import Wish
from patchword.tasks.paint.model import load_painter, to_pixels
from patchword.tasks.paint.oracle import Oracle, load_oracle
from patchword.tasks.table import TASKS
from patchword.train.groups import freeze, set_rates
from patchword.train.recipe import Recipe
from patchword.train.step import Shares, StepContext

SIZE, AT_ONCE = 16, 32
SCENES = ("scenes.levels=[1]", "scenes.held_out=combo", "scenes.count=12800", "sheet=0")
LATENT = ("painter.size=8", "painter.channels=4", "painter.attention_at=[4]")
CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "conditional_gan": ("paint-conditional-gan-scenes", ()),
    "stack_gan": ("paint-stack-gan-scenes", ()),
    "attn_gan": ("paint-attn-gan-scenes", ()),
    "df_gan": ("paint-df-gan-scenes", ()),
    "dalle": ("paint-dalle-scenes", ()),
    "parti": ("paint-parti-scenes", ()),
    "denoiser": ("paint-scenes", ()),
    "latent_denoiser": ("paint-scenes", LATENT),
    "unclip": ("unclip-scenes", ("painter.decoder.picture_width=32",)),
}
"""A configuration of the package, and what differs from it beside `SCENES`."""
SHARES: dict[str, tuple[float, ...]] = {
    "stack_gan": (0.5, 0.5),
    "attn_gan": (0.25, 0.75),
    "dalle": (0.4, 0.6),
    "parti": (0.4, 0.6),
    "denoiser": (0.2, 0.8),
    "latent_denoiser": (0.2, 0.3, 0.5),
    "unclip": (0.3, 0.2, 0.5),
}
"""How stages share the seconds: first the two towers whose words a system reads, then the autoencoder of
latent_denoiser."""
OVER_TOWERS = ("denoiser", "latent_denoiser", "unclip")
TOWERS = ("two_towers.width=32", "stage.0.batch=64", "vision.shared_width=32")
AUTOENCODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "latent_channels": 4,
}


def recipe_of(config: str, changes: Sequence[str], folder: Path) -> Recipe:
    """The training of a configuration with changes."""
    values = override(read_toml(config), [*changes, f"out={folder}"])
    task = TASKS[values["task"]]
    settings = validate(values, look_up(task.run), config)
    torch.manual_seed(settings.seed)
    recipe: Recipe = look_up(task.recipe)(settings, folder, f"benchmarks/paint_systems.py, {config}")
    return recipe


def train(recipe: Recipe, seconds: Sequence[float], seed: int) -> list[int]:
    """Each stage for its CPU seconds; the steps that they took."""
    accelerator = Accelerator(cpu=True)
    learning = {name: parameter.requires_grad for name, parameter in recipe.model.named_parameters()}
    taken: list[int] = []
    for number, (stage, limit) in enumerate(zip(recipe.stages, seconds, strict=True)):
        freeze(recipe.model, learning, stage.learning_rates)
        objective = recipe.objective(number)
        optimisers = recipe.optimisers(recipe.model, stage)
        objective, *optimisers = accelerator.prepare(objective, *optimisers)
        began, step, epoch = time.process_time(), 0, 0
        plan: list[list[Any]] = []
        while (share := (time.process_time() - began) / limit) < 1:
            if not plan:
                plan, epoch = recipe.plan(number, epoch)[::-1], epoch + 1
            torch.manual_seed((seed * 1000 + number) * 1_000_000 + step)
            batch = recipe.batch(number, plan.pop(), torch.Generator().manual_seed(step))
            recipe.before_step(number, share, objective)
            falling = 0.5 * (1 + math.cos(math.pi * share)) if stage.decay == "cosine" else 1.0
            set_rates(optimisers, falling * min(1.0, (step + 1) / max(1, stage.warm_up_steps)))
            objective.train()
            shares = Shares(batch.target_count, batch.picture_count, share)
            context = StepContext(
                accelerator, recipe.model, objective, tuple(optimisers), stage, step, shares
            )
            found = recipe.step(context, [batch])
            assert found.taken, f"step {step} of {stage.name}: {found}"
            recipe.after_step(sum(taken) + step, objective)
            step += 1
        taken.append(step)
        accelerator.free_memory()
    return taken


def train_towers(folder: Path, seconds: float, seed: int) -> int:
    """Two towers on the same scenes, written to a folder."""
    data = folder / "scenes"
    for split, count in (("train", 2048), ("val", 64)):
        write_scenes(data, count, 1, 16, split, "combo", captions=2)
    where = (f'data.annotations="{data}/dataset.json"', f'data.images="{data}/images"')
    recipe = recipe_of("two-towers-scenes", (*where, *TOWERS, f"seed={seed}"), folder / "towers-run")
    (steps,) = train(recipe, [seconds], seed)
    recipe.save(folder / "towers")
    return steps


def train_autoencoder(folder: Path, seconds: float, seed: int) -> int:
    """An AutoencoderKL of diffusers on the same scenes: squared error and a little divergence."""
    from diffusers import AutoencoderKL

    records, drawn = scene_data(SceneSettings(count=12800, held_out="combo"), SIZE, ("train",))
    names = [record.file for record in records["train"]]
    torch.manual_seed(seed)
    codec = AutoencoderKL(**AUTOENCODER)
    optimiser = torch.optim.AdamW(codec.parameters(), lr=2e-3, weight_decay=0.0)
    began, step = time.process_time(), 0
    while (share := (time.process_time() - began) / seconds) < 1:
        pixels = drawn.load([names[place] for place in torch.randint(len(names), (64,))], None).pixels_B3HW
        assert pixels is not None
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * share))
        found = codec.encode(pixels).latent_dist
        loss = functional.mse_loss(codec.decode(found.sample()).sample, pixels) + 1e-6 * found.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    print(f"autoencoder: {step} steps, squared error {loss.item():.4f}", flush=True)
    codec.save_pretrained(folder / "codec")
    return step


def trained(name: str, seconds: float, seed: int, folder: Path) -> list[int]:
    """Trains a system into folder/model; steps of its stages."""
    config, changes = CONFIGS[name]
    changes = (*SCENES, *changes, f"seed={seed}")
    parts = [share * seconds for share in SHARES.get(name, (1.0,))]
    steps: list[int] = []
    if name in OVER_TOWERS:
        steps.append(train_towers(folder, parts.pop(0), seed))
        changes = (*changes, f'text_from="{folder}/towers"')
    if name == "latent_denoiser":
        steps.append(train_autoencoder(folder, parts.pop(0), seed))
        changes = (*changes, f'codec="{folder}/codec"')
    recipe = recipe_of(config, changes, folder / "run")
    steps += train(recipe, parts, seed)
    recipe.save(folder / "model")
    return steps


def measure(name: str, model: Path | None, oracle: Oracle, count: int) -> dict[str, float]:
    """What the reader sees in pictures of captions; of `None`, in renders of other scenes."""
    row: dict[str, float] = {}
    painter = None if model is None else load_painter(model, "cpu")
    for part, split in (("seen", "val"), ("held out", "test")):
        scenes = make_scenes(count, 1, split, "combo", seed=5)
        captions = [describe(scene, 1)[0].text for scene in scenes]
        renders = list(draw(scenes, SIZE))
        began, pictures = time.process_time(), []
        for first in range(0, count, AT_ONCE):
            seeds = range(first, min(count, first + AT_ONCE))
            if painter is not None:
                pictures += list(to_pixels(painter.draw([captions[seed] for seed in seeds], Wish(seeds))))
        spent = (time.process_time() - began) / count
        found = oracle.read(pictures or renders)
        row |= {f"{part} {key}": value for key, value in attributes(found.scenes, captions).items()}
        if part == "seen":
            other = list(draw(make_scenes(count, 1, split, "combo", seed=6), SIZE))
            real = oracle.read(other).features_NC
            near = painting.neighbourhood(found.features_NC, real)
            row["distance"] = painting.frechet_distance(
                painting.moments([found.features_NC]), painting.moments([real])
            )
            row |= {"precision": near.precision, "recall": near.recall, "seconds per picture": spent}
    if painter is not None:
        row["parameters"] = float(sum(one.numel() for one in painter.model.parameters()))
    return row


def run(out: Path, seconds: float, seeds: Sequence[int], only: Sequence[str], count: int) -> None:
    """Measures what is not in OUT/rows.jsonl yet."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    state, oracle = out / "rows.jsonl", load_oracle()
    rows = [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []
    done = {(row["system"], row["seed"], row["seconds"]) for row in rows}
    for seed in seeds:
        for name in ("renders", *only):
            key = ("renders", 0, 0.0) if name == "renders" else (name, seed, seconds)
            if key in done:
                continue
            done.add(key)
            row: dict[str, Any] = dict(zip(("system", "seed", "seconds"), key, strict=True))
            model = None
            if name != "renders":
                folder = out / f"{name}-{seed}"
                row["steps"], model = trained(name, seconds, seed, folder), folder / "model"
            row |= measure(name, model, oracle, count) | {"pictures": count}
            with open(state, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def table(state: Path) -> None:
    """Prints means over seeds, with the range where there are several."""
    rows = [json.loads(line) for line in state.read_text().splitlines()]
    names = ["seen colour", "seen shape", "seen both", "held out both", "distance", "precision", "recall"]
    names += ["seconds per picture", "parameters"]
    print("| system | seeds | steps | " + " | ".join(names) + " |")
    print("| --- | --: | --: | " + " | ".join("--:" for _ in names) + " |")
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        steps = " + ".join(
            f"{statistics.mean(column):.0f}"
            for column in zip(*(row.get("steps", []) for row in own), strict=True)
        )
        cells = [_cell([row[name] for row in own]) if name in own[0] else "" for name in names]
        print(f"| {system} | {len(own)} | {steps} | " + " | ".join(cells) + " |")


def _cell(values: list[float]) -> str:
    said = f"{statistics.mean(values):.3g}" if values[0] < 1e4 else f"{statistics.mean(values) / 1e6:.2f} M"
    if len(values) > 1 and not np.isclose(min(values), max(values)):
        said += f" ({min(values):.3g} to {max(values):.3g})"
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("out", type=Path)
    one.add_argument("--seconds", type=float, default=60)
    one.add_argument("--seeds", type=int, nargs="+", default=[1])
    one.add_argument("--only", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    one.add_argument("--pictures", type=int, default=256)
    two = commands.add_parser("table")
    two.add_argument("state", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.out, given.seconds, given.seeds, given.only, given.pictures)
    else:
        table(given.state)


if __name__ == "__main__":
    main()
