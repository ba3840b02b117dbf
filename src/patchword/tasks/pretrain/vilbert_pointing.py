"""Tuning ViLBERT on referring expressions: its recipe. Phrases whose region is found select the model.

Lu et al. 2019 (arXiv 1908.02265, section 3.2): a linear layer says of each region whether the phrase names
it, learnt by binary cross-entropy; a region counts as named where it overlaps the box by half. Regions are
the squares of cells that `point` chooses among.

phrases with boxes -> pre-trained streams -> a number per region -> model folder for `patchword point`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints.model import find_model, restore_weights
from patchword.data.captions import padded
from patchword.errors import ConfigError, DataError, counted
from patchword.files import text_digest
from patchword.layers.regions import five, overlaps
from patchword.models.pretraining.vilbert import VilbertPointingConfig
from patchword.tasks.pretrain.data import plan
from patchword.tasks.pretrain.phrases import Phrase, split_phrases
from patchword.tasks.pretrain.regions import candidates
from patchword.tasks.pretrain.settings import PretrainRun
from patchword.tasks.pretrain.vilbert_model import TwoStreamModel, VilbertModule, load_two_streams
from patchword.train.data import DataSettings, pixel_inputs
from patchword.train.recipe import Recipe, Validation
from patchword.train.step import Shares

_AT_ONCE = 64
FOUND = 0.5
"""Intersection over union from which a region counts as the one that is named."""


class PhraseBatch(NamedTuple):
    """B phrases, each with the regions of its picture; region 0 is the whole picture and never the answer."""

    names: tuple[str, ...]
    ids_BL: Tensor
    real_BL: Tensor
    features_BNF: Tensor
    places_BN5: Tensor
    named_BN: Tensor
    """1 for regions that the phrase names."""

    @property
    def target_count(self) -> int:
        """Number of phrases, B."""
        return len(self.names)

    @property
    def picture_count(self) -> int:
        """Number of phrases, B."""
        return len(self.names)

    def to(self, device: torch.device) -> PhraseBatch:
        """Moves all tensors to a device."""
        return PhraseBatch(self.names, *(part.to(device) for part in self[1:]))


class PointingObjective(nn.Module):
    """Which regions a phrase names."""

    def __init__(self, model: VilbertModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PhraseBatch, shares: Shares) -> dict[str, Tensor]:
        """The binary cross-entropy, summed over regions and averaged over phrases, under "loss"."""
        logits_BN = self.model.region_logits(
            batch.ids_BL, batch.real_BL, batch.features_BNF, batch.places_BN5
        )
        loss = F.binary_cross_entropy_with_logits(logits_BN.float(), batch.named_BN[:, 1:], reduction="sum")
        return {"loss": loss / shares.pictures}


class PointingTraining:
    """Model and phrases of a run, and what its stages do with them."""

    def __init__(self, run: PretrainRun, folder: Path, command: str) -> None:
        data = run.data
        if data.phrases is None or data.images is None or run.model_from is None:
            raise ConfigError(
                "vilbert_pointing tunes pre-trained streams: give data.phrases, data.images, and model_from, "
                "a model that model.kind vilbert made"
            )
        self.run, self.config = run, cast(VilbertPointingConfig, run.model)
        torch.manual_seed(run.seed)
        begun = load_two_streams(find_model(run.model_from), "cpu")
        self.vocabulary: Any = begun.vocabulary
        self.settings = begun.settings.model_copy(update={"points": True})
        self.model = VilbertModule(begun.model.tower, begun.model.vilbert, points=True)
        self.model.tower.requires_grad_(False)
        self.train, self.aside = split_phrases(Path(data.phrases), data.limit)
        self.files = list(dict.fromkeys(row.image for row in (*self.train, *self.aside)))
        self.place = {file: number for number, file in enumerate(self.files)}
        self.features_nNF, self.boxes_N4 = self._regions(begun, data)
        self.facts = begun.facts.model_copy(
            update={
                "name": folder.name,
                "description": run.description
                or f"{begun.facts.name}, tuned with Patchword to point at what a phrase names.",
                "dataset": f"{Path(data.phrases).name}: {counted(len(self.train), 'phrase')}, selected on "
                f"{counted(len(self.aside), 'other phrase')}; before: {begun.facts.dataset}",
                "licence": run.licence or "not stated",
                "command": command,
            }
        )

    def _regions(self, begun: TwoStreamModel, data: Any) -> tuple[Tensor, Tensor]:
        """Regions of all pictures, fp16, and their boxes."""
        pictures = DataSettings(
            annotations="", images=data.images, cache=data.cache, pixel_size=data.pixel_size
        )
        pixels = pixel_inputs(pictures, self.settings.preprocessing, self.files)
        self.model.tower.eval()
        parts, boxes_N4 = [], torch.zeros(0, 4)
        for first in range(0, len(self.files), _AT_ONCE):
            inputs = pixels.load(self.files[first : first + _AT_ONCE], None)
            assert inputs.pixels_B3HW is not None  # these inputs are pixels
            features, boxes_N4 = candidates(
                self.model.tower, inputs.pixels_B3HW, self.settings.vilbert.regions
            )
            parts.append(features.half())
        return torch.cat(parts), boxes_N4

    def rows(self, phrases: Sequence[Phrase]) -> PhraseBatch:
        """The batch of these phrases. Raises DataError for a phrase without a word."""
        special = self.vocabulary.special
        ids = [self.vocabulary.encode(row.phrase)[: self.settings.max_words] for row in phrases]
        if not all(ids):
            raise DataError(f"{self.run.data.phrases}: a phrase has no word: leave the line out")
        ids_BL, _ = padded(ids, special, ends=True)
        features_BNF = self.features_nNF[[self.place[row.image] for row in phrases]].float()
        named_BN = torch.stack([self._named(row) for row in phrases])
        places_BN5 = five(self.boxes_N4).expand(len(phrases), -1, -1)
        names = tuple(row.image for row in phrases)
        return PhraseBatch(names, ids_BL, ids_BL != special.pad, features_BNF, places_BN5, named_BN)

    def _named(self, row: Phrase) -> Tensor:
        """Regions that overlap the box by half, or the one that does so most."""
        overlap_N = overlaps(self.boxes_N4, torch.tensor(row.box))
        overlap_N[0] = 0
        named_N = overlap_N >= min(FOUND, float(overlap_N.max()))
        named_N[0] = False
        return named_N.float()

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as places of phrases."""
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        return plan(np.arange(len(self.train)), self.run.stage[stage].batch, generator)

    def batch(self, stage: int, entries: list[int], generator: torch.Generator) -> PhraseBatch:
        """Phrases with their regions."""
        return self.rows([self.train[place] for place in entries])

    def objective(self, stage: int) -> nn.Module:
        """The same in every stage."""
        return PointingObjective(self.model)

    def whole(self) -> TwoStreamModel:
        """The model as a person uses it."""
        device = next(self.model.parameters()).device
        return TwoStreamModel(self.model, self.settings, self.vocabulary, self.facts, device)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """Of how many phrases the best region overlaps the box by half; what the best of all regions could
        reach is logged beside it."""
        self.model.eval()
        found, reachable = [], []
        for entries in plan(np.arange(len(self.aside)), _AT_ONCE, None):
            phrases = [self.aside[place] for place in entries]
            batch = self.rows(phrases).to(accelerator.device)
            logits_BN = self.model.region_logits(*batch[1:5])
            for best, row in zip(logits_BN.argmax(1).tolist(), phrases, strict=True):
                overlap_N = overlaps(self.boxes_N4[1:], torch.tensor(row.box))
                found.append(float(overlap_N[best] >= FOUND))
                reachable.append(float(overlap_N.max() >= FOUND))
        scores = {"found": float(np.mean(found)), "reachable": float(np.mean(reachable))}
        told = f"phrases found (of {scores['reachable']:.3f} that a region could find)"
        return Validation(scores["found"], {"scores": scores}, measure=told)


def vilbert_pointing_recipe(run: PretrainRun, folder: Path, command: str) -> Recipe:
    """The tuning of two streams on phrases, ready for its first step.

    Raises ConfigError, DataError, ModelError.
    """
    training = PointingTraining(run, folder, command)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=lambda target: training.whole().write(target),
        load=lambda source: restore_weights(training.model, source, None),
        validate=training.validate,
        names=lambda batch: list(batch.names),
        facts={
            "phrases": len(training.train),
            "digest of the phrases": text_digest("\n".join(map(repr, (*training.train, *training.aside)))),
        },
    )
