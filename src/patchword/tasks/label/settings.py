"""The configuration of a training that labels rows of a table."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from patchword.composed import TextTowerSettings, TowerSettings
from patchword.data.augment import Augmentation
from patchword.data.formats.labels import Missing, TableColumns
from patchword.errors import ConfigError
from patchword.models.fusion.late_concatenation import LateConcatenationConfig
from patchword.models.fusion.prompt_fusion import PromptFusionConfig
from patchword.tasks.label.model import FusionSettings
from patchword.train.settings import RunSettings, StageSettings


class LabelDataSettings(BaseModel, extra="forbid", frozen=True):
    """Which rows are read, and how they are prepared."""

    table: str = Field(description="CSV or JSON lines file with image, text, label and if wanted split")
    images: str = Field(description="folder of the pictures")
    columns: TableColumns = TableColumns()
    missing: Missing = Field(
        "error",
        description="rows without text or picture: an error; labelled from the picture alone; "
        "labelled from the text alone",
    )
    cache_tokens: bool = Field(
        False,
        description="run the frozen lower layers once and train from what they gave; no augmentation then",
    )
    features: str | None = Field(
        None, description="such tokens, made by `patchword features --tokens`; implies cache_tokens"
    )
    pixel_size: int | None = Field(
        None, ge=16, description="side at which pictures are cached; absent: the tower's own size"
    )
    cache: str | None = Field(
        None, description="folder of the caches; absent: patchword in the user's cache folder"
    )
    augmentation: Augmentation | None = Field(
        None, description="random views while training; absent: the plain pictures"
    )
    minimum_count: int = Field(
        2,
        gt=0,
        description="words that occur less often in the training texts become unknown (new towers only)",
    )
    max_words: int = Field(
        40, gt=0, description="words of a text beyond this, or beyond what the tower takes, are cut off"
    )
    held_out: int = Field(
        0, ge=0, description="training rows set aside to select the model; 0: it is selected on split val"
    )
    limit: int = Field(0, ge=0, description="use only the first n training rows (tests, dry runs); 0: all")
    share: float = Field(
        1.0, gt=0, le=1, description="share of each label's training rows that is used, at least one row"
    )

    @model_validator(mode="after")
    def _tokens_are_plain(self) -> LabelDataSettings:
        if self.stores_tokens and self.augmentation is not None:
            raise ValueError(
                "stored tokens are those of the plain pictures: leave out augmentation, or cache_tokens and "
                "features"
            )
        return self

    @property
    def stores_tokens(self) -> bool:
        """Whether frozen layers are run once, and their tokens are what is trained from."""
        return self.cache_tokens or self.features is not None


class PromptFusionSection(PromptFusionConfig, frozen=True):
    """Prompt fusion; the number of classes is that of the table's labels."""

    classes: int = Field(0, ge=0, description="number of labels; 0: as many as the training rows have")


class LateConcatenationSection(LateConcatenationConfig, frozen=True):
    """A linear head over one or both towers; the number of classes is that of the table's labels."""

    classes: int = Field(0, ge=0, description="number of labels; 0: as many as the training rows have")


class LabelSections(RunSettings, frozen=True):
    """What the configuration of a training that labels rows shares with that of a search for its structure.

    Towers are those of a trained model, or described by two sections.
    """

    data: LabelDataSettings
    towers: str | None = Field(
        None, description="two-tower or labelling model (folder, hub id) whose towers and words are used"
    )
    trainable_from: int | None = Field(
        None, ge=0, description="first trained layer of both towers; absent: frozen; 0: all (fine-tuning)"
    )
    vision_from: str | None = Field(
        None, description="in its place: labelling or pre-trained model whose picture tower is used"
    )
    text_from: str | None = Field(
        None, description="and the one, or a pre-trained one, whose text tower and words are used"
    )
    vision: TowerSettings | None = Field(
        None, description="in place of vision_from: a picture tower of its own"
    )
    text: TextTowerSettings | None = Field(None, description="in place of text_from: a text tower of its own")
    model: PromptFusionSection | LateConcatenationSection = Field(discriminator="kind")
    stage: tuple[StageSettings, ...] = Field(min_length=1, description="what happens, in order")

    @model_validator(mode="after")
    def _one_origin_of_towers(self) -> LabelSections:
        for side in ("vision", "text"):
            given = [name for name in ("towers", f"{side}_from", side) if getattr(self, name) is not None]
            if len(given) != 1:
                found = " and ".join(given) or "none"
                raise ValueError(
                    f"the {side} tower comes from exactly one of towers, {side}_from and {side}; "
                    f"found {found}"
                )
        return self


class LabelRun(LabelSections, frozen=True):
    """The configuration of a training that labels rows."""

    task: Literal["label"] = "label"


def whole(section: PromptFusionSection | LateConcatenationSection, labels: int) -> FusionSettings:
    """The model's settings with the number of labels. Raises ConfigError where the run says another one."""
    if section.classes not in (0, labels):
        raise ConfigError(
            f"model.classes is {section.classes} and the training rows have {labels} labels: leave it out"
        )
    kind = PromptFusionConfig if isinstance(section, PromptFusionConfig) else LateConcatenationConfig
    return kind(**{**section.model_dump(), "classes": labels})
