"""All families of painters on drawn scenes, each within the same CPU seconds.

    python benchmarks/paint_systems.py run OUT [--seconds 150] [--seeds 1] [--only df_gan] [--level 2]
    python benchmarks/paint_systems.py table OUT/rows.jsonl

Every system is its configuration of the package (`CONFIGS` below, with what differs). Its stages share the
seconds as `SHARES` says, autoencoder and two towers of the systems that need them included; a cosine decay
ends when the seconds do. The two towers are trained once for a seed, and every system that reads their words
pays for them. Eight pairs of colour and shape are held out of all trainings. Drawing the training scenes and
building the model is not counted. Level 1 is one thing at 16 pixels, level 2 two things at 32.

The reader of scenes judges: pictures of captions whose pair was trained on, and of captions whose pair was
not. "renders" is the drawing program itself, on other scenes: what no system can beat. Rows that are in the
file already are not measured again. A sheet of sixteen pictures is written for every system and seed.

What the trained systems of a folder do beyond the table, see `benchmarks/paint_trained.py`.
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
from torch.nn import functional

from patchword.config import override, read_toml, validate
from patchword.data.scenes import describe, draw, make_scenes, write_scenes
from patchword.data.scenes.pictures import SceneSettings, scene_data
from patchword.data.scenes.sayings import ExistenceStatement, parse
from patchword.data.scenes.world import COLOURS, SHAPES, Scene
from patchword.files import write_bytes
from patchword.lookup import look_up
from patchword.metrics import painting
from patchword.tasks.paint.families import Wish
from patchword.tasks.paint.model import PaintingModel, load_painter, to_pixels
from patchword.tasks.paint.oracle import Oracle, load_oracle, share_true
from patchword.tasks.paint.sheet import png_of, sheet
from patchword.tasks.table import TASKS
from patchword.train.groups import freeze, set_rates
from patchword.train.recipe import Recipe
from patchword.train.step import Shares, StepContext

SIZES = {1: 16, 2: 32}
"""Pixels of a picture of each level."""
AT_ONCE = 32
SCENES = ("scenes.held_out=combo", "scenes.count=12800", "sheet=0", "average=0.99")
SMALL = ("painter.decoder.patch=1", "painter.decoder.width=32", "painter.decoder.attention_at=[8]")
CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "conditional_gan": ("paint-conditional-gan-scenes", ()),
    "stack_gan": ("paint-stack-gan-scenes", ()),
    "attn_gan": ("paint-attn-gan-scenes", ()),
    "df_gan": ("paint-df-gan-scenes", ()),
    "dalle": ("paint-dalle-scenes", ()),
    "parti": ("paint-parti-scenes", ()),
    "denoiser": ("paint-scenes", ("stage.0.batch=16",)),
    "latent_denoiser": (
        "paint-scenes",
        ("painter.channels=4", "painter.width=48", "painter.target=velocity", "stage.0.batch=32"),
    ),
    "unclip": ("unclip-scenes", (*SMALL, "painter.decoder.picture_width=48", "stage.1.batch=16")),
}
"""A configuration of the package, and what differs from it beside `SCENES` and the size."""
SHARES: dict[str, tuple[float, ...]] = {
    "conditional_gan": (0.2, 0.8),
    "stack_gan": (0.2, 0.4, 0.4),
    "attn_gan": (0.25, 0.75),
    "df_gan": (0.2, 0.8),
    "dalle": (0.4, 0.6),
    "parti": (0.4, 0.6),
    "denoiser": (0.2, 0.8),
    "latent_denoiser": (0.2, 0.3, 0.5),
    "unclip": (0.2, 0.2, 0.6),
}
"""How stages share the seconds: first the two towers whose words a system reads, then the autoencoder of
latent_denoiser."""
TOWER_SHARE = 0.2
OWN_WORDS = ("attn_gan", "dalle", "parti")
"""Systems that learn what reads their texts; the others read the words of the two towers, frozen."""
AUTOENCODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "latent_channels": 4,
}


def recipe_of(config: str, changes: Sequence[str], folder: Path) -> Recipe:
    """The training of a configuration with changes."""
    values = read_toml(config)
    if any(change.startswith("text_from=") for change in changes):
        values.pop("text", None)
    values = override(values, [*changes, f"out={folder}"])
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


def train_towers(folder: Path, seconds: float, seed: int, level: int) -> int:
    """Two towers on the same scenes, written to folder/towers unless they are there; the steps they took."""
    said = folder / "steps.json"
    if said.exists():
        return int(json.loads(said.read_text()))
    data, size = folder / "scenes", SIZES[level]
    for split, count in (("train", 6400), ("val", 64)):
        write_scenes(data, count, level, size, split, "combo", captions=3)
    where = (f'data.annotations="{data}/dataset.json"', f'data.images="{data}/images"')
    recipe = recipe_of("eyes-scenes", (*where, f"vision.size={size}", f"seed={seed}"), folder / "run")
    (steps,) = train(recipe, [seconds], seed)
    recipe.save(folder / "towers")
    said.write_text(json.dumps(steps))
    return steps


def train_autoencoder(folder: Path, seconds: float, seed: int, level: int) -> int:
    """An AutoencoderKL of diffusers on the same scenes: squared error and a little divergence."""
    from diffusers import AutoencoderKL

    scenes = SceneSettings(levels=(level,), count=12800, held_out="combo")
    records, drawn = scene_data(scenes, SIZES[level], ("train",))
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


def changes_of(name: str, level: int) -> tuple[str, ...]:
    """What differs from a system's configuration, for scenes of a level."""
    size = SIZES[level]
    part = {"dalle": "codec.", "parti": "codec.", "unclip": "decoder."}.get(name, "")
    sized = [f"painter.{part}size={size // 2 if name == 'latent_denoiser' else size}"]
    if name == "latent_denoiser":
        sized.append(f"painter.attention_at=[{size // 4}]")
    elif name == "stack_gan":
        sized.append(f"painter.first_size={size // 2}")
    return (*SCENES, f"scenes.levels=[{level}]", *CONFIGS[name][1], *sized)


def trained(name: str, seconds: float, seed: int, folder: Path, level: int) -> list[int]:
    """Trains a system into folder/model; steps of its stages."""
    config, changes = CONFIGS[name][0], (*changes_of(name, level), f"seed={seed}")
    parts = [share * seconds for share in SHARES[name]]
    steps: list[int] = []
    if name not in OWN_WORDS:
        towers = folder.parent / f"towers-{level}-{seed}"
        steps.append(train_towers(towers, parts.pop(0), seed, level))
        changes = (*changes, f'text_from="{towers}/towers"')
    if name == "latent_denoiser":
        steps.append(train_autoencoder(folder, parts.pop(0), seed, level))
        changes = (*changes, f'codec="{folder}/codec"')
    recipe = recipe_of(config, changes, folder / "run")
    steps += train(recipe, parts, seed)
    recipe.save(folder / "model")
    return steps


def trained_once(name: str, seconds: float, seed: int, folder: Path, level: int) -> list[int]:
    """The same, unless it was done; a measurement that was stopped does not train again."""
    said = folder / "trained.json"
    if said.exists() and (found := json.loads(said.read_text()))["seconds"] == seconds:
        return list(found["steps"])
    steps = trained(name, seconds, seed, folder, level)
    said.write_text(json.dumps({"seconds": seconds, "steps": steps}))
    return steps


def paint_all(painter: PaintingModel, captions: Sequence[str], guidance: float | None = None) -> list:
    """A picture for each caption, seeds from 0."""
    pictures: list = []
    for first in range(0, len(captions), AT_ONCE):
        seeds = range(first, min(len(captions), first + AT_ONCE))
        drawn = painter.draw([captions[seed] for seed in seeds], Wish(seeds, guidance))
        pictures += list(to_pixels(drawn))
    return pictures


def judged(oracle: Oracle, pictures: Sequence[Any], captions: Sequence[str]) -> dict[str, float]:
    """What the reader sees in pictures of captions."""
    seen = oracle.read(pictures)
    true = np.array([share_true(s, c) for s, c in zip(seen.scenes, captions, strict=True)])
    found = {"all hold": float((true == 1).mean()), "statements": float(true.mean())}
    found |= of_surest_thing(seen.probabilities_NY, captions)
    return found | of_one_thing(seen.scenes, captions)


def of_one_thing(seen: Sequence[Scene], captions: Sequence[str]) -> dict[str, float]:
    """Of captions of one thing that name a colour, a shape, or both: how often something is found and all
    that is found has them. A picture with a second thing of another colour is wrong."""
    colours = [{thing.colour for thing in scene.things} for scene in seen]
    shapes = [{thing.shape for thing in scene.things} for scene in seen]
    return _shares(colours, shapes, captions)


def of_surest_thing(kinds_NY: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """The same of the one thing that the reader is surest of, however unsure it is: an attribute classifier,
    which always answers, so that chance is one in eight."""
    by_NFF = kinds_NY.reshape(-1, len(SHAPES), len(COLOURS))
    colours = [{tuple(COLOURS)[at]} for at in by_NFF.sum(1).argmax(1)]
    shapes = [{SHAPES[at]} for at in by_NFF.sum(2).argmax(1)]
    return {f"surest {name}": share for name, share in _shares(colours, shapes, captions).items()}


def _shares(
    colours: Sequence[set[str]], shapes: Sequence[set[str]], captions: Sequence[str]
) -> dict[str, float]:
    """How often what was found is what the caption names, of captions of one thing that name it."""
    found: dict[str, list[bool]] = {"colour": [], "shape": [], "both": []}
    for colour, shape, caption in zip(colours, shapes, captions, strict=True):
        facts = parse(caption)
        if facts is None or len(facts) != 1 or not isinstance(facts[0], ExistenceStatement):
            continue
        wanted = facts[0].phrase
        if wanted.colour is not None:
            found["colour"].append(colour == {wanted.colour})
        if wanted.shape is not None:
            found["shape"].append(shape == {wanted.shape})
        if wanted.colour is not None and wanted.shape is not None:
            found["both"].append(found["colour"][-1] and found["shape"][-1])
    return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}


def against(oracle: Oracle, pictures: Sequence[Any], level: int, split: str) -> dict[str, float]:
    """Distance, precision and recall of pictures to as many renders of other scenes."""
    other = list(draw(make_scenes(len(pictures), level, split, "combo", seed=6), SIZES[level]))
    features, real = oracle.read(pictures).features_NC, oracle.read(other).features_NC
    near = painting.neighbourhood(features, real)
    distance = painting.frechet_distance(painting.moments([features]), painting.moments([real]))
    return {"distance": distance, "precision": near.precision, "recall": near.recall}


def captions_of(count: int, level: int, split: str) -> tuple[list[str], list]:
    """Captions of scenes, and the scenes; of "val" their pairs were trained on, of "test" they were held
    out."""
    scenes = make_scenes(count, level, split, "combo", seed=5)
    return [describe(scene, 1)[0].text for scene in scenes], scenes


def measure(model: Path | None, oracle: Oracle, count: int, level: int) -> dict[str, float]:
    """What the reader sees in pictures of captions; of `None`, in renders of the captions' scenes."""
    row: dict[str, float] = {}
    painter = None if model is None else load_painter(model, "cpu")
    splits: tuple[tuple[str, str], ...] = (("seen", "val"), ("held out", "test"))
    for part, split in splits:
        captions, scenes = captions_of(count, level, split)
        began = time.process_time()
        renders = list(draw(scenes, SIZES[level]))
        pictures = renders if painter is None else paint_all(painter, captions)
        spent = (time.process_time() - began) / count
        row |= {f"{part} {key}": value for key, value in judged(oracle, pictures, captions).items()}
        if part == "seen":
            row |= against(oracle, pictures, level, split) | {"seconds per picture": spent}
            if model is not None:
                shown = sheet(np.stack(pictures[:16]), captions[:16])
                write_bytes(model.parent / "sheet.png", png_of(shown))
    if painter is not None:
        row["parameters"] = float(sum(one.numel() for one in painter.model.parameters()))
    return row


def run(out: Path, seconds: float, seeds: Sequence[int], only: Sequence[str], count: int, level: int) -> None:
    """Measures what is not in OUT/rows.jsonl yet."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    state, oracle = out / "rows.jsonl", load_oracle()
    rows = [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []
    done = {(row["system"], row["seed"], row["seconds"], row["level"]) for row in rows}
    for seed in seeds:
        for name in ("renders", *only):
            key = ("renders", 0, 0.0, level) if name == "renders" else (name, seed, seconds, level)
            if key in done:
                continue
            done.add(key)
            row: dict[str, Any] = dict(zip(("system", "seed", "seconds", "level"), key, strict=True))
            model = None
            if name != "renders":
                folder = out / f"{name}-{level}-{seed}"
                row["steps"], model = trained_once(name, seconds, seed, folder, level), folder / "model"
            row |= measure(model, oracle, count, level) | {"pictures": count}
            with open(state, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def table(state: Path) -> None:
    """Prints means over seeds, with the range where there are several; a table for each level."""
    rows = [json.loads(line) for line in state.read_text().splitlines()]
    for level in sorted({row["level"] for row in rows}):
        _table_of([row for row in rows if row["level"] == level], level)


def _table_of(rows: list[dict[str, Any]], level: int) -> None:
    kinds = ("colour", "shape", "both") if level == 1 else ("statements", "all hold")
    kinds += ("surest colour", "surest shape", "surest both") if level == 1 else ()
    names = [f"{part} {kind}" for part in ("seen", "held out") for kind in kinds]
    names += ["distance", "precision", "recall", "seconds per picture", "parameters"]
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
    one.add_argument("--seconds", type=float, default=150)
    one.add_argument("--seeds", type=int, nargs="+", default=[1])
    one.add_argument("--only", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    one.add_argument("--pictures", type=int, default=192)
    one.add_argument("--level", type=int, default=1, choices=SIZES)
    two = commands.add_parser("table")
    two.add_argument("state", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.out, given.seconds, given.seeds, given.only, given.pictures, given.level)
    else:
        table(given.state)


if __name__ == "__main__":
    main()
