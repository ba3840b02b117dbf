"""The configuration of a training of a captioner, and what in it must fit together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from patchword.composed import CaptionerSettings, TowerSettings, region_alignment_of
from patchword.tasks.caption.objective import CrossEntropySettings, SelfCriticalSettings, is_used
from patchword.tasks.caption.options import DecodingSettings
from patchword.train.data import CaptionDataSettings
from patchword.train.groups import highest_rate
from patchword.train.settings import SHARDED, RunSettings, StageSettings


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
    store_features: bool = Field(
        False,
        description="the tower is frozen: what it makes of the pictures is kept in the cache folder, so that "
        "every epoch and every later training on them does without it",
    )
    codebook: str | None = Field(
        None, description="codebook folder (`patchword codebook`) for region alignment"
    )
    captioner_from: str | None = Field(
        None,
        description="trained model of the same kind (shipped name, folder, hub id) whose weights the "
        "training begins with; words that it does not know begin anew",
    )
    text_from: str | None = Field(
        None,
        description="two-tower model (shipped name, folder, hub:ID of a CLIP) the tower belongs to; "
        "its text side embeds the captions",
    )
    decoding: DecodingSettings = DecodingSettings()
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a running average of the weights, which is then what is validated and saved; "
        "0: none",
    )
    sharded: bool = Field(False, description=SHARDED)
    follow_data: bool = Field(
        False,
        description="data.minimum_count and a stage's epochs, warm_up_steps, validate_every, patience, decay "
        "and keep, where they are not given, follow the number of captions and of pictures held out; of "
        "captions in words decoding.no_repeat_ngram is 2 then, and decoding.no_stutter true",
    )
    stage: tuple[CaptionStage, ...] = Field(min_length=1, description="what happens, in order")

    @model_validator(mode="after")
    def _stored_features_are_of_a_frozen_tower(self) -> CaptionRun:
        if self.store_features and self.data.augmentation is not None:
            raise ValueError(
                "store_features keeps what the tower makes of plain pictures, and data.augmentation shows "
                "others: leave one of them out"
            )
        if self.store_features and any(highest_rate(stage, "tower") > 0 for stage in self.stage):
            raise ValueError(
                "store_features is for a frozen tower, and a stage trains it: "
                'set learning_rates."tower" to 0, or leave store_features out'
            )
        return self

    @model_validator(mode="after")
    def _an_average_is_of_whole_weights(self) -> CaptionRun:
        if self.sharded and self.average:
            raise ValueError(
                "sharded gives every process a part of the weights, and average keeps a copy of all of them: "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _losses_fit_the_model(self) -> CaptionRun:
        stages = [
            stage.objective for stage in self.stage if isinstance(stage.objective, CrossEntropySettings)
        ]
        if self.data.panoptic is not None and not any(
            is_used(objective.patch_contrast) for objective in stages
        ):
            raise ValueError(
                "data.panoptic labels patches for patch_contrast, and no stage gives that a weight: "
                "set one, or leave it out"
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
                    f"stage {stage.name!r} gives text_regulariser a weight: that needs "
                    "captioner.region_alignment.text_regulariser = true (a projection to the text space) and "
                    "text_from (the two-tower model that the tower belongs to)"
                )
        return self
