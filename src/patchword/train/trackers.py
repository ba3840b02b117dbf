"""What a training logs, in the trackers of accelerate as well: TensorBoard and Weights & Biases.

`metrics.jsonl` stays the log that a run is resumed and reported from. TensorBoard's files lie in the run's
folder, under `tensorboard/`. Weights & Biases writes there too, offline; `wandb sync` uploads it, or
WANDB_MODE=online sends it while the training runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from patchword.errors import ConfigError

_INSTALL = {"tensorboard": "pip install 'patchword[log]'", "wandb": "pip install wandb"}


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f'log = ["{name}"]: {name} is not installed: {_INSTALL[name]}, or leave it out')


class Trackers:
    """Some trackers of one run. To be made once the run's folder is there, by every process; accelerate lets
    the main one write."""

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any], step: int) -> None:
        """`step`: what a resumed run goes on from; TensorBoard forgets what came after it."""
        self._trackers = [_tracker(name, folder, config, step) for name in names]
        for tracker in self._trackers:
            tracker.start()

    def write(self, event: Mapping[str, Any]) -> None:
        """The numbers of an event of metrics.jsonl, under the event's name."""
        values = dict(_numbers(event["event"], event))
        for tracker in self._trackers:
            tracker.log(values, step=event["step"])

    def close(self) -> None:
        """Write out what is held back."""
        for tracker in self._trackers:
            tracker.finish()


def _tracker(name: str, folder: Path, config: Mapping[str, Any], step: int) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker(name, folder, purge_step=step)
    mode = os.environ.get("WANDB_MODE", "offline")
    return WandBTracker("patchword", name=folder.name, dir=str(folder), config=dict(config), mode=mode)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in nested dictionaries, by its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("event", "stage", "step"):
                yield from _numbers(f"{name}/{key or 'all'}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
