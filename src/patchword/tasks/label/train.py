"""Training a labelling model on a table: its recipe. Rows that were not trained on select the model.

table -> labels -> towers -> pixels or stored tokens -> model -> stages -> validation -> model folder
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.data.labels import LabelBatch
from patchword.models.fusion.prompt_fusion import PromptFusionConfig
from patchword.tasks.label.model import LabellingModel, LabellingSettings, build_label_model, reads
from patchword.tasks.label.objective import LabelObjective, lower_of
from patchword.tasks.label.rows import LabelRows
from patchword.tasks.label.settings import LabelRun, LabelSections, whole
from patchword.tasks.label.validate import scores_on
from patchword.train.recipe import Recipe, Validation


def label_recipe(run: LabelRun, folder: Path, command: str) -> Recipe:
    """The training of a labelling model, ready for its first step.

    Raises ConfigError, DataError, ModelError.
    """
    training = LabelTraining(run, folder, command)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.rows.plan,
        batch=training.rows.batch,
        objective=training.objective,
        save=training.save,
        load=lambda source: checkpoint.load_weights(training.model, source),
        validate=training.validate,
        names=where,
        facts=training.rows.data_facts(),
    )


class LabelTraining:
    """Model and rows of a run, and what its stages do with them."""

    def __init__(self, run: LabelRun, folder: Path, command: str) -> None:
        before_last = run.model.fused_layers if isinstance(run.model, PromptFusionConfig) else 0
        self.rows = LabelRows(run, reads(run.model), before_last)
        towers = self.rows.towers
        settings = whole(run.model, len(self.rows.labels))
        torch.manual_seed(run.seed)
        self.model = build_label_model(towers.vision, towers.text, settings)
        self.settings = LabellingSettings(
            vision=towers.vision_settings,
            text=towers.text_settings,
            model=settings,
            preprocessing=towers.preprocessing,
            vocabulary_size=towers.vocabulary.size,
            max_words=self.rows.max_words,
            labels=self.rows.labels,
            columns=run.data.columns,
        )
        self.facts = facts_of(run, folder, command, self.rows, self.model)

    def objective(self, stage: int) -> nn.Module:
        """Cross-entropy of the labels, the same in every stage."""
        return LabelObjective(self.model, self.settings.several, self.rows.before_last)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """Accuracy selects, or where rows may have several labels the micro F1."""
        self.model.eval()

        def logits(batch: LabelBatch) -> Tensor:
            lower = lower_of(self.model, batch, self.rows.before_last)
            return self.model.fuse(lower, batch.has_image_B, batch.has_text_B)

        scores = scores_on(self.rows.selection, self.rows.labels, logits, accelerator.device)
        return Validation(scores["micro_F1"], {"scores": scores}, measure="micro F1")

    def save(self, folder: Path) -> None:
        """The model as a person uses it."""
        device = next(self.model.parameters()).device
        vocabulary = self.rows.towers.vocabulary
        LabellingModel(self.model, self.settings, vocabulary, self.facts, device).write(folder)


def where(batch: LabelBatch) -> list[str]:
    """What messages call the rows of a batch: file and line."""
    return list(batch.wheres)


def facts_of(run: LabelSections, folder: Path, command: str, rows: LabelRows, model: nn.Module) -> ModelFacts:
    """The facts of a training, for the model's card."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return ModelFacts(
        name=folder.name,
        description=run.description or f"{run.model.kind} over two towers, trained with Patchword.",
        dataset=f"{Path(run.data.table).name}: {len(rows.train.places)} training rows, "
        f"selected on {len(rows.selection.places)} others",
        licence=run.licence or "not stated",
        command=command,
        trained_parameters=trained,
        **run.model_dump(include={"towers", "vision_from", "text_from"}),
    )
