"""What a training writes to its folder, and the order in which it does so.

    checkpoints/last    model and state of the training, replaced as a whole
    best.step-<n>       a model that was the best of the run at step n, until a checkpoint knows of it
    best                the best model that a checkpoint knows of

A run that is killed goes on from `checkpoints/last`, so nothing that it depends on may be newer than that. A
new best model therefore waits under the name of its step; the checkpoint that follows records the step, and
only then the model takes the place of `best`. After a kill between the two, the next run does it; a best
model that no checkpoint knows of is removed, for the run will make it again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchword.checkpoints.state import (
    pack_optimiser,
    prefixed,
    read_state,
    without_prefix,
    write_state,
)
from patchword.files import recover_folder, replace_folder


class Checkpoint(NamedTuple):
    """The state of a training as it is written, beside the model."""

    values: dict[str, Any]
    """Position, history, length of the log, facts: what JSON can hold."""
    extra: dict[str, Tensor]
    """What the recipe needs beside its model."""
    optimisers: dict[str, Tensor]
    """Packed optimisers, under their number; empty between two stages."""


class RunFolder:
    """The folder of one training. Only the main process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last = folder / "checkpoints" / "last"
        self.best = folder / "best"

    def read(self) -> Checkpoint | None:
        """The last checkpoint; None where there is none yet. Raises ModelError where it is damaged."""
        if not self.last.exists():
            return None
        tensors, values = read_state(self.last)
        return Checkpoint(values, without_prefix("extra.", tensors), without_prefix("optimiser.", tensors))

    def recover(self) -> None:
        """Put right what a kill left half done between two names."""
        for target in (self.last, self.best):
            recover_folder(target)
            shutil.rmtree(target.with_name(target.name + ".old"), ignore_errors=True)

    def write(self, checkpoint: Checkpoint, save: Callable[[Path], None]) -> None:
        """Replace `checkpoints/last`; a kill at any moment leaves the old or the new one."""
        with _aside(self.last) as made:
            save(made)
            tensors = prefixed("optimiser.", checkpoint.optimisers) | prefixed("extra.", checkpoint.extra)
            write_state(made, tensors, checkpoint.values)
            replace_folder(made, self.last)

    def write_best(self, step: int, save: Callable[[Path], None]) -> None:
        """The best model so far, under the name of its step, until `settle_best`."""
        with _aside(self.best) as made:
            save(made)
            made.rename(_empty(self._waiting(step)))

    def settle_best(self, step: int) -> None:
        """The best model is that of `step`, as the last checkpoint says; others that wait are removed."""
        if self._waiting(step).exists():
            replace_folder(self._waiting(step), self.best)
        for other in self.folder.glob("best.step-*"):
            shutil.rmtree(other)

    def best_of(self, step: int) -> Path | None:
        """The folder of the best model of the run, waiting or not; None where no model was ever the best."""
        return next((folder for folder in (self._waiting(step), self.best) if folder.exists()), None)

    def _waiting(self, step: int) -> Path:
        return self.folder / f"best.step-{step}"


def pack_optimisers(optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The packed states of several optimisers, each under its number."""
    packed: dict[str, Tensor] = {}
    for number, optimiser in enumerate(optimisers):
        packed |= prefixed(f"{number}.", pack_optimiser(optimiser))
    return packed


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Where a folder is made before it takes its name; after an error nothing of it fills the disk."""
    made = _empty(target.with_name(target.name + ".partial"))
    try:
        yield made
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _empty(folder: Path) -> Path:
    """A name under which there is nothing any more, of which an earlier run may have left a part."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
