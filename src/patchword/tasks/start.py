"""From a configuration file to a run folder: what `patchword train` does around the loop."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from patchword.config import RENAMED_TASKS, override, read_toml, validate
from patchword.errors import ConfigError, WriteError
from patchword.files import write_text
from patchword.log import console
from patchword.lookup import look_up
from patchword.tasks.table import TASKS
from patchword.train.claim import claimed
from patchword.train.loop import Run
from patchword.train.recipe import Recipe
from patchword.train.settings import RunSettings


def start(
    config: Path, overrides: Sequence[str], resume: bool, dry_run: bool, device: str | None, command: str
) -> Path:
    """Train, and write the run folder: resolved config, metrics.jsonl, checkpoints, best model, report.html.

    Raises:
        ConfigError: a wrong setting, a tracker that is not installed, or a run folder that another
            configuration or another process uses, that holds a run and is not to be resumed, or that cannot
            be written.
        TrainingError: the loss was not finite three times in a row, or something could not be read or
            written.
    """
    values = override(read_toml(config), overrides)
    task = values.get("task", "caption")
    if not isinstance(task, str) or task not in TASKS:
        if str(task) in RENAMED_TASKS:
            raise ConfigError(f"{config}: task {task!r} is called {RENAMED_TASKS[task]!r} now")
        raise ConfigError(f"{config}: task is {task!r}, expected one of {', '.join(TASKS)}")
    settings = validate(values, look_up(TASKS[task].run), str(config))
    if settings.log:
        look_up("train.trackers:check_installed")(settings.log)
    # Some parameters have no part in some steps: a tower's projection under a captioner, the memory's
    # segments before it is clustered.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    refuse_shards_of_models()
    precision = "bf16" if settings.precision == "bf16" else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[unused])
    folder = Path(settings.out)
    make = look_up(TASKS[task].recipe)
    torch.manual_seed(settings.seed)
    if dry_run:
        recipe = make(settings, folder, command)
        recipe.model.to(accelerator.device)
        look_up("train.dry_run:dry_run")(recipe, accelerator, settings.seed)
        return folder
    with claimed(folder, settings, resume, accelerator.is_main_process) as begin:
        accelerator.wait_for_everyone()
        recipe = make(settings, folder, command)
        recipe.model.to(accelerator.device)
        begin(recipe.resolved)
        accelerator.wait_for_everyone()
        _train(recipe, settings, folder, accelerator, resume)
    return folder


def refuse_shards_of_models() -> None:
    """Raises ConfigError where accelerate is told to give every process a part of the model."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "").lower() == "true":
            raise ConfigError(
                f"accelerate is set to {name}, which gives every process a part of the model by settings of "
                "its own: launch without it, and let a captioner or two towers share out their weights by "
                'sharded=true; precision="bf16", accumulate and cached_gradients save memory as well'
            )


def _train(
    recipe: Recipe, settings: RunSettings, folder: Path, accelerator: Accelerator, resume: bool
) -> None:
    """Run the recipe in its folder, and write the report, however the run ends."""
    is_main = accelerator.is_main_process
    say = _say if is_main else (lambda line: None)
    run = Run(recipe, folder, accelerator, settings.seed, settings.checkpoint_steps, settings.log_steps, say)
    run.sharded = getattr(settings, "sharded", False)  # of those tasks whose steps have one objective
    resumed = run.resume() if resume else False
    trackers = None
    if settings.log and is_main:
        config = settings.model_dump(mode="json")
        trackers = look_up("train.trackers:Trackers")(settings.log, folder, config, run.position.step)
        run.track = trackers.write
    for note in recipe.notes:
        say(note)
    counted = sum(parameter.numel() for parameter in recipe.model.parameters())
    say(
        f"{folder}: {counted / 1e6:.2f} M parameters on {accelerator.device}"
        + (f", resumed at step {run.position.step}" if resumed else "")
    )
    began = time.monotonic()
    try:
        run.train()
    except BaseException:
        if is_main:
            with suppress(WriteError):  # why the training ended is said, and the report may fail likewise
                _write_report(folder)
        raise
    finally:
        if trackers is not None:
            trackers.close()
    if is_main:
        _write_report(folder)
    minutes = (time.monotonic() - began) / 60
    say(
        f"done in {minutes:.1f} min; best score {run.past.best:.4f}; model {folder / 'best'}; "
        f"report {folder / 'report.html'}"
    )


def _say(line: str) -> None:
    """One line on standard error, whatever its length and the brackets in it."""
    console(stderr=True).print(line, soft_wrap=True)


def _write_report(folder: Path) -> None:
    write_text(folder / "report.html", look_up("reports.report:training_report")(folder))
