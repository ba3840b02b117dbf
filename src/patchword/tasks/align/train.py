"""Training patch-word alignment (LAPS) on top of two towers: the recipe that the loop runs.

two towers (trained, or configured here) -> maps and head -> hinge with hard negatives -> recall on held-out
pictures selects the best model
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.composed import TextTowerSettings, TowerSettings, reader_preprocessing
from patchword.data.captions import CaptionBatch, CaptionData, PictureInputs, PlanEntry
from patchword.errors import ConfigError
from patchword.hub import is_hub
from patchword.layers.all_pairs import all_pairs
from patchword.layers.codebook import Codebook
from patchword.layers.region_alignment import RegionAlignmentConfig
from patchword.metrics.retrieval import retrieval
from patchword.models.pairs.patch_slimming import PatchSlimmingConfig
from patchword.models.pairs.two_towers import TwoTowersConfig
from patchword.tasks.align.model import AlignmentModel, AlignModelSettings, build_aligned, cached
from patchword.tasks.align.objective import Alignment, AlignmentLoss, HingeSettings, visual_features
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings
from patchword.train.data import (
    DataSettings,
    build_vocabulary,
    data_facts,
    pair_plan,
    pixel_inputs,
    read_splits,
    stored_inputs,
    with_vocabulary,
)
from patchword.train.gather import Gather
from patchword.train.recipe import Recipe, Validation
from patchword.train.settings import RunSettings, StageSettings


class AlignStage(StageSettings, frozen=True):
    """A stage in which patches and words learn to find each other."""

    captions_per_picture: int = Field(
        1, gt=0, description="captions of a picture in a batch, all of them positives"
    )
    objective: AlignmentLoss = Field(default_factory=HingeSettings, description="what the stage minimises")


class AlignRun(RunSettings, frozen=True):
    """The configuration of a training of patch-word alignment.

    The towers come from a trained model, or start here.
    """

    task: Literal["align"] = "align"
    data: DataSettings
    towers: str | None = Field(
        None,
        description="two-tower model to begin with: shipped name, folder or hub id; brings its vocabulary",
    )
    vision: TowerSettings | None = Field(
        None, discriminator="kind", description="without `towers`: the vision tower"
    )
    text: TextTowerSettings | None = Field(
        None, discriminator="kind", description="without `towers`: the text tower"
    )
    two_towers: TwoTowersConfig = Field(
        TwoTowersConfig(), description="without `towers`: the shared space of the shortlist"
    )
    patch_slimming: PatchSlimmingConfig
    region_alignment: RegionAlignmentConfig | None = Field(
        None, description="patches meet concepts before they meet words; needs a codebook"
    )
    codebook: str | None = Field(
        None, description="codebook folder (`patchword codebook`) made with the same towers"
    )
    stage: tuple[AlignStage, ...] = Field(min_length=1, description="what happens, in order")

    @model_validator(mode="after")
    def _one_origin(self) -> AlignRun:
        if (self.towers is None) == (self.vision is None or self.text is None):
            raise ValueError(
                "the towers are either those of a trained model (towers) or of the tables [vision] and "
                "[text]; give one"
            )
        if (self.codebook is None) != (self.region_alignment is None):
            raise ValueError("region_alignment and codebook go together: give both, or neither")
        return self


def align_recipe(run: AlignRun, folder: Path, command: str) -> Recipe:
    """The training of patch-word alignment, ready for its first step.

    Raises ConfigError, DataError, ModelError.
    """
    training = AlignTraining(run, folder, command)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=training.save,
        load=lambda source: checkpoint.load_weights(training.model, source),
        validate=training.validate,
        facts=data_facts(training.train.records, training.selection.records, training.vocabulary),
    )


class AlignTraining:
    """Model and data of a run, and what its stages do with them."""

    def __init__(self, run: AlignRun, folder: Path, command: str) -> None:
        self.run = run
        train, selection = read_splits(run.data)
        torch.manual_seed(run.seed)
        trained = None if run.towers is None else _trained_towers(run.towers)
        self.vocabulary = (
            build_vocabulary(run.data, train, run.text) if trained is None else trained.vocabulary
        )
        codebook = None if run.codebook is None else Codebook.read(Path(run.codebook))
        settings: dict[str, Any] = {
            "patch_slimming": run.patch_slimming,
            "region_alignment": run.region_alignment,
        }
        settings |= {"codebook": None if codebook is None else codebook.describe(), **self._towers(trained)}
        self.model = build_aligned(AlignModelSettings.model_construct(**settings), codebook)
        if trained is None:
            settings["preprocessing"] = reader_preprocessing(self.model.towers.vision.preprocessing)
        self.settings = AlignModelSettings(**settings)
        if trained is not None:
            self.model.towers.load_state_dict(trained.model.state_dict())
            self.model.begin_in_the_shared_space()
        if codebook is not None:
            codebook.check_tower(checkpoint.tower_id(self.model.towers.vision))
        inputs = self._inputs([record.file for record in (*train, *selection)])
        self.train = CaptionData.build(train, self.vocabulary, inputs, run.data.max_words)
        self.selection = CaptionData.build(selection, self.vocabulary, inputs, run.data.max_words)
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or "Patch-word alignment over two towers (LAPS), trained with Patchword.",
            dataset=f"{Path(run.data.annotations).name}: {len(train)} training pictures, "
            f"selected on {len(selection)} others",
            licence=run.licence or "not stated",
            command=command,
        )

    def _towers(self, trained: TwoTowerModel | None) -> dict[str, Any]:
        if trained is not None:
            return {name: getattr(trained.settings, name) for name in TwoTowerSettings.model_fields}
        run = self.run
        assert run.text is not None  # the configuration has one where it names no trained towers
        text = with_vocabulary(run.text, self.vocabulary, run.data.max_words)
        return {
            "vision": run.vision,
            "text": text,
            "two_towers": run.two_towers,
            "vocabulary_size": self.vocabulary.size,
        }

    def _inputs(self, files: list[str]) -> PictureInputs:
        """Pictures, or stored features of the vision tower or of its lower layers.

        Raises ConfigError where a stage would train the stored part.
        """
        data = self.run.data
        if not data.features:
            return pixel_inputs(data, self.settings.preprocessing, files)
        tower, preprocessing = self.model.towers.vision, self.settings.preprocessing
        return stored_inputs(Path(data.features), tower, preprocessing, self.run.stage, "towers.vision")

    def objective(self, stage: int) -> nn.Module:
        """The loss of the alignment, and of the towers beside it."""
        settings = self.run.stage[stage]
        return Alignment(self.model, settings.objective, settings.epochs, Gather())

    def plan(self, stage: int, epoch: int) -> list[list[PlanEntry]]:
        """The batches of an epoch, all of one size."""
        settings, generator = self.run.stage[stage], np.random.default_rng([self.run.seed, stage, epoch])
        return pair_plan(self.train, settings.batch, settings.captions_per_picture, generator)

    def batch(self, stage: int, entries: list[PlanEntry], generator: torch.Generator) -> CaptionBatch:
        """Pictures, or what the tower made of them, with captions."""
        return self.train.batch(entries, generator)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """Recalls both ways over all captions of the selection, by alignment; rSum selects.

        The towers' own recalls stand beside.
        """
        self.model.eval()
        device = accelerator.device
        owners: list[Tensor] = []
        pictures: list[Any] = []

        def texts() -> Any:
            for entries in self.selection.plan(
                64, max(len(tokens) for tokens in self.selection.tokens), False, None
            ):
                batch = self.selection.batch(entries, None).to(device)
                owners.append(batch.picture_of_row_R + sum(len(part.tokens) for part in pictures))
                pictures.append(self.model.look(visual_features(self.model, batch.inputs)))
                mask_RT = torch.arange(batch.tokens_RT.shape[1], device=device) < batch.lengths_R[:, None]
                yield self.model.read(batch.tokens_RT, mask_RT), batch.lengths_R

        captions = cached(texts())
        images = cached((part, torch.full((len(part.tokens),), part.tokens.shape[1])) for part in pictures)
        owner_J = torch.cat(owners).cpu().numpy()
        fine_IJ = all_pairs(self.model.head, images.tokens, captions.tokens, self.model.class_token, device)
        aligned, towers = (
            retrieval(scores.numpy(), owner_J)
            for scores in (fine_IJ, images.vectors_NE @ captions.vectors_NE.T)
        )
        scores = {name: score.value for name, score in aligned.items()}
        return Validation(
            scores["rSum"],
            {"scores": scores, "towers": {name: score.value for name, score in towers.items()}},
        )

    def save(self, folder: Path) -> None:
        """The towers with the head over them."""
        device = next(self.model.parameters()).device
        AlignmentModel(self.model, self.settings, self.vocabulary, self.facts, device).write(folder)


def _trained_towers(name: str) -> TwoTowerModel:
    if is_hub(name):
        raise ConfigError(
            f"towers = {name!r}: a CLIP of transformers begins a training through [vision] and [text] with "
            "its id as source"
        )
    return load_two_towers(name, "cpu")
