"""Training a model that answers questions: its recipe.

VQA accuracy on pictures that were not trained on selects it.

records -> vocabulary and list of answers -> pixels or stored features -> model -> stages -> validation by
answering -> model folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import find_model, restore_weights
from patchword.checkpoints.streams import begin_with
from patchword.checkpoints.towers import load_tower_weights
from patchword.composed import reader_preprocessing
from patchword.data.captions import PictureInputs, PlanEntry
from patchword.data.questions import QuestionBatch, QuestionData, answerable, gather
from patchword.data.records import QuestionRecord
from patchword.errors import ConfigError, counted
from patchword.layers.codebook import Codebook
from patchword.layers.familiarity import mean_patch
from patchword.tasks.answer.composed import AnswerModel
from patchword.tasks.answer.model import AnsweringModel, AnswerSettings
from patchword.tasks.answer.objective import AnswerObjective
from patchword.tasks.answer.settings import AnswerRun
from patchword.tasks.answer.splits import answer_list, read_question_splits
from patchword.tasks.answer.validate import AnswerValidation, guesses
from patchword.text.words import Vocabulary
from patchword.train.data import data_facts, pixel_inputs, stored_inputs
from patchword.train.recipe import Recipe, Validation

_FAMILIAR = 1000
"""Pictures that tell what is familiar to the model."""
_AT_ONCE = 64


def answer_recipe(run: AnswerRun, folder: Path, command: str) -> Recipe:
    """The training of a model that answers, ready for its first step.

    Raises ConfigError, DataError, ModelError.
    """
    _check(run)
    training = AnswerTraining(run, folder, command)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=lambda target: training.whole().write(target),
        load=training.load,
        validate=training.validate,
        notes=training.notes,
        facts=data_facts(training.questions, training.validation.selection, training.vocabulary),
    )


class AnswerTraining:
    """Model and data of a run, and what its stages do with them."""

    def __init__(self, run: AnswerRun, folder: Path, command: str) -> None:
        self.run = run
        train, selection = read_question_splits(run.data)
        self.answers = () if run.targets == "words" else answer_list(train, run.data)
        if self.answers:
            train = [record for record in train if answerable(record, set(self.answers))]
        said = [record.answer for record in train] if run.targets == "words" else []
        self.vocabulary = Vocabulary.build(
            [*(record.question for record in train), *said], run.data.minimum_count
        )
        torch.manual_seed(run.seed)
        two_streams = run.two_streams and run.two_streams.reading(self.vocabulary, run.data.max_words)
        codebook = None if run.codebook is None else Codebook.read(Path(run.codebook))
        self.model = AnswerModel.build(
            run.tower,
            run.answerer,
            run.generator,
            self.vocabulary.size,
            len(self.answers),
            codebook,
            two_streams,
        )
        self.notes: list[str] = []
        if run.two_streams_from:
            streams = self.model.answerer.encoder.streams
            known = begin_with(streams, find_model(run.two_streams_from), self.vocabulary)
            self.notes.append(
                f"streams of {run.two_streams_from}: {known} of {len(self.vocabulary.words)} words were read "
                "there"
            )
        if run.tower_from:
            load_tower_weights(self.model.tower, find_model(run.tower_from))
        if codebook is not None:
            codebook.check_tower(checkpoint.tower_id(self.model.tower))
        preprocessing = reader_preprocessing(self.model.tower.preprocessing)
        files = list(dict.fromkeys(record.file for record in (*train, *selection)))
        self.inputs = self._inputs(preprocessing, files)
        self.train = QuestionData.build(
            train, self.vocabulary, self.answers, run.targets, self.inputs, run.data.max_words
        )
        self.settings = AnswerSettings(
            tower=run.tower,
            answerer=run.answerer,
            generator=run.generator,
            two_streams=two_streams,
            targets=run.targets,
            answers=self.answers,
            preprocessing=preprocessing,
            vocabulary_size=self.vocabulary.size,
            max_words=run.data.max_words,
            codebook=None if codebook is None else codebook.describe(),
        )
        self.facts = _facts(run, folder, command, train, selection)
        self.questions = train
        self.validation = AnswerValidation(selection, folder, guesses(train, selection))

    def load(self, folder: Path) -> None:
        """The weights of a model folder into the model. Raises ModelError where they do not fit."""
        digest = checkpoint.read_config(folder).get("tower_sha256")
        restore_weights(self.model, folder, digest)

    def _inputs(self, preprocessing: Any, files: list[str]) -> PictureInputs:
        if not self.run.data.features:
            return pixel_inputs(self.run.data, preprocessing, files)
        return stored_inputs(Path(self.run.data.features), self.model.tower, preprocessing, self.run.stage)

    def whole(self) -> AnsweringModel:
        """The model as a person uses it."""
        device = next(self.model.parameters()).device
        return AnsweringModel(self.model, self.settings, self.vocabulary, self.facts, device)

    def objective(self, stage: int) -> nn.Module:
        """The loss of the answers, and the contrast of patches where the stage weighs it."""
        return AnswerObjective(self.model, self.vocabulary.special.pad, self.run.stage[stage].patch_contrast)

    def plan(self, stage: int, epoch: int) -> list[list[PlanEntry]]:
        """The batches of an epoch; of a picture with many questions some are drawn."""
        settings = self.run.stage[stage]
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        return self.train.plan(settings.batch, settings.questions_per_picture, generator)

    def batch(self, stage: int, entries: list[PlanEntry], generator: torch.Generator) -> QuestionBatch:
        """Pictures, or what the tower made of them, with questions and targets."""
        return self.train.batch(entries, generator)

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """Answer the questions of the selection; VQA accuracy selects."""
        self.model.eval()
        self._learn_what_is_familiar(accelerator.device)
        predicted = self._predicted(accelerator.device)
        name = f"{self.run.stage[stage].name}-{epoch + 1:03d}" if accelerator.is_main_process else None
        return self.validation.measure(predicted, name)

    def _learn_what_is_familiar(self, device: torch.device) -> None:
        """Pictures unlike those of the training are refused later; how unlike is told from the selection."""
        known = [same[0].file for same in self.train.records]
        others = list(gather(self.validation.selection))
        self.model.familiarity.fit(self._mean_patches(known, device), self._mean_patches(others, device))

    def _predicted(self, device: torch.device) -> dict[int | str, str]:
        model = self.whole()
        pictures = gather(self.validation.selection)
        files = list(pictures)
        predicted: dict[int | str, str] = {}
        for first in range(0, len(files), _AT_ONCE):
            names = files[first : first + _AT_ONCE]
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
        """The mean patch of each picture; of many pictures a thousand at most, evenly taken."""
        files = files[:: max(1, len(files) // _FAMILIAR)]
        parts = [
            self.inputs.load(files[first : first + _AT_ONCE], None).to(device)
            for first in range(0, len(files), _AT_ONCE)
        ]
        return torch.cat([mean_patch(self.model.features(part)) for part in parts])


def _check(run: AnswerRun) -> None:
    if (run.targets == "words") != (run.generator is not None):
        found = f"targets is {run.targets!r} and [generator] is {'given' if run.generator else 'left out'}"
        raise ConfigError(
            f"{found}: answers are generated by a captioner (targets words), or chosen without one"
        )
    if run.two_streams is None and run.two_streams_from:
        raise ConfigError(
            "two_streams_from is given without [two_streams]: say the sizes of the streams there"
        )
    if run.two_streams is not None and (run.generator is not None or run.codebook is not None):
        raise ConfigError(
            "two streams choose answers from a list and have no codebook: leave out [generator] and codebook"
        )
    if (run.codebook is None) != (run.answerer.region_alignment is None):
        raise ConfigError(
            "region alignment and a codebook go together: give codebook and [answerer.region_alignment], or "
            "neither"
        )
    longest = run.answerer.max_positions
    if run.data.max_words + 1 > longest:
        raise ConfigError(
            f"data.max_words is {run.data.max_words} and answerer.max_positions {longest}: it must be larger"
        )


def _facts(
    run: AnswerRun,
    folder: Path,
    command: str,
    train: list[QuestionRecord],
    selection: list[QuestionRecord],
) -> ModelFacts:
    """The facts of a training, for the model's card."""
    pictures, others = (len({record.file for record in records}) for records in (train, selection))
    return ModelFacts(
        name=folder.name,
        description=run.description or f"Answers over a {run.tower.kind} tower, trained with Patchword.",
        dataset=f"{Path(run.data.annotations).name}: {counted(len(train), 'question')} about {pictures} "
        f"training pictures, selected on {len(selection)} about {others} others",
        licence=run.licence or "not stated",
        command=command,
        example=train[0].question,
    )
