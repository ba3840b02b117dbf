"""The configuration of a training on documents in which pictures stand between texts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from patchword.composed import TowerSettings
from patchword.models.captioners.flamingo import FlamingoConfig
from patchword.towers.settings import LanguageConfig
from patchword.train.settings import RunSettings, StageSettings


class DocumentSettings(BaseModel, extra="forbid", frozen=True):
    """Which documents are read, and how they are prepared."""

    documents: str = Field(
        description="JSON lines (parts; OBELICS; MMC4), a folder of .html, .md or .txt pages, or annotations "
        "of captions: then documents are made of captioned pictures"
    )
    images: str = Field(description="folder of the pictures")
    cache: str | None = Field(
        None, description="folder of the pixel cache; absent: patchword in the user's cache folder"
    )
    features: str | None = Field(
        None, description="feature store of the frozen tower (`patchword features`), in place of the pictures"
    )
    pixel_size: int | None = Field(
        None, ge=16, description="side at which pictures are cached; absent: the tower's own size"
    )
    tokenizer: str | None = Field(
        None,
        description="folder or hub id of the language model's tokenizer; absent: words of the documents",
    )
    minimum_count: int = Field(
        1, gt=0, description="words that occur less often in the training documents become unknown"
    )
    max_tokens: int = Field(256, gt=1, description="tokens of a document beyond this are cut off")
    max_pictures: int = Field(8, gt=0, description="pictures beyond this are cut off, with what follows")
    pictures_per_document: int = Field(
        5, gt=0, description="captions: captioned pictures that make a document, drawn anew every epoch"
    )
    held_out: int = Field(
        0, ge=0, description="training documents set aside to select the model; 0: split val, or one in ten"
    )
    limit: int = Field(0, ge=0, description="use only the first n training documents; 0: all")


class InterleaveStage(StageSettings, frozen=True):
    """A stage of such a training."""

    pictures: bool = Field(
        True, description="whether pictures are looked at; false: the language model learns the texts alone"
    )


class InterleaveRun(RunSettings, frozen=True):
    """The configuration of a few-shot model: eyes, language model, and what joins them."""

    task: Literal["interleave"] = "interleave"
    data: DocumentSettings
    tower: TowerSettings = Field(discriminator="kind")
    tower_from: str | None = Field(
        None, description="trained model (shipped name, folder, hub id) whose tower it sees with"
    )
    language: LanguageConfig
    flamingo: FlamingoConfig = FlamingoConfig()
    shots: tuple[int, ...] = Field(
        (0, 4), description="examples before the picture that validations ask about"
    )
    asked: int = Field(64, ge=0, description="documents whose last text validations let the model say")
    stage: tuple[InterleaveStage, ...] = Field(min_length=1, description="what happens, in order")
