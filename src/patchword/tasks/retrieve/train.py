"""Training two towers: the recipe that the loop runs.

Recall on pictures that were not trained on selects the model.

With a `captioner` section the towers also learn from captioning: a captioner reads the vision tower's grid
beside the contrastive loss, as in CoCa (Yu et al. 2022, arXiv 2205.01917; ours has whole captioners in place
of its cascaded text decoder). It teaches the patches what the pooled picture alone does not; only the towers
are saved as the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import find_model
from patchword.checkpoints.words import load_by_words
from patchword.composed import (
    CaptionerSettings,
    TextTowerSettings,
    TowerSettings,
    build_captioner,
    reader_preprocessing,
    see,
)
from patchword.data.captions import CaptionBatch, CaptionData, FeatureInputs, PictureInputs, PlanEntry
from patchword.errors import ConfigError
from patchword.lookup import look_up
from patchword.metrics.retrieval import retrieval
from patchword.models.pairs.two_towers import TwoTowers, TwoTowersConfig
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers
from patchword.tasks.retrieve.objective import CaptioningWeights, ContrastiveObjective
from patchword.train.data import (
    DataSettings,
    build_vocabulary,
    data_facts,
    pair_plan,
    pixel_inputs,
    read_splits,
    shard_notes,
    stored_inputs,
    with_vocabulary,
)
from patchword.train.gather import Gather
from patchword.train.recipe import Recipe, Validation
from patchword.train.settings import SHARDED, RunSettings, StageSettings
from patchword.train.step import StepContext, StepResult, one_step


class RetrieveStage(StageSettings, frozen=True):
    """A stage in which two towers learn."""

    captions_per_picture: int = Field(
        2, gt=0, description="captions of a picture in a batch, all of them positives"
    )
    caption_weight: float = Field(
        0.0, ge=0, description="weight of the captioner's cross-entropy beside the contrastive loss (CoCa: 2)"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each word that is spread over the vocabulary in that loss"
    )
    cached_gradients: bool = Field(
        False,
        description="contrast all parts of `accumulate` with one another, by cached gradients (GradCache): "
        "twice the forward passes, the memory of one part",
    )
    size: int | None = Field(
        None,
        ge=16,
        description="side of the pictures in this stage, for towers that take any; absent: the tower's own "
        "size",
    )


class RetrieveRun(RunSettings, frozen=True):
    """The configuration of a training of two towers."""

    task: Literal["retrieve"] = "retrieve"
    data: DataSettings
    vision: TowerSettings = Field(discriminator="kind")
    vision_from: str | None = Field(
        None, description="folder of a trained two-tower model whose weights the training begins with"
    )
    text: TextTowerSettings = Field(discriminator="kind")
    two_towers: TwoTowersConfig = TwoTowersConfig()
    captioner: CaptionerSettings | None = Field(
        None, description="captioner that is trained beside the towers and then left out (CoCa)"
    )
    sharded: bool = Field(False, description=SHARDED)
    stage: tuple[RetrieveStage, ...] = Field(min_length=1, description="what happens, in order")


def retrieve_recipe(run: RetrieveRun, folder: Path, command: str) -> Recipe:
    """The training of two towers, ready for its first step. Raises ConfigError, DataError, ModelError."""
    _check_caption_weights(run)
    training = RetrieveTraining(run, folder, command)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=training.save,
        load=lambda source: checkpoint.load_weights(training.towers, source),
        validate=training.validate,
        step=training.step,
        facts=data_facts(training.train.records, training.selection.records, training.vocabulary),
        after_step=lambda step, objective: {"scale": training.towers.scale().item()},
        notes=training.notes,
        state=training.captioner_state,
        load_state=training.load_captioner_state,
    )


class RetrieveTraining:
    """Model and data of a run, and what its stages do with them."""

    def __init__(self, run: RetrieveRun, folder: Path, command: str) -> None:
        self.run = run
        train, selection = read_splits(run.data)
        self.vocabulary = build_vocabulary(run.data, train, run.text)
        torch.manual_seed(run.seed)
        text = with_vocabulary(run.text, self.vocabulary, run.data.max_words)
        parts: dict[str, Any] = {"vision": run.vision, "text": text, "two_towers": run.two_towers}
        draft = TwoTowerSettings.model_construct(**parts)  # what the towers decide is added below
        self.towers, self.notes = build_two_towers(draft), shard_notes(run.data, train)
        if run.vision_from:
            self.notes += self._begin_from(find_model(run.vision_from), draft)
        self.captioner = None
        self.model: nn.Module = self.towers
        if run.captioner is not None:
            self.captioner = build_captioner(
                run.captioner, self.towers.vision.width, self.vocabulary.size, None
            )
            self.model = nn.ModuleDict({"towers": self.towers, "captioner": self.captioner})
        preprocessing = reader_preprocessing(self.towers.vision.preprocessing)
        self.settings = TwoTowerSettings(
            vision=run.vision,
            text=text,
            two_towers=run.two_towers,
            preprocessing=preprocessing,
            vocabulary_size=self.vocabulary.size,
        )
        inputs = self._inputs([record.file for record in (*train, *selection)])
        self.inputs = tuple(_resized(inputs, stage.size) for stage in run.stage)
        self.train = CaptionData.build(train, self.vocabulary, inputs, run.data.max_words)
        self.selection = CaptionData.build(selection, self.vocabulary, inputs, run.data.max_words)
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or f"{run.vision.kind} and {run.text.kind} towers, trained contrastively with Patchword.",
            dataset=f"{Path(run.data.annotations).name}: {len(train)} training pictures, "
            f"selected on {len(selection)} others",
            licence=run.licence or "not stated",
            command=command,
        )

    def _begin_from(self, source: Path, draft: TwoTowerSettings) -> list[str]:
        """The weights of `vision_from`; words that both know keep theirs. Gives what the person is told."""

        def build(size: int) -> TwoTowers:
            sized = {**draft.text.architecture, "vocab_size": size} if draft.text.architecture else None
            text = draft.text.model_copy(update={"architecture": sized})
            return build_two_towers(draft.model_copy(update={"text": text}))

        said = load_by_words(
            self.towers,
            source,
            self.vocabulary,
            build,
            lambda towers: checkpoint.load_weights(towers, source),
        )
        return [] if said is None else [said]

    def _inputs(self, files: list[str]) -> PictureInputs:
        """Pictures, or what the vision tower, or its lower layers, made of them.

        Raises ConfigError where a stage would train what that replaces, or see the pictures at another size.
        """
        data, preprocessing = self.run.data, self.settings.preprocessing
        if not data.features:
            return pixel_inputs(data, preprocessing, files)
        resized = [stage.name for stage in self.run.stage if stage.size is not None]
        if resized:
            raise ConfigError(
                f"data.features was made at one size, and stage {resized[0]!r} sets another: leave one of "
                "them out"
            )
        vision = "vision" if self.captioner is None else "towers.vision"
        return stored_inputs(Path(data.features), self.towers.vision, preprocessing, self.run.stage, vision)

    def objective(self, stage: int) -> nn.Module:
        """The contrast, and the captioner's loss beside it where the stage weighs it."""
        settings = self.run.stage[stage]
        captioner = self.captioner if settings.caption_weight > 0 else None
        weights = CaptioningWeights(settings.caption_weight, settings.label_smoothing)
        return ContrastiveObjective(self.towers, self.vocabulary.special.pad, Gather(), captioner, weights)

    def step(self, context: StepContext, parts: Sequence[CaptionBatch]) -> StepResult:
        """The usual step, or one with cached gradients where the stage asks for it."""
        if getattr(context.settings, "cached_gradients", False):
            result: StepResult = look_up("tasks.retrieve.cached_gradients:cached_step")(context, parts)
            return result
        return one_step(context, parts)

    def plan(self, stage: int, epoch: int) -> list[list[PlanEntry]]:
        """The batches of an epoch, all of one size."""
        settings = self.run.stage[stage]
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        return pair_plan(
            self.train, settings.batch, settings.captions_per_picture, generator, self.run.data.window
        )

    def batch(self, stage: int, entries: list[PlanEntry], generator: torch.Generator) -> CaptionBatch:
        """Pictures at the size of the stage, with captions."""
        return replace(self.train, inputs=self.inputs[stage]).batch(entries, generator)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """Recalls both ways over all captions of the selection; rSum selects."""
        self.model.eval()
        pictures: list[Tensor] = []
        texts: list[Tensor] = []
        owners: list[Tensor] = []
        for entries in self.selection.plan(
            64, max(len(tokens) for tokens in self.selection.tokens), False, None
        ):
            batch = self.selection.batch(entries, None).to(accelerator.device)
            owners.append(batch.picture_of_row_R + sum(len(part) for part in pictures))
            pictures.append(self.towers.pictures_of(see(self.towers.vision, batch.inputs)))
            texts.append(
                self.towers.embed_texts(batch.tokens_RT, batch.tokens_RT != self.vocabulary.special.pad)
            )
        similarity_NC = (torch.cat(pictures) @ torch.cat(texts).T).float().cpu().numpy()
        scores = {
            name: score.value
            for name, score in retrieval(similarity_NC, torch.cat(owners).cpu().numpy()).items()
        }
        return Validation(scores["rSum"], {"scores": scores}, measure="rSum")

    def save(self, folder: Path) -> None:
        """The two towers; the captioner that taught them is left out."""
        device = next(self.model.parameters()).device
        TwoTowerModel(self.towers, self.settings, self.vocabulary, self.facts, device).write(folder)

    def captioner_state(self) -> dict[str, Tensor]:
        """The captioner's weights: they are no part of the model, and a resumed training needs them."""
        return {} if self.captioner is None else self.captioner.state_dict()

    def load_captioner_state(self, tensors: dict[str, Tensor]) -> None:
        """The counterpart of `captioner_state`."""
        if self.captioner is not None:
            self.captioner.load_state_dict(tensors)


def _check_caption_weights(run: RetrieveRun) -> None:
    """Raises ConfigError where a stage weighs a captioner that there is not, or none weighs the one there
    is."""
    weighed = [stage.name for stage in run.stage if stage.caption_weight > 0]
    if weighed and run.captioner is None:
        raise ConfigError(
            f"stage {weighed[0]!r} has a caption_weight and there is no [captioner] section: add one, or "
            "set the weight to 0"
        )
    if run.captioner is not None and not weighed:
        raise ConfigError(
            "a [captioner] section is given and no stage has a caption_weight above 0: it would learn nothing"
        )


def _resized(inputs: PictureInputs, size: int | None) -> PictureInputs:
    """The same pictures, seen at another size; stored features have the size at which they were made."""
    if size is None:
        return inputs
    if isinstance(inputs, FeatureInputs):
        raise ConfigError("a stage has a size, and data.features stores one size: leave one of them out")
    seen: Any = inputs  # from the cache of pixels, or decoded when they are asked for
    return replace(seen, preprocessing=seen.preprocessing.model_copy(update={"size": size}))
