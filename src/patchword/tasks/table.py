"""The tasks of Patchword, one entry each: where its models are loaded, trained, predicted with and evaluated.

Everything is named as "module:name" and imported when it is asked for, so that captioning never loads what
labelling needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from patchword.errors import ConfigError, ModelError


class Task(NamedTuple):
    """Where the parts of a task are, each as "module:name" below `patchword`; None for what a task does not
    offer.
    """

    load: str
    """(name, device) -> a model."""
    run: str
    """Schema of its configuration file."""
    recipe: str
    """(run, folder, command) -> what the loop trains."""
    predict: str | None = None
    """(PredictRequest) -> exit status: what `patchword predict` does with its models."""
    evaluate: str | None = None
    """(EvaluateRequest) -> exit status: what `patchword evaluate` does with its models."""
    measure: str | None = None
    """(EvaluateRequest) -> Evaluation: the numbers that `evaluate` prints."""
    evaluate_file: str | None = None
    """(EvaluateRequest) -> exit status: the same where the model is a file of another one's predictions."""
    few_shots: str | None = None
    """(name, device, file of examples) -> what captions and answers as the examples do: `--shots`."""
    export: str | None = None
    """(name, folder, "onnx" or "int8", MeasuredOn or None) -> lines that say what the export costs."""


TASKS = {
    "caption": Task(
        load="tasks.caption.load:load",
        run="tasks.caption.settings:CaptionRun",
        recipe="tasks.caption.train:caption_recipe",
        predict="tasks.caption.predict:predict",
        export="tasks.caption.export:export",
    ),
    "retrieve": Task(
        load="tasks.retrieve.load:load_two_towers",
        run="tasks.retrieve.train:RetrieveRun",
        recipe="tasks.retrieve.train:retrieve_recipe",
        export="tasks.retrieve.export:export",
    ),
    "align": Task(
        load="tasks.align.model:load_alignment",
        run="tasks.align.train:AlignRun",
        recipe="tasks.align.train:align_recipe",
    ),
    "answer": Task(
        load="tasks.answer.model:load_answerer",
        run="tasks.answer.settings:AnswerRun",
        recipe="tasks.answer.train:answer_recipe",
        predict="tasks.answer.evaluate:predict",
        evaluate="tasks.answer.evaluate:evaluate",
        measure="tasks.answer.evaluate:measure",
        evaluate_file="tasks.answer.evaluate:evaluate_file",
    ),
    "label": Task(
        load="tasks.label.model:load_labelling_model",
        run="tasks.label.settings:LabelRun",
        recipe="tasks.label.train:label_recipe",
        predict="tasks.label.evaluate:predict",
        evaluate="tasks.label.evaluate:evaluate",
        measure="tasks.label.evaluate:measure",
    ),
    "interleave": Task(
        load="tasks.interleave.model:load_few_shot",
        run="tasks.interleave.settings:InterleaveRun",
        recipe="tasks.interleave.train:interleave_recipe",
        few_shots="tasks.interleave.model:load_shown",
    ),
    "pretrain": Task(
        load="tasks.pretrain.model:load_pretrained",
        run="tasks.pretrain.settings:PretrainRun",
        recipe="tasks.pretrain.start:pretrain_recipe",
        evaluate="tasks.pretrain.evaluate:evaluate",
    ),
    "vokens": Task(
        load="tasks.vokens.model:load_vokenizer",
        run="tasks.vokens.settings:VokensRun",
        recipe="tasks.vokens.train:vokens_recipe",
    ),
    "words": Task(
        load="tasks.words.model:load_words",
        run="tasks.words.settings:WordsRun",
        recipe="tasks.words.train:words_recipe",
    ),
    "paint": Task(
        load="tasks.paint.model:load_painter",
        run="tasks.paint.settings:PaintRun",
        recipe="tasks.paint.train:paint_recipe",
    ),
}


def task_of(name: str | Path) -> str:
    """What a model is for. Raises ModelError when there is no such model, or this version has no such
    task."""
    from patchword.checkpoints import folder as checkpoint
    from patchword.hub import is_hub

    if is_hub(name):
        return "caption"
    folder = checkpoint.find_model(name)
    task = checkpoint.read_config(folder).get("task", "none that it names")
    if not isinstance(task, str) or task not in TASKS:
        raise ModelError(
            f"{folder} is a model for {task!r}; this version of Patchword has: {', '.join(TASKS)}"
        )
    return task


def few_shots_of(name: str | Path) -> str:
    """Where the few-shot side of a model is. Raises ConfigError for a model that cannot learn from shots."""
    task = task_of(name)
    found = TASKS[task].few_shots
    if found is None:
        offered = ", ".join(other for other, one in TASKS.items() if one.few_shots is not None)
        raise ConfigError(
            f"--shots is for models of task {offered}, and {name} is one for {task!r}: leave it out"
        )
    return found
