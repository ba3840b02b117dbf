"""What `patchword predict` and `patchword evaluate` hand to a task: the options of the command, as they were typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MissingChoice = Literal["error", "image-only", "text-only"]
"""What becomes of rows of a table without text or picture."""


@dataclass(frozen=True)
class PredictRequest:
    """Predict for every picture, question or row of a split, and write a file."""

    model: str
    data: Path
    images: Path
    out: Path
    split: str = "test"
    answers: Path | None = None
    """Questions: annotations of VQA v2, where they do not lie beside the questions."""
    beam: int | None = None
    missing: MissingChoice = "error"
    device: str | None = None
    batch: int = 32


@dataclass(frozen=True)
class EvaluateRequest:
    """Compare with the right answers of a split, and print a table."""

    model: str
    data: Path
    images: Path
    split: str = "val"
    answers: Path | None = None
    """Questions: annotations of VQA v2, where they do not lie beside the questions."""
    training: Path | None = None
    """Questions: training questions, for what the question alone tells."""
    missing: MissingChoice = "error"
    out: Path | None = None
    device: str | None = None
    batch: int = 32
