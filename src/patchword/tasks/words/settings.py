"""The configuration of a training of word vectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from patchword.composed import TowerSettings
from patchword.models.word_vectors.autoencoder import AutoencoderConfig
from patchword.models.word_vectors.distributional import DistributionalConfig
from patchword.models.word_vectors.grounded_space import GroundedSpaceConfig
from patchword.models.word_vectors.skip_gram import SkipGramConfig
from patchword.towers.settings import EfficientNetLiteConfig
from patchword.train.settings import RunSettings, StageSettings

WordModelSettings = Annotated[
    DistributionalConfig | AutoencoderConfig | SkipGramConfig | GroundedSpaceConfig,
    Field(discriminator="kind"),
]


class CorpusSettings(BaseModel, extra="forbid", frozen=True):
    """The text: files, or the captions of a data set."""

    files: tuple[str, ...] = Field((), description="text files, one sentence or paragraph per line; any size")
    captions: str | None = Field(
        None,
        description="in their place: a caption data set, whose training captions are the corpus",
    )
    splitter: Literal["english", "characters"] = Field(
        "english", description="how lines are split into words"
    )
    minimum_count: int = Field(5, gt=0, description="words that occur less often are left out")
    most_words: int = Field(100_000, gt=1, description="the most frequent words that get a vector")

    @model_validator(mode="after")
    def _one_source(self) -> CorpusSettings:
        if bool(self.files) == (self.captions is not None):
            raise ValueError("the corpus is either files or captions: give one of them")
        return self


class CountSettings(BaseModel, extra="forbid", frozen=True):
    """How the text vectors of counting models are made."""

    window: int = Field(
        5, gt=0, description="places on each side within which words are contexts of each other"
    )
    contexts: int = Field(5000, gt=1, description="the most frequent words that count as contexts")
    weighting: Literal["ppmi", "lmi"] = Field("ppmi", description="positive PMI, or local mutual information")
    width: int = Field(100, gt=0, description="width that an SVD reduces the weighted counts to")


class WordPicturesSettings(BaseModel, extra="forbid", frozen=True):
    """Which pictures stand for which words, and what sees them."""

    annotations: str = Field(
        description="captions or labels of pictures: a picture stands for every word of its texts"
    )
    images: str = Field(description="folder of the pictures")
    tower: TowerSettings = Field(
        EfficientNetLiteConfig(kind="efficientnet-lite0"), description="what sees the pictures"
    )
    cache: str | None = Field(
        None, description="folder of what the tower saw; absent: patchword in the user's cache folder"
    )
    minimum: int = Field(5, gt=0, description="pictures that a word needs to have a picture vector")
    most: int = Field(
        100, gt=0, description="pictures of a word that are averaged, drawn where there are more"
    )
    width: int = Field(100, gt=0, description="width that an SVD reduces what the tower sees to")
    power: float = Field(
        0.5,
        ge=0,
        le=1,
        description="exponent of that SVD's singular values; 1: directions weigh as they are, 0: all alike",
    )
    held_out: int = Field(
        0,
        ge=0,
        description="words whose pictures are hidden from the training, to measure how well it imagines them",
    )


class WordsRun(RunSettings, frozen=True):
    """The configuration of a training of word vectors."""

    task: Literal["words"] = "words"
    corpus: CorpusSettings
    counts: CountSettings = CountSettings()
    pictures: WordPicturesSettings | None = Field(
        None, description="absent: text alone (distributional, skip_gram)"
    )
    model: WordModelSettings
    baseline: bool = Field(
        True,
        description="train the same model without pictures beside it: its text vectors",
    )
    words_per_batch: int = Field(8192, gt=0, description="skip_gram: words of the corpus per step")
    stage: tuple[StageSettings, ...] = Field(
        (),
        description="what happens, in order; distributional: none; autoencoder: layer by layer, joint",
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> WordsRun:
        wanted = {"distributional": 0, "autoencoder": 2}.get(self.model.kind)
        if wanted is None and not self.stage:
            raise ValueError(f"{self.model.kind} needs a [[stage]]")
        if wanted is not None and len(self.stage) != wanted:
            raise ValueError(f"{self.model.kind} has {wanted} stages, found {len(self.stage)}")
        needs = self.model.kind in ("autoencoder", "grounded_space")
        needs = needs or (isinstance(self.model, SkipGramConfig) and self.model.variant != "text")
        if needs and self.pictures is None:
            raise ValueError(f"{self.model.kind} learns from pictures: give [pictures]")
        return self
