"""The training loop: stages, epochs, batches, on accelerate (CPU, one GPU, many).

What differs between tasks is a `Recipe`; what is the same is here: the position in the run, losses that are
not finite, validation, checkpoints and the log. What happens within one optimiser step stands in `step.py`,
what is written in which order in `run_folder.py`. A run is a function of its configuration: random numbers of
a step are seeded by (seed, step, process), so an interrupted run that is resumed from its last checkpoint
goes the same way, bit for bit on CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from patchword.checkpoints.state import Position, unpack_optimiser, without_prefix
from patchword.errors import ConfigError, ModelError, TrainingError, WriteError, counted
from patchword.log import MetricsLog, progress
from patchword.lookup import look_up
from patchword.train.groups import freeze, rate_factor, set_rates
from patchword.train.recipe import Recipe, Validation
from patchword.train.run_folder import Checkpoint, RunFolder, pack_optimisers
from patchword.train.settings import StageSettings
from patchword.train.step import Shares, StepContext, StepResult

BAD_STEPS_IN_A_ROW = 3


class RunHistory(NamedTuple):
    """What a run remembers beside its position."""

    best: float = -math.inf
    """Best score so far."""
    best_loss: float = math.inf
    """Loss of the model that reached it, where it is measured."""
    best_step: int = -1
    """Step at which it was reached; -1: there was none."""
    since_best: int = 0
    """Validations of the stage since then."""
    bad_in_a_row: int = 0
    skipped: int = 0
    unreadable: int = 0
    """Pictures that were left out of batches so far, over all processes."""


class StageParts(NamedTuple):
    """What a stage trains with, ready for several processes."""

    settings: StageSettings
    objective: nn.Module
    optimisers: tuple[Any, ...]


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
        say: Callable[[str], None] = lambda line: None,
        track: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        """`say` is given a line for each validation, and for the end of each stage; `track` what is written
        to metrics.jsonl."""
        self.recipe, self.folder, self.accelerator, self.seed = recipe, RunFolder(folder), accelerator, seed
        self.checkpoint_steps, self.log_steps, self.say, self.track = checkpoint_steps, log_steps, say, track
        self.position, self.past = Position(), RunHistory()
        self._resumed: dict[str, Tensor] = {}
        self.trainable = {
            name: parameter.requires_grad for name, parameter in recipe.model.named_parameters()
        }
        self.log: MetricsLog | None = None
        self._saved: int | None = None
        self.sharded = False
        """Whether several processes share out the weights (`train/sharded.py`)."""
        self._sharded: Any = None
        self.began = time.perf_counter()

    def resume(self) -> bool:
        """Continue from `checkpoints/last`; False where there is none yet.

        Raises ModelError where the checkpoint is damaged, TrainingError where something cannot be written.
        """
        with self._explained():
            return self._resume()

    def _resume(self) -> bool:
        if self.accelerator.is_main_process:
            self.folder.recover()
        self.accelerator.wait_for_everyone()
        found = self.folder.read()
        if found is None:
            return False
        self._check_data(found.values.get("facts", {}))
        self.recipe.load(self.folder.last)
        self.recipe.load_state(found.extra)
        self.position = Position(**found.values["position"])
        self.past = RunHistory(**found.values["past"])
        self._resumed, self._saved = found.optimisers, self.position.step
        if self.accelerator.is_main_process:
            self.folder.settle_best(self.past.best_step)
            self.log = MetricsLog(self._log_path, found.values["log_length"])
        self.accelerator.wait_for_everyone()
        return True

    def _check_data(self, before: Mapping[str, Any]) -> None:
        """Raises ConfigError where the run was begun with other data: what follows would be another run."""
        now = self.recipe.facts
        changed = [name for name in now if before.get(name) != now[name]]
        if not changed:
            return
        counted = [f"{name} {before.get(name)}, now {now[name]}" for name in changed if "digest" not in name]
        found = "; ".join(counted) or "their number is the same"
        raise ConfigError(
            f"{self.folder.folder} was begun with other data ({found}): put those back to go on with it, or "
            f"begin a new run in another folder, which may start from the weights in {self.folder.best}"
        )

    @property
    def _log_path(self) -> Path:
        return self.folder.folder / "metrics.jsonl"

    def train(self) -> None:
        """All stages that are left.

        Raises:
            TrainingError: three steps in a row whose loss or gradient was not finite, or something could not
                be read or written; what the last checkpoint holds is unchanged.
        """
        try:
            with self._explained():
                if self.log is None and self.accelerator.is_main_process:
                    self.log = MetricsLog(self._log_path, None)
                while self.position.stage < len(self.recipe.stages):
                    self._stage(self.recipe.stages[self.position.stage])
        finally:
            if self.log is not None:
                self.log.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A full disk or a folder that cannot be written ends a run in one line that says what is left."""
        try:
            yield
        except (OSError, SafetensorError, WriteError) as error:
            raise TrainingError(self._stopped_by(error)) from error

    def _stopped_by(self, error: Exception) -> str:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        kept = (
            "no checkpoint was written yet: put that right and begin anew"
            if self._saved is None
            else f"the checkpoint of step {self._saved} is whole: put that right and go on with --resume"
        )
        return f"{self.folder.folder}: the training stopped at step {self.position.step} ({reason}); {kept}"

    def _stage(self, settings: StageSettings) -> None:
        freeze(self.recipe.model, self.trainable, settings.learning_rates)
        parts = self._prepared(settings)
        while self.position.epoch < settings.epochs:
            lost_patience = self._epoch(parts)
            self.position = replace(self.position, epoch=self.position.epoch + 1, index=0)
            if lost_patience or self.position.epoch == settings.epochs:
                self.say(f"{settings.name} ended: {self._why_ended(settings, lost_patience)}")
                break
            if _is_validated(settings, self.position.epoch) or not self.checkpoint_steps:
                self._checkpoint(parts.optimisers)
        self._begin_next_stage()

    def _prepared(self, settings: StageSettings) -> StageParts:
        """The objective of a stage and its optimisers, ready for several processes."""
        objective = self.recipe.objective(self.position.stage)
        if self.sharded and self.accelerator.num_processes > 1:
            self._sharded = look_up("train.sharded:Sharded")(objective, self.accelerator)
        optimisers = self.recipe.optimisers(self.recipe.model, settings)
        for number, optimiser in enumerate(optimisers if self._resumed else ()):
            packed = without_prefix(f"{number}.", self._resumed)
            if self._sharded is not None:
                packed = self._sharded.share_out(packed, optimiser)
            unpack_optimiser(optimiser, packed)
        self._resumed = {}
        if self._sharded is not None:
            self._sharded.split(optimisers)
            prepared = [self.accelerator.prepare(optimiser) for optimiser in optimisers]
        else:
            objective, *prepared = self.accelerator.prepare(objective, *optimisers)
        return StageParts(settings, objective, tuple(prepared))

    def _why_ended(self, settings: StageSettings, lost_patience: bool) -> str:
        epochs, since = self.position.epoch, self.past.since_best
        if lost_patience:
            ended = f"epoch {epochs} of {settings.epochs}"
            return f"{ended}, nothing better in {since} validations in a row (patience)"
        return f"its {counted(epochs, 'epoch is', 'epochs are')} done"

    def _begin_next_stage(self) -> None:
        """Goes on to the next stage. The weights that it starts from go into the checkpoint: `best` may be
        another model by the time that the run is resumed."""
        if self._sharded is not None:
            self._sharded.merge()
            self._sharded = None
        following = self.position.stage + 1
        self.position = replace(self.position, stage=following, epoch=0, index=0, stage_step=0)
        self.past = self.past._replace(since_best=0)
        stages = self.recipe.stages
        if following < len(stages) and stages[following].start_from == "best" and self.past.best_step >= 0:
            self.accelerator.wait_for_everyone()
            best = self.folder.best_of(self.past.best_step)
            if best is None:
                raise ModelError(
                    f"{self.folder.best} is gone, and stage {stages[following].name!r} starts from it: "
                    "put it back, or begin the run anew"
                )
            self.recipe.load(best)
        self._checkpoint(())
        self.accelerator.free_memory()

    def _epoch(self, parts: StageParts) -> bool:
        """One epoch from the current index on, and its validation.

        True when the stage has lost its patience.
        """
        settings, stage, epoch = parts.settings, self.position.stage, self.position.epoch
        plan = [
            entries
            for entries in self.recipe.plan(stage, epoch)
            if len(entries) >= self.accelerator.num_processes
        ]
        name = f"{settings.name} {epoch + 1}/{settings.epochs}"
        vanishes = settings.validate_every > 1  # of hundreds of short epochs only validations leave a line
        shown = progress(self.accelerator.is_main_process, vanishes)
        with shown as bar, ThreadPoolExecutor(1) as loader:
            task = bar.add_task(name, total=len(plan), completed=self.position.index, status="")
            ahead = self._load(loader, settings, plan, self.position.index)
            for index in range(self.position.index, len(plan)):
                batch = ahead.result()
                ahead = self._load(loader, settings, plan, index + 1)
                status = self._step(parts, batch, len(plan))
                bar.update(task, advance=1, status=status)
                if self.checkpoint_steps and self.position.step % self.checkpoint_steps == 0:
                    self._checkpoint(parts.optimisers)
        return _is_validated(settings, epoch + 1) and self._validate(settings, stage, epoch)

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

    def _step(self, parts: StageParts, batch: list[Any], epoch_steps: int) -> str:
        """One optimiser step, or a skipped one; returns the progress line."""
        began = time.perf_counter()
        settings, position = parts.settings, self.position
        torch.manual_seed(_mixed(self.seed, position.step, self.accelerator.process_index))
        shares, lost = self._shares(settings, batch, epoch_steps)
        if lost:
            self._tell_lost(batch, lost)
        owner = self.accelerator.unwrap_model(parts.objective)
        self.recipe.before_step(position.stage, shares.progress, owner)
        rates = set_rates(parts.optimisers, rate_factor(settings, position.stage_step, epoch_steps))
        buffers = [(buffer, buffer.clone()) for buffer in self.recipe.model.buffers()]
        parts.objective.train()
        context = StepContext(
            self.accelerator,
            self.recipe.model,
            *parts[1:],
            settings,
            position.stage_step,
            shares,
            self._sharded,
        )
        found = self.recipe.step(context, batch)
        if not found.taken:
            self._skip(batch, found.losses["loss"], buffers)
            return f"loss not finite: {counted(self.past.skipped, 'step')} skipped"
        self.past = self.past._replace(bad_in_a_row=0)
        extra = self.recipe.after_step(position.step, owner)
        self._advance()
        speed = shares.pictures * self.accelerator.num_processes / (time.perf_counter() - began)
        self._log_step(settings, position, found, rates, speed, extra)
        status = f"loss {found.losses['loss']:.3f}  lr {max(rates.values()):.1e}"
        status += f"  |g| {found.gradient_norm:.2f}  {speed:.0f} img/s"
        return status + _shown(extra, self.past.skipped, self.past.unreadable)

    def _shares(self, settings: StageSettings, batch: list[Any], epoch_steps: int) -> tuple[Shares, int]:
        """What losses are divided by, and how many pictures of the step could not be read."""
        accelerator = self.accelerator
        counts = torch.tensor(
            [
                sum(p.target_count for p in batch),
                sum(p.picture_count for p in batch),
                sum(len(lost_of(p)) for p in batch),
            ],
            dtype=torch.float64,
        )
        totals = accelerator.reduce(counts.to(accelerator.device, torch.float32), "sum").tolist()
        targets, pictures = (total / accelerator.num_processes for total in totals[:2])
        progress = self.position.stage_step / (epoch_steps * settings.epochs)
        return Shares(targets, pictures, progress), int(totals[2])

    def _tell_lost(self, batch: list[Any], count: int) -> None:
        """Count pictures that are left out, and list this process's; others name theirs on standard error."""
        self.past = self.past._replace(unreadable=self.past.unreadable + count)
        if self.log is not None:
            event = {"event": "unreadable", "step": self.position.step, "pictures": count}
            reasons = [reason for part in batch for reason in lost_of(part)]
            self._write({**event, "unreadable": self.past.unreadable, "reasons": reasons})

    def _advance(self) -> None:
        position = self.position
        self.position = replace(
            position, index=position.index + 1, step=position.step + 1, stage_step=position.stage_step + 1
        )

    def _log_step(
        self,
        settings: StageSettings,
        position: Position,
        found: StepResult,
        rates: dict[str, float],
        speed: float,
        extra: dict[str, float],
    ) -> None:
        if self.log is None or position.step % self.log_steps:
            return
        event = {"event": "step", "stage": settings.name, "step": position.step, "epoch": position.epoch}
        event |= {"loss": found.losses["loss"], "losses": found.losses, "learning_rates": rates}
        event |= {"gradient_norm": found.gradient_norm, "images_per_second": round(speed, 2)}
        event |= {"seconds": round(time.perf_counter() - self.began, 2), **extra}
        self._write(event)

    def _write(self, event: dict[str, Any]) -> None:
        assert self.log is not None
        self.log.write(event)
        self.track(event)

    def _skip(self, batch: list[Any], loss: float, buffers: list[tuple[Tensor, Tensor]]) -> None:
        """Undo what a step that is not finite did to running statistics, count it, and stop after three in a
        row."""
        for buffer, before in buffers:
            buffer.copy_(before)
        names = [name for part in batch for name in self.recipe.names(part)]
        past, position = self.past, self.position
        self.past = past._replace(bad_in_a_row=past.bad_in_a_row + 1, skipped=past.skipped + 1)
        if self.log is not None:
            event = {"event": "skipped", "step": position.step, "epoch": position.epoch}
            self._write({**event, "loss": repr(loss), "image_ids": names})
        self._advance()
        if self.past.bad_in_a_row >= BAD_STEPS_IN_A_ROW:
            raise TrainingError(
                f"loss or gradient was not finite in {BAD_STEPS_IN_A_ROW} steps in a row, the last at step "
                f"{position.step} (loss {loss}) with images {names}: look at these with `patchword check`, "
                "lower the learning rate, or train in fp32"
            )

    def _validate(self, settings: StageSettings, stage: int, epoch: int) -> bool:
        with self._whole():
            return self._validate_whole(settings, stage, epoch)

    def _whole(self) -> AbstractContextManager[None]:
        """Within it the modules hold whole weights."""
        return nullcontext() if self._sharded is None else self._sharded.whole()

    def _validate_whole(self, settings: StageSettings, stage: int, epoch: int) -> bool:
        began = time.perf_counter()
        found = self.recipe.validate(stage, epoch, self.accelerator)
        if found is None:
            return False
        better = self._remember(found, settings)
        self._say_validation(settings, epoch, found, better)
        if self.log is not None:
            event = {"event": "validation", "stage": settings.name, "step": self.position.step}
            event |= {"epoch": epoch, **found.event, "best": better}
            self._write(event | {"seconds": round(time.perf_counter() - began, 2)})
        if better and self.accelerator.is_main_process:
            self.folder.write_best(self.past.best_step, self.recipe.save)
        self.accelerator.wait_for_everyone()
        return bool(settings.patience) and self.past.since_best >= settings.patience

    def _remember(self, found: Validation, settings: StageSettings) -> bool:
        """Put a validation into the history; True where its model is to be kept: as the best of the run, or
        because the stage keeps the last one.

        Equal scores are told apart by the loss. Before the warm-up is over no patience is lost.
        """
        past, loss = self.past, math.inf if found.loss is None else found.loss
        better = found.score > past.best or (found.score == past.best and loss < past.best_loss)
        better = better or settings.keep == "last"
        if better:
            self.past = past._replace(
                best=found.score, best_loss=loss, best_step=self.position.step, since_best=0
            )
        elif self.position.stage_step >= settings.warm_up_steps:
            self.past = past._replace(since_best=past.since_best + 1)
        return better

    def _say_validation(self, settings: StageSettings, epoch: int, found: Validation, better: bool) -> None:
        loss = "" if found.loss is None else f"loss {found.loss:.3f}, "
        best = "best so far" if better else f"best {self.past.best:.4f} at step {self.past.best_step}"
        if settings.keep == "last":
            best = "the last one is kept"
        where = f"{settings.name}, epoch {epoch + 1} of {settings.epochs}, step {self.position.step}"
        self.say(f"{where}: {loss}{found.measure} {found.score:.4f} ({best})")

    def _checkpoint(self, optimisers: Sequence[Any]) -> None:
        """Model and state of the run, then the best model takes its place; between stages no optimisers."""
        with self._whole():
            if self._sharded is not None:
                packed = self._sharded.packed(optimisers)
            else:
                packed = {} if self.log is None else pack_optimisers(optimisers)
            if self.log is not None:
                values = {
                    "position": asdict(self.position),
                    "past": self.past._asdict(),
                    "log_length": self.log.length,
                    "facts": dict(self.recipe.facts),
                }
                state = Checkpoint(values, self.recipe.state(), packed)
                self.folder.write(state, self.recipe.save)
                self._saved = self.position.step
                self.folder.settle_best(self.past.best_step)
        self.accelerator.wait_for_everyone()


def lost_of(part: Any) -> tuple[str, ...]:
    """Why pictures of a batch were left out; most kinds of batches leave none out."""
    return getattr(part, "lost", ())


def _is_validated(settings: StageSettings, epochs: int) -> bool:
    """Whether a validation follows when so many epochs of a stage are done; it does after the last one."""
    return epochs % settings.validate_every == 0 or epochs == settings.epochs


def _shown(extra: dict[str, float], skipped: int, unreadable: int) -> str:
    """The end of a progress line: what the step spent its time on, where a recipe says so, and steps skipped
    and pictures left out so far."""
    shares = [
        f"{name.removesuffix('_share').replace('_', ' ')} {share:.0%}"
        for name, share in extra.items()
        if name.endswith("_share")
    ]
    counts = [f"{name} {n}" for name, n in (("skipped", skipped), ("unreadable", unreadable)) if n]
    return "".join(f"  {part}" for part in (*shares, *counts))


def _mixed(*numbers: int) -> int:
    """One seed below 2**63 from several numbers (the multipliers of splitmix64, so that neighbours are
    unrelated)."""
    state = 0
    for number in numbers:
        state = (state ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1
