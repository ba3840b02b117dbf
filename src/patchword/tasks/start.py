"""From a configuration file to a run folder: what `patchword train` does around the loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console

from patchword.checkpoints.state import check_claim
from patchword.config import RENAMED_TASKS, override, read_toml, validate
from patchword.errors import ConfigError
from patchword.files import write_json, write_text
from patchword.lookup import look_up
from patchword.tasks.table import TASKS
from patchword.train.loop import Run


def start(
    config: Path, overrides: Sequence[str], resume: bool, dry_run: bool, device: str | None, command: str
) -> Path:
    """Train, and write the run folder: resolved config, metrics.jsonl, checkpoints, best model, predictions, report.html.

    Raises:
        ConfigError: a wrong setting, or a run folder that is in use by another configuration or not empty without `resume`.
        TrainingError: the loss was not finite three times in a row.
    """
    values = override(read_toml(config), overrides)
    task = values.get("task", "caption")
    if task not in TASKS:
        if task in RENAMED_TASKS:
            raise ConfigError(f"{config}: task {task!r} is called {RENAMED_TASKS[task]!r} now")
        raise ConfigError(f"{config}: task is {task!r}, expected one of {', '.join(TASKS)}")
    settings = validate(values, look_up(TASKS[task].run), str(config))
    # Some parameters have no part in some steps: a tower's projection under a captioner, the memory's segments before it is clustered.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = "bf16" if settings.precision == "bf16" else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[unused])
    folder = Path(settings.out)
    if not dry_run:
        check_claim(folder, settings, resume)
        accelerator.wait_for_everyone()
    torch.manual_seed(settings.seed)
    recipe = look_up(TASKS[task].recipe)(settings, folder, command)
    recipe.model.to(accelerator.device)
    if dry_run:
        look_up("train.dry_run:dry_run")(recipe, accelerator, settings.seed)
        return folder
    if accelerator.is_main_process:  # only now: a run that could not be set up leaves no folder behind
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", settings.model_dump(mode="json"), indent=1)
    accelerator.wait_for_everyone()
    run = Run(recipe, folder, accelerator, settings.seed, settings.checkpoint_steps, settings.log_steps)
    resumed = run.resume() if resume else False
    say = Console(stderr=True).print if accelerator.is_main_process else (lambda *text: None)
    counted = sum(parameter.numel() for parameter in recipe.model.parameters())
    say(
        f"{folder}: {counted / 1e6:.2f} M parameters on {accelerator.device}"
        + (f", resumed at step {run.position.step}" if resumed else "")
    )
    began = time.monotonic()
    try:
        run.train()
    finally:
        if accelerator.is_main_process:
            page = look_up("reports.report:training_report")(folder)
            write_text(folder / "report.html", page)
    minutes = (time.monotonic() - began) / 60
    say(
        f"done in {minutes:.1f} min; best score {run.past.best:.4f}; model {folder / 'best'}; report {folder / 'report.html'}"
    )
    return folder
