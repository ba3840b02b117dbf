"""What a task brings to the training loop, as a value: a recipe.

Most trainings need seven things: the model, the stages, the batches (`plan`, `batch`), the loss
(`objective`), and how the model is written and read again. Everything else has a default that does nothing,
or the usual thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from torch import Tensor, nn

from patchword.train.groups import single_optimiser
from patchword.train.settings import StageSettings
from patchword.train.step import OptimiserStep, one_step


class Batch(Protocol):
    """What the loop asks of a batch, whatever is in it."""

    @property
    def target_count(self) -> int:
        """Predictions that the loss is a sum over: words, answers, rows."""

    @property
    def picture_count(self) -> int:
        """Pictures, or rows where a row is what is learnt from; their speed is logged."""

    def to(self, device: torch.device) -> Any:
        """The same batch on a device."""


class Validation(NamedTuple):
    """What a validation found."""

    score: float
    """Selects the best model; higher is better."""
    event: dict[str, Any]
    """What is logged."""
    loss: float | None = None
    """Decides between equal scores, as those of a model that says nothing right yet; lower is better."""
    measure: str = "score"
    """What the score is called."""


def no_validation(stage: int, epoch: int, accelerator: Accelerator) -> Validation | None:
    """Nothing is measured: the model of the last checkpoint is the result."""
    return None


def nothing_before(stage: int, progress: float, objective: nn.Module) -> None:
    """Nothing is set before a step."""


def nothing_after(step: int, objective: nn.Module) -> dict[str, float]:
    """Nothing is done after a step, and nothing more is logged."""
    return {}


def no_state() -> dict[str, Tensor]:
    """The model and the optimisers are all the state there is."""
    return {}


def no_state_to_load(tensors: dict[str, Tensor]) -> None:
    """The counterpart of `no_state`."""


def image_ids(batch: Any) -> list[Any]:
    """The names of a batch's pictures."""
    return list(batch.image_ids)


@dataclass(frozen=True)
class Recipe:
    """A training, as `train/loop.py` runs it. A run is a function of its recipe and its seed.

    Everything that a recipe's functions remember between steps must be in the model, in `state`, or follow
    from stage, epoch and step; else a resumed run would not be the same run.
    """

    model: nn.Module
    """What is trained, and written by `save`."""
    stages: Sequence[StageSettings]
    """What happens, in order."""
    plan: Callable[[int, int], list[list[Any]]]
    """(stage, epoch) -> the batches of an epoch, each a list of entries; the same for every process."""
    batch: Callable[[int, list[Any], torch.Generator], Batch]
    """(stage, entries, generator) -> the batch of these entries; the generator draws what is random in it."""
    objective: Callable[[int], nn.Module]
    """(stage) -> a module that owns the model; called with a batch and shares it gives named losses, the
    total under "loss"."""
    save: Callable[[Path], None]
    """Writes the model folder."""
    load: Callable[[Path], None]
    """Reads the weights of such a folder back into `model`."""
    validate: Callable[[int, int, Accelerator], Validation | None] = no_validation
    """(stage, epoch, accelerator) -> what selects the best model."""
    optimisers: Callable[[nn.Module, StageSettings], tuple[torch.optim.Optimizer, ...]] = single_optimiser
    """(model, stage) -> the optimisers of a stage, whose groups carry a `base_rate` (see `groups.py`)."""
    step: OptimiserStep = one_step
    """What is done with a batch; see `step.py` for the rules of a step of one's own."""
    before_step: Callable[[int, float, nn.Module], None] = nothing_before
    """(stage, share of the stage that is done, objective), before every step."""
    after_step: Callable[[int, nn.Module], dict[str, float]] = nothing_after
    """(step, objective), after every step that was taken. What it returns is logged; what is called
    "..._share" is also shown."""
    state: Callable[[], dict[str, Tensor]] = no_state
    """What a resumed run needs beside the model that is saved and the optimisers."""
    load_state: Callable[[dict[str, Tensor]], None] = no_state_to_load
    """The counterpart of `state`."""
    names: Callable[[Any], list[Any]] = image_ids
    """(batch) -> what messages call its pictures or rows."""
    notes: Sequence[str] = ()
    """Lines for the person who starts the run, such as settings that follow the data."""
    resolved: BaseModel | None = None
    """The configuration with everything that follows the data; None where that is nothing."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a run was begun with beside its configuration: counts and fingerprints of data and vocabulary."""
