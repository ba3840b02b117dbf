"""The functions of the Python interface, which `patchword.__all__` names: what the commands of the same names
do, without printing.

`load` says by its overloads what it gives back: for the name of a shipped model, and for the task that is
asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from patchword.errors import ConfigError, ModelError
from patchword.hub import is_hub
from patchword.lookup import look_up
from patchword.tasks.requests import EvaluateRequest, MissingChoice
from patchword.tasks.requests import Evaluation as Evaluation
from patchword.tasks.requests import Questions as Questions
from patchword.tasks.table import TASKS, task_of

if TYPE_CHECKING:
    from patchword.search.index import IndexReport
    from patchword.tasks.align.model import AlignmentModel
    from patchword.tasks.answer.model import AnsweringModel
    from patchword.tasks.caption.hub import HubCaptioner
    from patchword.tasks.caption.model import CaptioningModel
    from patchword.tasks.label.model import LabellingModel
    from patchword.tasks.paint.model import PaintingModel
    from patchword.tasks.retrieve.model import TwoTowerModel
    from patchword.tasks.words.model import WordVectors

    Model: TypeAlias = (
        CaptioningModel
        | HubCaptioner
        | TwoTowerModel
        | AlignmentModel
        | AnsweringModel
        | LabellingModel
        | WordVectors
        | PaintingModel
    )

DEFAULT_TOWERS = "two-towers"


@overload
def load(name: Literal["flickr8k"], device: str | None = None) -> CaptioningModel: ...
@overload
def load(name: Literal["two-towers"], device: str | None = None) -> TwoTowerModel: ...
@overload
def load(name: Literal["laps"], device: str | None = None) -> AlignmentModel: ...
@overload
def load(name: Literal["easy-vqa"], device: str | None = None) -> AnsweringModel: ...
@overload
def load(name: Literal["drawn-scenes"], device: str | None = None) -> PaintingModel: ...
@overload
def load(
    name: str | Path, device: str | None = None, *, task: Literal["caption"]
) -> CaptioningModel | HubCaptioner: ...
@overload
def load(name: str | Path, device: str | None = None, *, task: Literal["retrieve"]) -> TwoTowerModel: ...
@overload
def load(name: str | Path, device: str | None = None, *, task: Literal["align"]) -> AlignmentModel: ...
@overload
def load(name: str | Path, device: str | None = None, *, task: Literal["answer"]) -> AnsweringModel: ...
@overload
def load(name: str | Path, device: str | None = None, *, task: Literal["label"]) -> LabellingModel: ...
@overload
def load(name: str | Path, device: str | None = None, *, task: Literal["words"]) -> WordVectors: ...
@overload
def load(name: str | Path, device: str | None = None, *, task: Literal["paint"]) -> PaintingModel: ...
@overload
def load(name: str | Path, device: str | None = None) -> Model: ...
def load(name: str | Path, device: str | None = None, *, task: str | None = None) -> Any:
    """A model, ready to be used: it can `caption` pictures, `embed_images` and `embed_texts`, `explain` a
    pair, be `ask`ed, `label`, or `paint`.

    Args:
        name: a shipped model, a model folder, a hub id of a Patchword folder, or `hub:ID` of a model of
            transformers.
        device: cpu, cuda or mps; the best there is where left out.
        task: what the model must be for: caption, retrieve, align, answer, label, paint or words; where left
            out, it may be for any of them. `hub:ID` is a captioner, or with `task="retrieve"` a CLIP.

    Raises:
        ModelError: there is no such model, its folder is incomplete or of another format, or it is for
            another task.
        ConfigError: `task` is no task.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    found = task if task is not None and is_hub(name) else task_of(name)
    if task not in (None, found) and not (task == "retrieve" and found == "align"):
        raise ModelError(f"{name} is a model for {found!r}, and one for {task!r} is needed")
    return look_up(TASKS[task or found].load)(name, device)


def train(
    config: str | Path,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> Path:
    """Train a model, as `patchword train` does: progress on standard error, everything else in the run
    folder.

    Args:
        config: a TOML file, or the name of a configuration that came with the package.
        settings: what to change in it, for instance {"data.images": "photos", "stage.0.epochs": 3}.
        resume: go on from the last checkpoint of the run folder; begin if there is none.
        device: cpu, cuda or mps; the best there is where left out.

    Returns:
        The run folder; the model that was selected is in its folder `best`, which `load` takes.

    Raises:
        ConfigError: a wrong setting, or a run folder that is in use by another configuration, or not empty
            without `resume`.
        DataError: an annotation that cannot be used.
        TrainingError: the loss was not finite three times in a row.
    """
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in (settings or {}).items()]
    command = f"patchword.train({str(config)!r}, {dict(settings or {})!r})"
    run: Path = look_up("tasks.start:start")(Path(config), overrides, resume, False, device, command)
    return run


def index(
    folder: str | Path,
    out: str | Path,
    model: str | Path = DEFAULT_TOWERS,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Make the pictures of a folder and its sub-folders searchable, or bring an index up to them: only what
    is new or changed is embedded.

    Args:
        folder: the pictures.
        out: folder of the index, for `open_index` and `patchword search`.
        model: two towers: a shipped name, a folder, a hub id, or `hub:ID` of a CLIP.
        device: cpu, cuda or mps; the best there is where left out.
        progress: called with (done, all) after every batch.

    Returns:
        What was added, changed, removed and kept, and the pictures that could not be read, with the reasons.

    Raises:
        StoreError: the index is of another model, or another process is writing it.
        DataError: there is no such folder.
        ModelError: there is no such model, or it has no two towers.
        MissingExtra: faiss is not installed.
    """
    towers = load(model, device, task="retrieve")
    name = str(Path(model).resolve()) if Path(model).is_dir() else str(model)  # a search may start elsewhere
    seen_by = look_up("search.records:IndexModel")(towers.embed_images, towers.identity, name)
    report: IndexReport = look_up("search.index:update_index")(folder, out, seen_by, progress=progress)
    return report


def evaluate(
    model: str | Path,
    data: str | Path | Questions,
    images: str | Path,
    split: str = "val",
    *,
    missing: MissingChoice = "error",
    device: str | None = None,
    batch: int = 32,
) -> Evaluation:
    """How good a model is on a split whose right answers are known: VQA accuracy of answers, accuracy and F1
    of labels.

    Args:
        model: a model that answers questions or labels pictures: a shipped name, a folder or a hub id.
        data: questions with their answers (for VQA v2 the questions file, with its annotations beside it), or
            a table with labels; `Questions` names answers or training questions that lie elsewhere.
        images: folder of the pictures.
        split: which part of the data.
        missing: labels: what becomes of rows without text or picture.
        device: cpu, cuda or mps; the best there is where left out.
        batch: pictures that go through the model together.

    Raises:
        ConfigError: the model is for a task that is scored another way: captions by `score`.
        DataError: the data have no such split, or lack what there is to compare with.
        ModelError: there is no such model.
    """
    task = task_of(model)
    measure = TASKS[task].measure
    if measure is None:
        raise ConfigError(
            f"evaluate takes a model that labels or answers questions, {model} is one for {task!r}: "
            "caption, then `score`"
        )
    questions = data if isinstance(data, Questions) else Questions(data)
    request = EvaluateRequest(
        model=str(model),
        data=Path(questions.data),
        images=Path(images),
        split=split,
        answers=None if questions.answers is None else Path(questions.answers),
        training=None if questions.training is None else Path(questions.training),
        missing=missing,
        device=device,
        batch=batch,
    )
    result: Evaluation = look_up(measure)(request)
    return result
