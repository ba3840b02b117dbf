"""Training a model that answers questions: the recipe that the loop runs. VQA accuracy on pictures that were not trained on selects it.

records -> vocabulary and list of answers -> pixels or stored features -> model -> stages -> validation by answering -> model folder
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import find_model, restore_weights
from patchword.checkpoints.towers import load_tower_weights
from patchword.composed import CaptionerSettings, TowerSettings, reader_preprocessing
from patchword.data.augment import Augmentation
from patchword.data.captions import PictureInputs, PlanEntry
from patchword.data.formats.questions import read_questions
from patchword.data.formats.readers import split_records
from patchword.data.question_only import CommonestAnswer
from patchword.data.questions import QuestionBatch, QuestionData, Targets, answerable, gather
from patchword.data.records import QuestionRecord
from patchword.errors import ConfigError, DataError
from patchword.layers.codebook import Codebook
from patchword.layers.familiarity import mean_patch
from patchword.metrics.classification import vqa_accuracy
from patchword.models.fusion.question_answering import QuestionConfig
from patchword.tasks.answer.composed import AnswerModel
from patchword.tasks.answer.model import AnsweringModel, AnswerSettings
from patchword.tasks.answer.objective import AnswerObjective
from patchword.text.words import Vocabulary
from patchword.train.data import HELD_OUT_SEED, pixel_inputs, stored_inputs
from patchword.train.loop import Validation
from patchword.train.settings import RunSettings, StageSettings

_FAMILIAR = 1000
"""Pictures that tell what is familiar to the model."""


class QuestionDataSettings(BaseModel, extra="forbid", frozen=True):
    """Which pictures and questions are read, and how they are prepared."""

    annotations: str = Field(
        description="easy-VQA or VQA v2 (file or folder), or a table with image, question and answer"
    )
    answers: str | None = Field(
        None, description="annotations file of VQA v2 where it does not lie beside the questions file"
    )
    images: str = Field(description="folder of the pictures")
    features: str | None = Field(
        None, description="feature store of the frozen tower (`patchword features`), in place of the pictures"
    )
    pixel_size: int | None = Field(
        None, ge=16, description="side at which pictures are cached; absent: the tower's own size"
    )
    cache: str | None = Field(
        None, description="folder of the pixel cache; absent: patchword in the user's cache folder"
    )
    augmentation: Augmentation | None = Field(
        None, description="random views while training (mind left and right); absent: plain pictures"
    )
    minimum_count: int = Field(
        1, gt=0, description="words that occur less often in the training questions become unknown"
    )
    max_words: int = Field(20, gt=0, description="words of a question beyond this are cut off")
    list_length: int = Field(
        3129, gt=1, description="answers to choose from: the most frequent of the training questions"
    )
    minimum_answers: int = Field(1, gt=0, description="answers that occur less often are not in the list")
    held_out: int = Field(
        0, ge=0, description="training pictures set aside to select the model; 0: it is selected on split val"
    )
    limit: int = Field(
        0, ge=0, description="use only the first n training pictures (tests, dry runs); 0: all"
    )


class AnswerStage(StageSettings, frozen=True):
    """A stage in which answers are learnt."""

    questions_per_picture: int = Field(
        8, gt=0, description="questions of a picture in a batch, drawn anew every epoch where it has more"
    )
    patch_contrast: float = Field(
        0.0, ge=0, description="weight of the contrast between patches of one concept (region alignment)"
    )


class AnswerRun(RunSettings, frozen=True):
    """The configuration of a training that answers questions."""

    task: Literal["answer"] = "answer"
    data: QuestionDataSettings
    targets: Targets = Field(
        "answer",
        description="answer: the most frequent one, chosen from a list; scores: how far people agree on each (VQA v2); words: generated",
    )
    tower: TowerSettings = Field(discriminator="kind")
    tower_from: str | None = Field(
        None, description="trained model (shipped name, folder, hub id) whose tower the training begins with"
    )
    answerer: QuestionConfig = QuestionConfig()
    generator: CaptionerSettings | None = Field(
        None, description="captioner that words the answers (targets words)"
    )
    codebook: str | None = Field(
        None, description="codebook folder (`patchword codebook`) for region alignment"
    )
    stage: tuple[AnswerStage, ...] = Field(min_length=1, description="what happens, in order")


class AnswerRecipe:
    """What `train/loop.py` needs to train on questions; see its Recipe."""

    def __init__(self, run: AnswerRun, folder: Path, command: str) -> None:
        _check(run)
        self.run, self.folder, self.stages = run, folder, run.stage
        train, self.selection = read_question_splits(run.data)
        self.answers = () if run.targets == "words" else answer_list(train, run.data)
        if self.answers:
            train = [record for record in train if answerable(record, set(self.answers))]
        said = [record.answer for record in train] if run.targets == "words" else []
        self.vocabulary = Vocabulary.build(
            [*(record.question for record in train), *said], run.data.minimum_count
        )
        torch.manual_seed(run.seed)
        codebook = None if run.codebook is None else Codebook.read(Path(run.codebook))
        self.model = AnswerModel.build(
            run.tower, run.answerer, run.generator, self.vocabulary.size, len(self.answers), codebook
        )
        if run.tower_from:
            load_tower_weights(self.model.tower, find_model(run.tower_from))
        if codebook is not None:
            codebook.check_tower(checkpoint.tower_id(self.model.tower))
        preprocessing = reader_preprocessing(self.model.tower.preprocessing)
        files = list(dict.fromkeys(record.file for record in (*train, *self.selection)))
        self.inputs = self._inputs(preprocessing, files)
        self.train = QuestionData.build(
            train, self.vocabulary, self.answers, run.targets, self.inputs, run.data.max_words
        )
        self.settings = AnswerSettings(
            tower=run.tower,
            answerer=run.answerer,
            generator=run.generator,
            targets=run.targets,
            answers=self.answers,
            preprocessing=preprocessing,
            vocabulary_size=self.vocabulary.size,
            max_words=run.data.max_words,
            codebook=None if codebook is None else codebook.describe(),
        )
        pictures = len({record.file for record in self.selection})
        self.card = {
            "name": folder.name,
            "description": run.description
            or f"Answers over a {run.tower.kind} tower, trained with Patchword.",
            "dataset": f"{Path(run.data.annotations).name}: {len(train)} questions about {len(self.train.records)} training pictures, "
            f"selected on {len(self.selection)} about {pictures} others",
            "licence": run.licence or "not stated",
            "command": command,
            "example": train[0].question,
        }
        guess = CommonestAnswer((record.question, record.kind, record.answer) for record in train)
        self.unseeing = {
            record.question_id: guess.answer(record.question, record.kind) for record in self.selection
        }

    def _inputs(self, preprocessing: Any, files: list[str]) -> PictureInputs:
        if not self.run.data.features:
            return pixel_inputs(self.run.data, preprocessing, files)
        return stored_inputs(Path(self.run.data.features), self.model.tower, preprocessing, self.stages)

    def objective(self, stage: int) -> nn.Module:
        return AnswerObjective(self.model, self.vocabulary.special.pad, self.stages[stage].patch_contrast)

    def plan(self, stage: int, epoch: int) -> list[list[PlanEntry]]:
        settings = self.stages[stage]
        return self.train.plan(
            settings.batch,
            settings.questions_per_picture,
            np.random.default_rng([self.run.seed, stage, epoch]),
        )

    def batch(self, stage: int, entries: list[PlanEntry], generator: torch.Generator) -> QuestionBatch:
        return self.train.batch(entries, generator)

    def image_ids(self, batch: QuestionBatch) -> list[Any]:
        return list(batch.image_ids)

    def before_step(self, stage: int, progress: float) -> None:
        pass

    def after_step(self, step: int, objective: nn.Module) -> dict[str, float]:
        return {}

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation | None:
        """Answer the questions of the selection; VQA accuracy selects. What the questions alone reach stands beside it."""
        self.model.eval()
        known, others = [same[0].file for same in self.train.records], list(gather(self.selection))
        self.model.familiarity.fit(
            self._mean_patches(known, accelerator.device), self._mean_patches(others, accelerator.device)
        )
        predicted = self._predicted(accelerator.device)
        given = {record.question_id: record.answers for record in self.selection}
        score = vqa_accuracy(given, predicted)["VQA_accuracy"]
        scores = {
            "VQA_accuracy": score.value,
            "questions_alone": vqa_accuracy(given, self.unseeing)["VQA_accuracy"].value,
        }
        kinds = Counter(record.kind for record in self.selection)
        if len(kinds) <= 8:
            for kind in kinds:
                values = [
                    score.per_item[record.question_id] for record in self.selection if record.kind == kind
                ]
                scores[f"VQA_accuracy, {kind}"] = float(np.mean(values))
        if accelerator.is_main_process:
            self._write_predictions(f"{self.stages[stage].name}-{epoch + 1:03d}", predicted, score.per_item)
        return Validation(score.value, {"scores": scores})

    def _write_predictions(
        self, name: str, predicted: dict[int | str, str], values: dict[int | str, float]
    ) -> None:
        """VQA's results format, and for the report the questions that went worst."""
        out = self.folder / "predictions" / f"{name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps([{"question_id": number, "answer": text} for number, text in predicted.items()]),
            encoding="utf-8",
        )
        samples = [
            {
                "image_id": record.image_id,
                "file": record.file,
                "question": record.question,
                "answer": predicted[record.question_id],
                "references": [record.answer],
            }
            for record in sorted(self.selection, key=lambda record: values[record.question_id])[:24]
        ]
        (self.folder / "samples.json").write_text(
            json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8"
        )

    def _predicted(self, device: torch.device) -> dict[int | str, str]:
        model = AnsweringModel(self.model, self.settings, self.vocabulary, self.card, device)
        pictures = gather(self.selection)
        files, predicted = list(pictures), {}
        for first in range(0, len(files), 64):
            names = files[first : first + 64]
            with torch.inference_mode():
                features = self.model.features(self.inputs.load(names, None).to(device))
            asked = [(b, record) for b, name in enumerate(names) for record in pictures[name]]
            owners_R = torch.tensor([b for b, _ in asked], device=device)
            found = model.answer(features, [record.question for _, record in asked], owners_R)
            predicted |= {
                record.question_id: best[0].text for (_, record), best in zip(asked, found, strict=True)
            }
        return predicted

    @torch.inference_mode()
    def _mean_patches(self, files: list[str], device: torch.device) -> Tensor:
        """Of a thousand of the pictures at most, evenly taken."""
        files = files[:: max(1, len(files) // _FAMILIAR)]
        parts = [
            self.inputs.load(files[first : first + 64], None).to(device) for first in range(0, len(files), 64)
        ]
        return torch.cat([mean_patch(self.model.features(part)) for part in parts])

    def save_model(self, folder: Path) -> None:
        device = next(self.model.parameters()).device
        AnsweringModel(self.model, self.settings, self.vocabulary, self.card, device).write(folder)

    def load_weights(self, folder: Path) -> None:
        digest = checkpoint.read_config(folder).get("tower_sha256")
        restore_weights(self.model, self.model.answerer, "answerer.", folder, digest)

    def extra_state(self) -> dict[str, Tensor]:
        return {}

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        pass


def read_question_splits(data: QuestionDataSettings) -> tuple[list[QuestionRecord], list[QuestionRecord]]:
    """Training questions, and those on which the model is selected, about other pictures. Raises ConfigError where nothing is left."""
    records = read_questions(data.annotations, data.answers)
    train = split_records(records, "train")
    files = list(dict.fromkeys(record.file for record in train))
    if data.held_out:
        if data.held_out >= len(files):
            raise ConfigError(
                f"data.held_out is {data.held_out} and there are {len(files)} training pictures: hold out fewer"
            )
        order = np.random.default_rng(HELD_OUT_SEED).permutation(len(files))
        aside = {files[i] for i in order[: data.held_out]}
        selection = [record for record in train if record.file in aside]
        files = [file for file in files if file not in aside]
    else:
        selection = split_records(records, "val")
    kept = set(files[: data.limit] if data.limit else files)
    return [record for record in train if record.file in kept], selection


def answer_list(train: list[QuestionRecord], data: QuestionDataSettings) -> tuple[str, ...]:
    """The most frequent answers, equally frequent ones by alphabet. Raises DataError for fewer than two: there is nothing to choose."""
    counts = Counter(answer for record in train for answer in set(record.answers))
    ranked = sorted(
        (text for text, count in counts.items() if count >= data.minimum_answers),
        key=lambda text: (-counts[text], text),
    )
    if len(ranked) < 2:
        raise DataError(
            f"{data.annotations}: {len(ranked)} answers occur {data.minimum_answers} times in the training questions, two are the least: "
            "add questions with other answers, or lower data.minimum_answers"
        )
    return tuple(ranked[: data.list_length])


def _check(run: AnswerRun) -> None:
    if (run.targets == "words") != (run.generator is not None):
        found = f"targets is {run.targets!r} and [generator] is {'given' if run.generator else 'left out'}"
        raise ConfigError(
            f"{found}: answers are generated by a captioner (targets words), or chosen without one"
        )
    if (run.codebook is None) != (run.answerer.region_alignment is None):
        raise ConfigError(
            "region alignment and a codebook go together: give codebook and [answerer.region_alignment], or neither"
        )
    longest = run.answerer.max_positions
    if run.data.max_words + 1 > longest:
        raise ConfigError(
            f"data.max_words is {run.data.max_words} and answerer.max_positions {longest}: it must be larger"
        )
