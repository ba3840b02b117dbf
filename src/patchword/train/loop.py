"""The training loop: stages, epochs, batches, one page, on accelerate (CPU, one GPU, many).

What differs between tasks is a `Recipe`; what is the same is here: the position in the run, gradients and their clipping, learning
rates, losses that are not finite, validation, checkpoints and the log. A run is a function of its configuration: random numbers of a step
are seeded by (seed, step, process), so an interrupted run that is resumed from its last checkpoint goes the same way, bit for bit on CPU.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints.state import (
    Position,
    pack_optimiser,
    prefixed,
    read_state,
    recover_folder,
    replace_folder,
    unpack_optimiser,
    without_prefix,
    write_state,
)
from patchword.errors import TrainingError
from patchword.log import MetricsLog, progress
from patchword.train.groups import build_optimiser, freeze, rate_factor, set_rates
from patchword.train.settings import StageSettings

BAD_STEPS_IN_A_ROW = 3


class Shares(NamedTuple):
    """What losses are divided by: counts over all processes and parts of the step, divided by the number of processes.

    The mean of the processes' gradients is then the gradient of the mean over the whole batch, however the rows were split.
    """

    targets: float
    pictures: float
    progress: float
    """Share of the stage that is done, for weights that follow a schedule."""


class Validation(NamedTuple):
    """What a validation found: `score` selects the best model (higher is better), the rest is logged."""

    score: float
    event: dict[str, Any]


class Recipe(Protocol):
    """What a task brings to the loop. `model` is what is trained and saved; an objective owns it and gives named losses."""

    model: nn.Module
    stages: Sequence[StageSettings]

    def objective(self, stage: int) -> nn.Module: ...

    def plan(self, stage: int, epoch: int) -> list[list[Any]]:
        """The batches of an epoch, each a list of entries; the same for every process."""

    def batch(self, stage: int, entries: list[Any], generator: torch.Generator) -> Any: ...

    def before_step(self, stage: int, progress: float) -> None:
        """Called before every step with the share of the stage that is done."""

    def after_step(self, step: int, objective: nn.Module) -> dict[str, float]:
        """Called after every optimiser step that was taken; what it returns is logged, and shares ("..._share") are also shown."""

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation | None: ...

    def save_model(self, folder: Path) -> None: ...

    def load_weights(self, folder: Path) -> None: ...

    def extra_state(self) -> dict[str, Tensor]: ...

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None: ...

    def image_ids(self, batch: Any) -> list[Any]: ...


class RunHistory(NamedTuple):
    """What a run remembers beside its position."""

    best: float = -math.inf
    since_best: int = 0
    bad_in_a_row: int = 0
    skipped: int = 0


class Run:
    """One training in one folder: `checkpoints/last` (model and state), `best` (model), metrics.jsonl."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Accelerator,
        seed: int,
        checkpoint_steps: int,
        log_steps: int = 10,
    ) -> None:
        self.recipe, self.folder, self.accelerator, self.seed = recipe, folder, accelerator, seed
        self.checkpoint_steps, self.log_steps = checkpoint_steps, log_steps
        self.position, self.past = Position(), RunHistory()
        self._resumed: dict[str, Tensor] = {}
        self.trainable = {
            name: parameter.requires_grad for name, parameter in recipe.model.named_parameters()
        }
        self.log: MetricsLog | None = None
        self.began = time.perf_counter()

    def resume(self) -> bool:
        """Continue from `checkpoints/last`; False where there is none yet."""
        last = self.folder / "checkpoints" / "last"
        for target in (last, self.folder / "best"):
            recover_folder(target)
        if not last.exists():
            return False
        tensors, values = read_state(last)
        self.recipe.load_weights(last)
        self.recipe.load_extra_state(without_prefix("extra.", tensors))
        self.position, self.past = Position(**values["position"]), RunHistory(**values["past"])
        self._resumed = without_prefix("optimiser.", tensors)
        self.log = (
            MetricsLog(self.folder / "metrics.jsonl", values["log_length"])
            if self.accelerator.is_main_process
            else None
        )
        return True

    def train(self) -> None:
        """All stages that are left. Raises TrainingError after three steps in a row whose loss or gradient is not finite."""
        if self.log is None and self.accelerator.is_main_process:
            self.log = MetricsLog(self.folder / "metrics.jsonl", None)
        try:
            while self.position.stage < len(self.recipe.stages):
                self._stage(self.recipe.stages[self.position.stage])
        finally:
            if self.log is not None:
                self.log.close()

    def _stage(self, settings: StageSettings) -> None:
        stage = self.position.stage
        if (
            settings.start_from == "best"
            and self.position.stage_step == 0
            and (self.folder / "best").exists()
        ):
            self.recipe.load_weights(self.folder / "best")
        freeze(self.recipe.model, self.trainable, settings.learning_rates)
        objective = self.recipe.objective(stage)
        optimiser = build_optimiser(self.recipe.model, settings)
        if self._resumed:
            unpack_optimiser(optimiser, self._resumed)
            self._resumed = {}
        objective, optimiser = self.accelerator.prepare(objective, optimiser)
        while self.position.epoch < settings.epochs:
            ended = self._epoch(settings, objective, optimiser)
            self.position = self.position._replace(epoch=self.position.epoch + 1, index=0)
            if ended:
                break
            self._checkpoint(optimiser)
        self.position = self.position._replace(stage=stage + 1, epoch=0, index=0, stage_step=0)
        self.past = self.past._replace(since_best=0)
        self._checkpoint(None)
        self.accelerator.free_memory()

    def _epoch(self, settings: StageSettings, objective: nn.Module, optimiser: Any) -> bool:
        """One epoch from the current index on, and its validation. True when the stage has lost its patience."""
        stage, epoch = self.position.stage, self.position.epoch
        plan = [
            entries
            for entries in self.recipe.plan(stage, epoch)
            if len(entries) >= self.accelerator.num_processes
        ]
        is_main = self.accelerator.is_main_process
        name = f"{settings.name} {epoch + 1}/{settings.epochs}"
        with progress(is_main) as bar, ThreadPoolExecutor(1) as loader:
            task = bar.add_task(name, total=len(plan), completed=self.position.index, status="")
            ahead = self._load(loader, settings, plan, self.position.index)
            for index in range(self.position.index, len(plan)):
                parts = ahead.result()
                ahead = self._load(loader, settings, plan, index + 1)
                status = self._step(settings, objective, optimiser, parts, len(plan))
                bar.update(task, advance=1, status=status)
                if self.checkpoint_steps and self.position.step % self.checkpoint_steps == 0:
                    self._checkpoint(optimiser)
        if (epoch + 1) % settings.validate_every and epoch + 1 < settings.epochs:
            return False
        return self._validate(settings, stage, epoch)

    def _load(
        self, loader: ThreadPoolExecutor, settings: StageSettings, plan: list[list[Any]], index: int
    ) -> Future[list[Any]]:
        """The parts of batch `index` that are this process's, made while the step before runs."""

        def make() -> list[Any]:
            if index >= len(plan):
                return []
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            mine = plan[index][rank::world]
            size = max(1, math.ceil(len(mine) / settings.accumulate))
            parts = [mine[first : first + size] for first in range(0, len(mine), size)]
            seed = _mixed(self.seed, self.position.stage, self.position.epoch, index, rank)
            generator = torch.Generator().manual_seed(seed)
            return [self.recipe.batch(self.position.stage, part, generator) for part in parts]

        return loader.submit(make)

    def _step(
        self,
        settings: StageSettings,
        objective: nn.Module,
        optimiser: Any,
        parts: list[Any],
        epoch_steps: int,
    ) -> str:
        """One optimiser step, or a skipped one; returns the progress line."""
        began = time.perf_counter()
        accelerator, position = self.accelerator, self.position
        torch.manual_seed(_mixed(self.seed, position.step, accelerator.process_index))
        counts = torch.tensor(
            [sum(p.target_count for p in parts), sum(p.picture_count for p in parts)], dtype=torch.float64
        )
        totals = accelerator.reduce(counts.to(accelerator.device, torch.float32), "sum").tolist()
        progress_of_stage = position.stage_step / (epoch_steps * settings.epochs)
        shares = Shares(*(total / accelerator.num_processes for total in totals), progress_of_stage)
        self.recipe.before_step(position.stage, progress_of_stage)
        rates = set_rates(optimiser, rate_factor(settings, position.stage_step, epoch_steps))
        buffers = [(buffer, buffer.clone()) for buffer in self.recipe.model.buffers()]
        objective.train()
        losses: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(objective):
                named = objective(part.to(accelerator.device), shares)
                accelerator.backward(named["loss"])
            for name, value in named.items():
                losses[name] = losses.get(name, 0.0) + value.detach().float()
        means = accelerator.reduce(torch.stack(list(losses.values())), "mean").tolist()
        values = dict(zip(losses, means, strict=True))
        norm = self._clip(settings)
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            self._skip(parts, values["loss"], buffers)
            optimiser.zero_grad()
            return f"loss not finite: {self.past.skipped} steps skipped"
        optimiser.step()
        optimiser.zero_grad()
        self.past = self.past._replace(bad_in_a_row=0)
        extra = self.recipe.after_step(position.step, accelerator.unwrap_model(objective))
        self.position = position._replace(
            index=position.index + 1, step=position.step + 1, stage_step=position.stage_step + 1
        )
        speed = totals[1] / (time.perf_counter() - began)
        if self.log is not None and (position.step % self.log_steps == 0):
            event = {
                "event": "step",
                "stage": settings.name,
                "step": position.step,
                "epoch": position.epoch,
                "loss": values["loss"],
            }
            event |= {
                "losses": values,
                "learning_rates": rates,
                "gradient_norm": norm,
                "images_per_second": round(speed, 2),
            }
            event |= {"seconds": round(time.perf_counter() - self.began, 2), **extra}
            self.log.write(event)
        status = f"loss {values['loss']:.3f}  lr {max(rates.values()):.1e}  |g| {norm:.2f}  {speed:.0f} img/s"
        return status + _shown(extra, self.past.skipped)

    def _clip(self, settings: StageSettings) -> float:
        parameters = [p for p in self.recipe.model.parameters() if p.grad is not None]
        limit = settings.clip_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(parameters, limit))

    def _skip(self, parts: list[Any], loss: float, buffers: list[tuple[Tensor, Tensor]]) -> None:
        """Undo what a step that is not finite did to running statistics, count it, and stop after three in a row."""
        for buffer, before in buffers:
            buffer.copy_(before)
        ids = [image for part in parts for image in self.recipe.image_ids(part)]
        past = self.past
        self.past = past._replace(bad_in_a_row=past.bad_in_a_row + 1, skipped=past.skipped + 1)
        position = self.position
        if self.log is not None:
            self.log.write(
                {
                    "event": "skipped",
                    "step": position.step,
                    "epoch": position.epoch,
                    "loss": repr(loss),
                    "image_ids": ids,
                }
            )
        self.position = position._replace(
            index=position.index + 1, step=position.step + 1, stage_step=position.stage_step + 1
        )
        if self.past.bad_in_a_row >= BAD_STEPS_IN_A_ROW:
            raise TrainingError(
                f"loss or gradient was not finite in {BAD_STEPS_IN_A_ROW} steps in a row, the last at step {position.step} (loss {loss}) "
                f"with images {ids}: look at these with `patchword check`, lower the learning rate, or train in fp32"
            )

    def _validate(self, settings: StageSettings, stage: int, epoch: int) -> bool:
        began = time.perf_counter()
        found = self.recipe.validate(stage, epoch, self.accelerator)
        if found is None:
            return False
        better = found.score > self.past.best
        self.past = self.past._replace(
            best=max(found.score, self.past.best), since_best=0 if better else self.past.since_best + 1
        )
        if self.log is not None:
            where = {
                "event": "validation",
                "stage": settings.name,
                "step": self.position.step,
                "epoch": epoch,
            }
            self.log.write(
                {**where, **found.event, "best": better, "seconds": round(time.perf_counter() - began, 2)}
            )
        if better and self.accelerator.is_main_process:
            made = self.folder / "best.partial"
            shutil.rmtree(made, ignore_errors=True)
            self.recipe.save_model(made)
            replace_folder(made, self.folder / "best")
        self.accelerator.wait_for_everyone()
        return bool(settings.patience) and self.past.since_best >= settings.patience

    def _checkpoint(self, optimiser: Any) -> None:
        """Model and state of the run; none of the optimiser between two stages."""
        if self.log is not None:
            made = self.folder / "checkpoints" / "last.partial"
            shutil.rmtree(made, ignore_errors=True)
            self.recipe.save_model(made)
            tensors = {} if optimiser is None else prefixed("optimiser.", pack_optimiser(optimiser))
            tensors |= prefixed("extra.", self.recipe.extra_state())
            values = {
                "position": self.position._asdict(),
                "past": self.past._asdict(),
                "log_length": self.log.length,
            }
            write_state(made, tensors, values)
            replace_folder(made, self.folder / "checkpoints" / "last")
        self.accelerator.wait_for_everyone()


def _shown(extra: dict[str, float], skipped: int) -> str:
    """The end of a progress line: what the step spent its time on, where a recipe says so, and steps skipped so far."""
    shares = [
        f"{name.removesuffix('_share').replace('_', ' ')} {share:.0%}"
        for name, share in extra.items()
        if name.endswith("_share")
    ]
    return "".join(f"  {part}" for part in (*shares, *([f"skipped {skipped}"] if skipped else [])))


def _mixed(*numbers: int) -> int:
    """One seed below 2**63 from several numbers (the multipliers of splitmix64, so that neighbours are unrelated)."""
    state = 0
    for number in numbers:
        state = (state ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1
