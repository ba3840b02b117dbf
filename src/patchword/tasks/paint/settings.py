"""The configuration of a training that paints, and the settings of a painter's folder."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel, Field, model_validator

from patchword.composed import TextTowerSettings
from patchword.data.scenes.pictures import SceneSettings
from patchword.diffuse import SCHEDULES
from patchword.models.painters.denoiser import DenoiserConfig
from patchword.tasks.paint.families import IN_A_SPACE, READS_WORDS, PainterSettings
from patchword.tasks.retrieve.model import TwoTowerSettings
from patchword.train.data import DataSettings
from patchword.train.settings import RunSettings, StageSettings

SMALLEST_KEPT = 1e-4
"""Share of a latent's variance that must be left at the noisiest time where noise is predicted."""


class PaintingSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a painter, apart from the facts about its training."""

    text: TextTowerSettings | None = Field(
        None,
        description=(
            "the text tower; absent where there are two towers, or the painter reads the words itself"
        ),
    )
    towers: TwoTowerSettings | None = Field(None, description="two towers, in whose space the painter works")
    painter: PainterSettings
    vocabulary_size: int = Field(gt=0, le=10_000_000)
    max_words: int = Field(gt=0, le=100_000)
    codec: dict[str, Any] | None = Field(
        None, description="the autoencoder of a latent diffusion, as diffusers has it"
    )
    drawn_world: bool = Field(False, description="whether it was trained on drawn scenes")


class PaintRun(RunSettings, frozen=True):
    """The configuration of a training that paints, on drawn scenes or on captioned pictures."""

    task: Literal["paint"] = "paint"
    data: DataSettings | None = Field(None, description="captioned pictures")
    scenes: SceneSettings | None = Field(None, description="in their place: drawn scenes")
    text: TextTowerSettings | None = Field(None, description="a text tower of its own")
    text_from: str | None = Field(
        None, description="in its place: two-tower model whose text tower and words are used, frozen"
    )
    painter: PainterSettings
    codec: str | None = Field(
        None,
        description="AutoencoderKL of diffusers (folder or hub id) in whose latents a denoiser works; "
        "painter.size and painter.channels are then those of a latent",
    )
    average: float = Field(
        0.999, ge=0, lt=1, description="decay of the running average of the weights, which is what is saved"
    )
    sheet: int = Field(8, ge=0, le=64, description="pictures of the sheet that a validation draws; 0: none")
    stage: tuple[StageSettings, ...] = Field(min_length=1, description="what happens, in order")

    @model_validator(mode="after")
    def _one_origin(self) -> PaintRun:
        own_words = self.painter.kind in READS_WORDS
        for first, second in (("data", "scenes"), ("text", "text_from")):
            given = [name for name in (first, second) if getattr(self, name) is not None]
            wanted = 0 if own_words and first == "text" else 1
            if len(given) != wanted:
                raise ValueError(
                    f"{'none' if wanted == 0 else 'exactly one'} of {first} and {second} is needed; found "
                    f"{' and '.join(given) or 'none'}"
                )
        if self.codec is not None and self.painter.kind != "denoiser":
            raise ValueError(f"a painter of kind {self.painter.kind!r} works on pixels: leave out codec")
        if self.codec is not None and isinstance(self.painter, DenoiserConfig):
            _check_last_time(self.painter)
        if self.painter.kind in IN_A_SPACE and self.text_from is None:
            raise ValueError(
                f"a painter of kind {self.painter.kind!r} works in the space of two towers: name them by "
                "text_from"
            )
        source, painter = self.scenes if self.data is None else self.data, cast(Any, self.painter)
        longest = 2 + (0 if source is None else source.max_words)
        if own_words and painter.text_length < longest:
            raise ValueError(
                f"painter.text_length is {painter.text_length}, and max_words with start and end make "
                f"{longest}: raise the first or lower the second"
            )
        return self


def _check_last_time(painter: DenoiserConfig) -> None:
    """Raises ValueError where painting would begin with a division by almost nothing: x_0 = (x - s eps) /
    sqrt(a) at the noisiest time. Pixels are brought into [-1, 1] after it, latents have no bounds."""
    kept = float(SCHEDULES[painter.schedule](painter.steps).kept_T[-1])
    if painter.target == "noise" and kept < SMALLEST_KEPT:
        raise ValueError(
            f'painter.target is "noise", and the {painter.schedule} schedule leaves {kept:.1g} of the '
            "variance at a latent's noisiest time, so an error of the first step is multiplied by "
            f'{kept**-0.5:,.0f} and nothing bounds latents: set painter.target = "velocity", or '
            'painter.schedule = "scaled_linear"'
        )
