"""Training a captioner: its recipe, in the order in which things happen.

records -> vocabulary -> pixels or stored features -> model -> stages -> validation by decoding -> model
folder
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import find_model, restore_weights
from patchword.checkpoints.towers import lacks_class_branch, load_tower_weights
from patchword.checkpoints.words import load_by_words
from patchword.composed import CaptionModel, prototypes_of, reader_preprocessing
from patchword.data.captions import CaptionBatch, CaptionData, Inputs, PictureInputs, PlanEntry
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord
from patchword.errors import ConfigError, counted
from patchword.layers.codebook import Codebook, concept_use
from patchword.lookup import look_up
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.objective import (
    CrossEntropy,
    CrossEntropySettings,
    Reward,
    SelfCritical,
    SelfCriticalSettings,
    is_used,
    whole_batch,
    whole_step,
)
from patchword.tasks.caption.settings import CaptionRun
from patchword.tasks.caption.validate import CaptionValidation
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.train.data import (
    build_vocabulary,
    cached_features,
    data_facts,
    panoptic_classes,
    pixel_inputs,
    read_splits,
    shard_notes,
    stored_inputs,
)
from patchword.train.follow import followed, minimum_count_for
from patchword.train.recipe import Recipe, Validation
from patchword.types import Prototypes

TEXT_TOWERS, EMBED_CAPTIONS = "tasks.caption.texts:text_towers", "tasks.caption.texts:embed_captions"
"""Needed where captions are a regulariser, and imported only there."""
REWARD = "tasks.caption.reward:CaptionReward"
"""Needed where sampled captions are rewarded."""
AVERAGE = "train.average:Average"
"""Needed where a running average of the weights is saved."""
COPIED_WORDS, SET_WORDS = "tasks.caption.copying:with_copied_words", "tasks.caption.copying:set_words"
"""Needed where words can be copied."""
RAMP_FROM = -10.0
"""Log-bias at which a ramp of the memory begins: a prototype counts as much as e^-10 of a word."""


def caption_recipe(run: CaptionRun, folder: Path, command: str) -> Recipe:
    """The training of a captioner, ready for its first step. Raises ConfigError, DataError, ModelError."""
    training = CaptionTraining(run, folder, command)
    selected = training.validation.selection
    return Recipe(
        model=training.model,
        stages=training.run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=lambda target: training.whole().write(target),
        load=training.load,
        validate=training.validate,
        before_step=training.before_step,
        after_step=training.after_step,
        state=training.state,
        load_state=training.load_state,
        notes=training.notes,
        facts=data_facts(training.train.records, selected.records, training.vocabulary),
        resolved=training.run if run.follow_data else None,
    )


class CaptionTraining:
    """Model and data of a run, and what its stages do with them."""

    def __init__(self, run: CaptionRun, folder: Path, command: str) -> None:
        train, selection = read_splits(run.data)
        self.notes = shard_notes(run.data, train)
        if run.follow_data:
            run, said = following(run, train, len(selection))
            self.notes += said
        self.run = run
        self.vocabulary = build_vocabulary(run.data, train)
        torch.manual_seed(run.seed)
        codebook = None if run.codebook is None else Codebook.read(Path(run.codebook))
        taught = self.vocabulary.size - 4
        copies = getattr(run.captioner, "copying", None) is not None and codebook is not None
        if copies:
            self.vocabulary = look_up(COPIED_WORDS)(self.vocabulary, codebook)
        self.model = begun_model(run, self.vocabulary.size, codebook)
        if copies:
            look_up(SET_WORDS)(self.model.captioner.copying, self.vocabulary, taught, codebook)
        if run.captioner_from:
            self.notes += begin_from(self.model, run, self.vocabulary, codebook)
        self.average = look_up(AVERAGE)(self.model, run.average) if run.average else None
        self._towers = self._text_towers(codebook)
        preprocessing = reader_preprocessing(self.model.tower.preprocessing)
        inputs = read_inputs(run, self.model, preprocessing, [record.file for record in (*train, *selection)])
        self.train = CaptionData.build(train, self.vocabulary, inputs, run.data.max_words)
        if run.data.panoptic:
            cells = _grid(run, self.model, preprocessing)
            segmentation = panoptic_classes(run.data, train, preprocessing, cells)
            self.train = replace(self.train, segmentation=segmentation)
        selected = CaptionData.build(selection, self.vocabulary, inputs, run.data.max_words)
        self.validation = CaptionValidation(selected, folder)
        self.settings = ModelSettings(
            tower=run.tower,
            captioner=run.captioner,
            preprocessing=preprocessing,
            decoding=run.decoding,
            vocabulary_size=self.vocabulary.size,
            codebook=None if codebook is None else codebook.describe(),
        )
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or f"{run.captioner.kind} over a {run.tower.kind} tower, trained with Patchword.",
            dataset=f"{Path(run.data.annotations).name}: {len(train)} training pictures, "
            f"selected on {len(selection)} others",
            licence=run.licence or "not stated",
            command=command,
        )
        self._reward: Reward | None = None
        self._step_began = time.perf_counter()

    def _text_towers(self, codebook: Codebook | None) -> Any:
        """What embeds the captions in the codebook's space; None where no stage asks for it."""
        if codebook is None or not _embeds_captions(self.run):
            return None
        return look_up(TEXT_TOWERS)(self.run.text_from, codebook.tower)

    def whole(self) -> CaptioningModel:
        """The model as a person uses it: with the averaged weights, where an average is kept."""
        device = next(self.model.parameters()).device
        model = self.model if self.average is None else self.average.model.to(device)
        return CaptioningModel(model, self.settings, self.vocabulary, self.facts, device)

    def plan(self, stage: int, epoch: int) -> list[list[PlanEntry]]:
        """The batches of an epoch; a picture comes once where its captions are sampled."""
        settings = self.run.stage[stage]
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        is_sampled = isinstance(settings.objective, SelfCriticalSettings)
        per_picture = 1 if is_sampled else settings.captions_per_picture
        window = self.run.data.window
        return self.train.plan(settings.batch, per_picture, settings.bucketed, generator, window)

    def batch(self, stage: int, entries: list[PlanEntry], generator: torch.Generator) -> CaptionBatch:
        """Pictures, or what the tower made of them, with captions."""
        return self.train.batch(entries, generator)

    def objective(self, stage: int) -> nn.Module:
        """What a stage minimises."""
        settings = self.run.stage[stage].objective
        if isinstance(settings, SelfCriticalSettings):
            return SelfCritical(self.model, settings, self.vocabulary.special, self.reward())
        if is_used(settings.text_regulariser) and self.train.texts is None:
            device = next(self.model.parameters()).device
            texts = look_up(EMBED_CAPTIONS)(self._towers, self.train.records, device)
            self.train = replace(self.train, texts=texts)
            self._towers = None  # a text tower of which nothing more is needed
        learns = self._prototypes is not None and self.run.stage[stage].memory != "off"
        return CrossEntropy(self.model, settings, self.vocabulary.special, wants_trace=learns)

    def reward(self) -> Reward:
        """CIDEr-D with the document frequencies of the training captions."""
        if self._reward is None:
            end = self.vocabulary.special.end
            self._reward = look_up(REWARD)(self.train.records, self.vocabulary.tokens, end)
        return self._reward

    @property
    def _prototypes(self) -> Prototypes | None:
        return prototypes_of(self.model.captioner)

    def before_step(self, stage: int, progress: float, objective: nn.Module) -> None:
        """Sets how much the prototype memory takes part: `progress` is the share of the stage done."""
        self._step_began = time.perf_counter()
        if isinstance(objective, CrossEntropy):
            objective.forget()
        if self._prototypes is not None:
            levels = {"off": -math.inf, "ramp": RAMP_FROM * (1 - progress), "on": 0.0}
            self._prototypes.set_log_bias(levels[self.run.stage[stage].memory])

    def after_step(self, step: int, objective: nn.Module) -> dict[str, float]:
        """The prototype memory observes the captions of the step, then the average takes in the weights."""
        numbers = self._observe(objective)
        if self.average is not None:
            self.average.update(self.model, step)
        return numbers

    def _observe(self, objective: nn.Module) -> dict[str, float]:
        """Shows the captions of the step to the prototype memory, which is frozen while self-critical."""
        if isinstance(objective, SelfCritical):
            seconds, objective.reward_seconds = objective.reward_seconds, 0.0
            return {"reward_share": seconds / (time.perf_counter() - self._step_began)}
        numbers: dict[str, float] = {}
        if objective.concepts and self.settings.codebook is not None:
            numbers |= concept_use(torch.cat(objective.concepts), len(self.settings.codebook["words"]))
        if objective.seen:
            seen = whole_batch(whole_step(objective.seen))
            self.model.captioner.observe(
                seen.trace, seen.tokens_RT, seen.lengths_R, seen.memory, seen.pictures_R
            )
            if self._prototypes is not None:
                numbers |= self._prototypes.statistics()
        return numbers

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """Captions of the selection; CIDEr selects."""
        name = f"{self.run.stage[stage].name}-{epoch + 1:03d}"
        return self.validation.measure(self.whole(), name, accelerator.is_main_process)

    def load(self, source: Path) -> None:
        """The weights of a model folder into the model and its average; a resumed run then gets its own."""
        for model in (self.model,) if self.average is None else (self.average.model, self.model):
            load_weights(model, source)

    def state(self) -> dict[str, Tensor]:
        """What is no part of the saved model: the bank of the prototype memory and, where an average is
        saved, the weights that are trained.
        """
        state = {} if self._prototypes is None else self._prototypes.resume_state()
        return state if self.average is None else state | self.average.state(self.model)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The counterpart of `state`."""
        if self.average is not None:
            self.average.load_state(self.model, tensors)
        if self._prototypes is not None:
            self._prototypes.load_resume_state(tensors)


def following(
    run: CaptionRun, train: Sequence[CaptionRecord], selecting: int
) -> tuple[CaptionRun, list[str]]:
    """The run with everything that follows the data, and what that is, as lines to be shown; `selecting` is
    the number of pictures that select a model."""
    captions = sum(len(record.captions) for record in train)
    data = run.data
    if "minimum_count" not in data.model_fields_set:
        data = data.model_copy(update={"minimum_count": minimum_count_for(captions)})
    decoding = run.decoding
    if data.splitter == "english":  # characters are repeated in words, and classifiers between them
        unrepeated = {"no_repeat_ngram": 2, "no_stutter": True}
        given = {name: getattr(decoding, name) for name in unrepeated if name in decoding.model_fields_set}
        decoding = decoding.model_copy(update=unrepeated | given)
    stages, notes = [], []
    for number, stage in enumerate(run.stage):
        by_caption = stage.captions_per_picture == 0 and isinstance(stage.objective, CrossEntropySettings)
        rows = captions if by_caption else len(train)
        stages.append(followed(stage, rows, number == 0 and run.captioner_from is None, selecting))
        steps = math.ceil(rows / stage.batch)
        found = stages[-1]
        end = f"patience {found.patience} validations" if found.patience else "no patience"
        if found.keep == "last":
            end += (
                f"; {counted(selecting, 'picture is', 'pictures are')} too few to select a "
                "model: the last one is kept"
            )
        notes.append(
            f"{found.name}: {counted(found.epochs, 'epoch')} of {counted(steps, 'step')}, warm-up "
            f"{counted(found.warm_up_steps, 'step')}, "
            f"a validation every {found.validate_every} epochs, {end}"
        )
    head = (
        f"following the data, {len(train)} training pictures with "
        f"{counted(captions, 'caption')}: words that occur "
        f"{data.minimum_count} times or more"
    )
    return run.model_copy(update={"data": data, "decoding": decoding, "stage": tuple(stages)}), [head, *notes]


def begun_model(run: CaptionRun, vocabulary_size: int, codebook: Codebook | None) -> CaptionModel:
    """The model over the tower that the run begins with.

    Raises ModelError, ConfigError where they do not fit.
    """
    model = CaptionModel.build(run.tower, run.captioner, vocabulary_size, codebook)
    if run.tower_from:
        load_tower_weights(model.tower, find_model(run.tower_from))
    if codebook is not None:
        _check_codebook(run, model, codebook)
    return model


def begin_from(
    model: CaptionModel,
    run: CaptionRun,
    vocabulary: Vocabulary | Subwords | Pieces,
    codebook: Codebook | None,
) -> list[str]:
    """The weights of `captioner_from`, where there is one, into the model; words that both know keep theirs.

    Gives what the person is told. Raises ModelError, ConfigError where the two do not fit.
    """
    if not run.captioner_from:
        return []
    source = find_model(run.captioner_from)
    said = load_by_words(
        model,
        source,
        vocabulary,
        lambda size: CaptionModel.build(run.tower, run.captioner, size, codebook),
        lambda whole: load_weights(whole, source),
    )
    return [] if said is None else [said]


def load_weights(model: CaptionModel, folder: Path) -> None:
    """The weights of a model folder into the model; what calibrated its concepts (`patchword concepts`) is of
    its pictures and stays behind. Raises ModelError where they do not fit.
    """
    digest = checkpoint.read_config(folder).get("tower_sha256")
    if digest is not None:
        restore_weights(model, folder, digest)
        return
    if lacks_class_branch(model.tower, folder):
        # A run that begins to train blocks of a tower which the folder holds frozen.
        load_tower_weights(model.tower, folder)
    else:
        checkpoint.load_weights(model.tower, folder, "tower.")
    checkpoint.load_weights(model.captioner, folder, "captioner.")


def _check_codebook(run: CaptionRun, model: CaptionModel, codebook: Codebook) -> None:
    """Raises ModelError for a codebook of another tower.

    Raises ConfigError for one that `captioner_from` was not trained with.
    The tower of `captioner_from` may have learnt since its codebook was made, which the codebook's id does
    not know.
    """
    if run.captioner_from is None:
        codebook.check_tower(checkpoint.tower_id(model.tower))
    elif checkpoint.read_config(find_model(run.captioner_from)).get("codebook") != codebook.describe():
        raise ConfigError(
            f"{run.captioner_from} was trained with another codebook than {run.codebook}: give the one it has"
        )


def _embeds_captions(run: CaptionRun) -> bool:
    objectives = [stage.objective for stage in run.stage]
    return any(isinstance(one, CrossEntropySettings) and is_used(one.text_regulariser) for one in objectives)


def read_inputs(
    run: CaptionRun, model: CaptionModel, preprocessing: Preprocessing, files: list[str]
) -> PictureInputs:
    """Pictures from the pixel cache, or what a store says that the tower made of them.

    Raises ConfigError, StoreError for a store that does not fit the run.
    """
    data = run.data
    folder: Path | str | None = data.features
    if run.store_features and not folder:
        folder = cached_features(data, model.tower, preprocessing, list(dict.fromkeys(files)))
    if not folder:
        return pixel_inputs(data, preprocessing, files)
    inputs = stored_inputs(Path(folder), model.tower, preprocessing, run.stage)
    if data.panoptic and inputs.store.manifest.get("views", 1) > 1:
        raise ConfigError(
            "data.panoptic labels the cells of plain pictures, and the store of data.features holds random "
            "views too"
        )
    return inputs


def _grid(run: CaptionRun, model: CaptionModel, preprocessing: Preprocessing) -> tuple[int, int]:
    """Rows and columns of the tower's patches. Raises ConfigError where they form no grid."""
    pixels_B3HW = torch.zeros(1, 3, *preprocessing.hw)
    with torch.inference_mode():
        hw = model.eval().features(Inputs(pixels_B3HW=pixels_B3HW)).hw
    if hw is None:
        raise ConfigError(
            f"data.panoptic labels cells of a grid, and the {run.tower.kind} tower has none: "
            "leave data.panoptic out"
        )
    return hw
