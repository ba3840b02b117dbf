"""Training a captioner: the recipe that the loop runs, in the order in which things happen.

records -> vocabulary -> pixels or stored features -> model -> stages -> validation by decoding -> model folder
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import find_model, restore_weights
from patchword.checkpoints.towers import load_tower_weights
from patchword.composed import (
    CaptionerSettings,
    CaptionModel,
    TowerSettings,
    prototypes_of,
    reader_preprocessing,
    region_alignment_of,
)
from patchword.data.captions import CaptionBatch, CaptionData, Inputs, PictureInputs, PlanEntry
from patchword.device import wait
from patchword.errors import ConfigError
from patchword.layers.codebook import Codebook, concept_use
from patchword.log import progress
from patchword.lookup import look_up
from patchword.losses import caption_cross_entropy
from patchword.metrics import score_captions
from patchword.tasks.caption.model import CaptioningModel, DecodingSettings, ModelSettings
from patchword.tasks.caption.objective import (
    CrossEntropy,
    CrossEntropySettings,
    SelfCritical,
    SelfCriticalSettings,
    is_used,
)
from patchword.tasks.caption.reward import CaptionReward
from patchword.train.data import (
    CaptionDataSettings,
    build_vocabulary,
    panoptic_classes,
    pixel_inputs,
    read_splits,
    stored_inputs,
)
from patchword.train.loop import Validation
from patchword.train.settings import RunSettings, StageSettings
from patchword.types import Prototypes

TEXT_TOWERS, EMBED_CAPTIONS = "tasks.caption.texts:text_towers", "tasks.caption.texts:embed_captions"
"""Needed where captions are a regulariser, and imported only there."""
RAMP_FROM = -10.0
"""Log-bias at which a ramp of the memory begins: a prototype counts as much as e^-10 of a word."""


class CaptionStage(StageSettings, frozen=True):
    """A stage in which a captioner learns."""

    objective: CrossEntropySettings | SelfCriticalSettings = Field(
        default_factory=CrossEntropySettings, discriminator="kind", description="what the stage minimises"
    )
    captions_per_picture: int = Field(
        0, ge=0, description="captions of a picture in a batch; 0: every caption is a row of its own"
    )
    memory: Literal["off", "ramp", "on"] = Field(
        "on", description="prototype memory: masked; faded in over the stage; in use"
    )
    bucketed: bool = Field(
        True, description="captions of similar length together; costs nothing and saves padding"
    )


class CaptionRun(RunSettings, frozen=True):
    """The configuration of a training of a captioner."""

    task: Literal["caption"] = "caption"
    data: CaptionDataSettings
    tower: TowerSettings = Field(discriminator="kind")
    tower_from: str | None = Field(
        None, description="trained model (shipped name, folder, hub id) whose tower the training begins with"
    )
    captioner: CaptionerSettings
    codebook: str | None = Field(
        None, description="codebook folder (`patchword codebook`) for region alignment"
    )
    captioner_from: str | None = Field(
        None, description="folder of a trained model of the same kind whose weights the training begins with"
    )
    text_from: str | None = Field(
        None,
        description="two-tower model (shipped name, folder, hub:ID of a CLIP) the tower belongs to; its text side embeds the captions",
    )
    decoding: DecodingSettings = DecodingSettings()
    stage: tuple[CaptionStage, ...] = Field(min_length=1, description="what happens, in order")

    @model_validator(mode="after")
    def _losses_fit_the_model(self) -> CaptionRun:
        stages = [
            stage.objective for stage in self.stage if isinstance(stage.objective, CrossEntropySettings)
        ]
        if self.data.panoptic is not None and not any(
            is_used(objective.patch_contrast) for objective in stages
        ):
            raise ValueError(
                "data.panoptic labels patches for patch_contrast, and no stage gives that a weight: set one, or leave it out"
            )
        alignment = region_alignment_of(self.captioner)
        for stage in self.stage:
            if not isinstance(stage.objective, CrossEntropySettings):
                continue
            if is_used(stage.objective.patch_contrast) and (
                alignment is None or alignment.contrast_width == 0
            ):
                raise ValueError(
                    f"stage {stage.name!r} gives patch_contrast a weight, and the model has no head for it: "
                    "set captioner.region_alignment.contrast_width above 0, or the weight to 0"
                )
            if is_used(stage.objective.text_regulariser) and (
                alignment is None or not alignment.text_regulariser or not self.text_from
            ):
                raise ValueError(
                    f"stage {stage.name!r} gives text_regulariser a weight: that needs captioner.region_alignment.text_regulariser = true "
                    "(a projection to the text space) and text_from (the two-tower model that the tower belongs to)"
                )
        return self


class CaptionRecipe:
    """What `train/loop.py` needs to train a captioner; see its Recipe."""

    def __init__(self, run: CaptionRun, folder: Path, command: str) -> None:
        self.run, self.folder, self.stages = run, folder, run.stage
        train, selection = read_splits(run.data)
        self.vocabulary = build_vocabulary(run.data, train)
        torch.manual_seed(run.seed)
        codebook = None if run.codebook is None else Codebook.read(Path(run.codebook))
        self.model = CaptionModel.build(run.tower, run.captioner, self.vocabulary.size, codebook)
        if run.tower_from:
            load_tower_weights(self.model.tower, find_model(run.tower_from))
        if codebook is not None:
            self._check_codebook(codebook)
        if run.captioner_from:
            self.load_weights(Path(run.captioner_from))
        self._towers = (
            look_up(TEXT_TOWERS)(run.text_from, codebook.tower) if self._embeds_captions() else None
        )
        self.preprocessing = reader_preprocessing(self.model.tower.preprocessing)
        inputs = self._inputs([record.file for record in (*train, *selection)])
        self.train = CaptionData.build(train, self.vocabulary, inputs, run.data.max_words)
        if run.data.panoptic:
            self.train = replace(
                self.train, segmentation=panoptic_classes(run.data, train, self.preprocessing, self._grid())
            )
        self.selection = CaptionData.build(selection, self.vocabulary, inputs, run.data.max_words)
        self.settings = ModelSettings(
            tower=run.tower,
            captioner=run.captioner,
            preprocessing=self.preprocessing,
            decoding=run.decoding,
            vocabulary_size=self.vocabulary.size,
            codebook=None if codebook is None else codebook.describe(),
        )
        self.card = {
            "name": folder.name,
            "description": run.description
            or f"{run.captioner.kind} over a {run.tower.kind} tower, trained with Patchword.",
            "dataset": f"{Path(run.data.annotations).name}: {len(train)} training pictures, selected on {len(selection)} others",
            "licence": run.licence or "not stated",
            "command": command,
        }
        self._reward: CaptionReward | None = None
        self._step_began = time.perf_counter()

    def _check_codebook(self, codebook: Codebook) -> None:
        """Raises ModelError for a codebook of another tower, ConfigError for one that `captioner_from` was not trained with (its tower may
        have learnt since, which the codebook's id does not know)."""
        if self.run.captioner_from is None:
            codebook.check_tower(checkpoint.tower_id(self.model.tower))
        elif checkpoint.read_config(Path(self.run.captioner_from)).get("codebook") != codebook.describe():
            raise ConfigError(
                f"{self.run.captioner_from} was trained with another codebook than {self.run.codebook}: give the one it has"
            )

    def _embeds_captions(self) -> bool:
        objectives = [stage.objective for stage in self.stages]
        return any(
            isinstance(one, CrossEntropySettings) and is_used(one.text_regulariser) for one in objectives
        )

    def _inputs(self, files: list[str]) -> PictureInputs:
        data = self.run.data
        if data.features:
            inputs = stored_inputs(Path(data.features), self.model.tower, self.preprocessing, self.stages)
            if data.panoptic and inputs.store.manifest.get("views", 1) > 1:
                raise ConfigError(
                    "data.panoptic labels the cells of plain pictures, and the store of data.features holds random views too"
                )
            return inputs
        return pixel_inputs(data, self.preprocessing, files)

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of the tower's patches. Raises ConfigError where they form no grid."""
        pixels_B3HW = torch.zeros(1, 3, *self.preprocessing.hw)
        with torch.inference_mode():
            hw = self.model.eval().features(Inputs(pixels_B3HW=pixels_B3HW)).hw
        if hw is None:
            raise ConfigError(
                f"data.panoptic labels cells of a grid, and the {self.run.tower.kind} tower has none: leave data.panoptic out"
            )
        return hw

    def objective(self, stage: int) -> nn.Module:
        settings = self.stages[stage].objective
        if isinstance(settings, SelfCriticalSettings):
            return SelfCritical(self.model, settings, self.vocabulary.special, self.reward())
        if is_used(settings.text_regulariser) and self.train.texts is None:
            device = next(self.model.parameters()).device
            self.train = replace(
                self.train, texts=look_up(EMBED_CAPTIONS)(self._towers, self.train.records, device)
            )
            self._towers = None  # a text tower of which nothing more is needed
        learns = self._prototypes is not None and self.stages[stage].memory != "off"
        return CrossEntropy(self.model, settings, self.vocabulary.special, wants_trace=learns)

    @property
    def _prototypes(self) -> Prototypes | None:
        return prototypes_of(self.model.captioner)

    def before_step(self, stage: int, progress: float) -> None:
        """Sets how much the prototype memory takes part; `progress` is the share of the stage that is done."""
        self._step_began = time.perf_counter()
        if self._prototypes is not None:
            levels = {"off": -math.inf, "ramp": RAMP_FROM * (1 - progress), "on": 0.0}
            self._prototypes.set_log_bias(levels[self.stages[stage].memory])

    def reward(self) -> CaptionReward:
        """CIDEr-D with the document frequencies of the training captions."""
        if self._reward is None:
            self._reward = CaptionReward(
                self.train.records, self.vocabulary.tokens, self.vocabulary.special.end
            )
        return self._reward

    def plan(self, stage: int, epoch: int) -> list[list[PlanEntry]]:
        settings = self.stages[stage]
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        per_picture = (
            1 if isinstance(settings.objective, SelfCriticalSettings) else settings.captions_per_picture
        )
        return self.train.plan(settings.batch, per_picture, settings.bucketed, generator)

    def batch(self, stage: int, entries: list[PlanEntry], generator: torch.Generator) -> CaptionBatch:
        return self.train.batch(entries, generator)

    def image_ids(self, batch: CaptionBatch) -> list[Any]:
        return list(batch.image_ids)

    def after_step(self, step: int, objective: nn.Module) -> dict[str, float]:
        """The prototype memory observes what the step's captions made; never while self-critical (it is frozen then)."""
        if isinstance(objective, SelfCritical):
            seconds, objective.reward_seconds = objective.reward_seconds, 0.0
            return {"reward_share": seconds / (time.perf_counter() - self._step_began)}
        numbers = {}
        if objective.concepts_BN is not None:
            numbers |= concept_use(objective.concepts_BN, len(self.settings.codebook["words"]))
        if objective.seen is not None:
            seen = objective.seen
            self.model.captioner.observe(
                seen.trace, seen.tokens_RT, seen.lengths_R, seen.memory, seen.pictures_R
            )
            numbers |= self._prototypes.statistics()
        return numbers

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation | None:
        """Decode the pictures of the selection; CIDEr selects. Teacher-forced figures stand apart from decoded ones."""
        self.model.eval()
        forced = self._teacher_forced(accelerator.device)
        predictions, seconds = self._decoded(accelerator.device)
        references = {str(record.image_id): list(record.captions) for record in self.selection.records}
        scores = score_captions(references, predictions)
        if accelerator.is_main_process:
            self._write_predictions(f"{self.stages[stage].name}-{epoch + 1:03d}", predictions, references)
        values = {name: score.value for name, score in scores.items()}
        speed = round(len(predictions) / seconds, 2)
        return Validation(
            values["CIDEr"], {"scores": values, "teacher_forced": forced, "captions_per_second": speed}
        )

    def _decoded(self, device: torch.device) -> tuple[dict[str, str], float]:
        """Captions by image id, and the seconds that encoder and search took from the tower's features on."""
        model = CaptioningModel(self.model, self.settings, self.vocabulary, self.card, device)
        predictions: dict[str, str] = {}
        seconds = 0.0
        with progress() as bar:
            task = bar.add_task("validation", total=len(self.selection.records), status="")
            for entries in self.selection.plan(64, 1, False, None):
                batch = self.selection.batch(entries, None)
                inputs = batch.inputs.to(device)
                with torch.inference_mode():
                    features = self.model.features(inputs)
                wait(device)
                began = time.perf_counter()
                captions = model.caption_features(features, trace=False)
                seconds += (
                    time.perf_counter() - began
                )  # captions are text: nothing of them is still under way
                predictions |= {
                    str(image): caption.text for image, caption in zip(batch.image_ids, captions, strict=True)
                }
                bar.update(task, advance=len(entries))
        return predictions, seconds

    @torch.inference_mode()
    def _teacher_forced(self, device: torch.device) -> dict[str, float]:
        """Loss per word, top-5 accuracy and BLEU-4 of the words predicted from the true ones before them (the tutorial's figures)."""
        total, words, hits = 0.0, 0, 0
        predictions: dict[str, str] = {}
        for entries in self.selection.plan(64, 1, False, None):
            batch = self.selection.batch(entries, None).to(device)
            features = self.model.features(batch.inputs)
            memory = self.model.captioner.encode(features)
            targets_RT = batch.tokens_RT[:, 1:]
            logits_RTV = self.model.captioner.decode(
                batch.tokens_RT[:, :-1], batch.lengths_R - 1, memory
            ).logits_BTV
            loss, count = caption_cross_entropy(logits_RTV, targets_RT, self.vocabulary.special.pad)
            real_RT = targets_RT != self.vocabulary.special.pad
            found_RT = (logits_RTV.topk(5, dim=-1).indices == targets_RT[..., None]).any(-1)
            total, words, hits = (
                total + loss.item(),
                words + int(count),
                hits + int((found_RT & real_RT).sum()),
            )
            for image, row, length in zip(
                batch.image_ids, logits_RTV.argmax(-1).tolist(), (batch.lengths_R - 2).tolist(), strict=True
            ):
                predictions[str(image)] = self.vocabulary.decode(row[:length])
        references = {str(record.image_id): list(record.captions) for record in self.selection.records}
        bleu = score_captions(references, predictions, metrics=("bleu",))["Bleu_4"].value
        return {"loss": total / max(1, words), "top5": hits / max(1, words), "bleu4": bleu}

    def _write_predictions(
        self, name: str, predictions: dict[str, str], references: dict[str, list[str]]
    ) -> None:
        folder = self.folder / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"image_id": record.image_id, "caption": predictions[str(record.image_id)]}
            for record in self.selection.records
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        samples = [
            {
                "image_id": record.image_id,
                "file": record.file,
                "caption": predictions[str(record.image_id)],
                "references": list(record.captions),
            }
            for record in self.selection.records[:24]
        ]
        (self.folder / "samples.json").write_text(
            json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8"
        )

    def save_model(self, folder: Path) -> None:
        CaptioningModel(
            self.model, self.settings, self.vocabulary, self.card, next(self.model.parameters()).device
        ).write(folder)

    def load_weights(self, folder: Path) -> None:
        digest = checkpoint.read_config(folder).get("tower_sha256")
        restore_weights(self.model, self.model.captioner, "captioner.", folder, digest)

    def extra_state(self) -> dict[str, Tensor]:
        return {} if self._prototypes is None else self._prototypes.resume_state()

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        if self._prototypes is not None:
            self._prototypes.load_resume_state(tensors)
