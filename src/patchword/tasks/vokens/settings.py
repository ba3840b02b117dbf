"""The configuration of a training of a vokenizer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from patchword.models.pretraining.vokenizer import VokenizerConfig
from patchword.train.settings import RunSettings, StageSettings


class VokenDataSettings(BaseModel, extra="forbid", frozen=True):
    """Pictures with captions."""

    annotations: str = Field(description="pictures with captions, in any format that is read")
    images: str = Field(description="folder of the pictures")
    cache: str | None = Field(
        None, description="folder of the pictures' vectors; absent: patchword in the user's cache folder"
    )
    max_words: int = Field(30, gt=0, description="pieces of a caption beyond this are cut off")
    held_out: int = Field(
        100, gt=1, description="training pictures set aside, on which the model is selected"
    )
    limit: int = Field(0, ge=0, description="use only the first n training pictures; 0: all")


class VokensRun(RunSettings, frozen=True):
    """The configuration of a training of a vokenizer."""

    task: Literal["vokens"] = "vokens"
    data: VokenDataSettings
    towers: str = Field(
        "two-towers", description="two towers (shipped name, folder, hub id) that read texts and pictures"
    )
    model: VokenizerConfig = VokenizerConfig()
    stage: tuple[StageSettings, ...] = Field(min_length=1, description="what happens, in order")
