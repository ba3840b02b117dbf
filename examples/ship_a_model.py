"""Makes a small model folder for distribution from the best model of a run.

    python examples/ship_a_model.py runs/flickr8k/best OUT --name flickr8k --scores scores.json --on val

The folder has fp16 weights, a name, and its scores on the card. `scores.json` is written by `patchword score
--out`, by `recall --out` for two towers and alignment, or by `evaluate --out` for answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from patchword.interface import load


def ship(
    model: Annotated[Path, typer.Argument(help="Model folder of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    scores: Annotated[
        Path | None,
        typer.Option(help="JSON with a table `corpus` (score), `scores` (recall) or `all` (evaluate)."),
    ] = None,
    on: Annotated[str, typer.Option(help="What the scores were measured on.")] = "",
    no_repeat_ngram: Annotated[
        int, typer.Option(help="Captioners: no so many words in a row twice; 0 leaves the run's setting.")
    ] = 0,
    command: Annotated[
        str,
        typer.Option(help="Command that repeats the training, for the card; the run's own where left out."),
    ] = "",
    limits: Annotated[str, typer.Option(help="What the model cannot do, for the card.")] = "",
) -> None:
    """Write the folder; it must not exist."""
    loaded = load(model, "cpu")
    changes: dict[str, Any] = {"name": name}
    if no_repeat_ngram:
        decoding = loaded.settings.decoding.model_copy(update={"no_repeat_ngram": no_repeat_ngram})
        loaded.settings = loaded.settings.model_copy(update={"decoding": decoding})
    if command:
        changes["command"] = command
    if limits:
        changes["limits"] = limits
    if scores is not None:
        found = json.loads(scores.read_text(encoding="utf-8"))
        corpus = (
            found.get("corpus")
            or found.get("scores")
            or {name: found["all"][name] for name in ("VQA_accuracy", "questions_alone")}
        )
        changes["scores"] = {metric: round(value, 4) for metric, value in corpus.items()}
        changes["scores_on"] = on
    loaded.facts = loaded.facts.model_copy(update=changes)
    loaded.save(out, half=True)
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    typer.run(ship)
