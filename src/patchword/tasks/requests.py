"""What `patchword predict` and `patchword evaluate` hand to a task, and what a task says of its model.

A request holds the options of the command, as they were typed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from patchword.errors import ConfigError
from patchword.metrics.scores import Score
from patchword.tasks.caption.options import OWN, DecodingOptions

MissingChoice = Literal["error", "image-only", "text-only"]
"""What becomes of rows of a table without text or picture."""


@dataclass(frozen=True)
class Questions:
    """A file of questions whose answers lie in another one, as VQA v2 publishes them."""

    data: str | Path
    answers: str | Path | None = None
    """Annotations of VQA v2; those beside the questions where left out."""
    training: str | Path | None = None
    """Training questions, for what the question alone tells; the train split of `data` where left out."""


@dataclass(frozen=True)
class MeasuredOn:
    """Captions and pictures on which `patchword export` measures what it costs."""

    data: Path
    images: Path
    split: str = "val"


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
    decoding: DecodingOptions = OWN
    """Captions: options of the search."""
    missing: MissingChoice = "error"
    device: str | None = None
    batch: int = 32
    cluster: str | None = None
    """Work on Ray, as `run_job` says; None: in this process."""
    parts: Path | None = None
    """With `cluster`: folder that all workers see, for what they made until `out` is written."""

    def refuse_decoding(self, what: str) -> None:
        """Raises ConfigError where options of a search for captions were given, and the model gives `what`
        instead."""
        if self.decoding != OWN:
            raise ConfigError(
                f"{self.model} gives {what}, and --beam, --length-penalty, --no-repeat, --max-length, "
                "--min-length and "
                "--dtype are for captions: leave them out"
            )


@dataclass(frozen=True)
class EvaluateRequest:
    """Compare with the right answers of a split, and print a table."""

    model: str
    """Or a file with the predictions of another model, where the task takes one."""
    data: Path
    images: Path | None
    """None where predictions are there already, and nothing is looked at."""
    split: str = "val"
    answers: Path | None = None
    """Questions: annotations of VQA v2, where they do not lie beside the questions."""
    training: Path | None = None
    """Questions: training questions, for what the question alone tells."""
    missing: MissingChoice = "error"
    out: Path | None = None
    device: str | None = None
    batch: int = 32


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on a split."""

    scores: dict[str, Score]
    """Scores by name, as fractions of one."""
    rows: tuple[dict[str, Any], ...]
    """The same by kind of question, or by label: one line of the printed table each."""
    items: int
    """Questions or rows that were scored."""
    left_out: int = 0
    """Questions or rows whose pictures could not be read: they are in no number."""
    interval: tuple[float, float] | None = None
    """95 % interval of the first score, by bootstrap over pictures, where it is computed."""
