"""The configuration of a pre-training, and the table of what can be pre-trained.

A new kind is one line in `PRETRAINERS` and one in `RECIPES`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from patchword.composed import TextTowerSettings, TowerSettings
from patchword.config import ByKind, Kind, KindSettings
from patchword.data.augment import Augmentation
from patchword.train.settings import RunSettings, StageSettings

PRETRAINERS = {
    "data2vec": Kind("models.pretraining.data2vec", "Data2VecConfig", "Data2Vec"),
    "vilbert": Kind("models.pretraining.vilbert", "VilbertConfig", "Vilbert"),
    "vilbert_pointing": Kind("models.pretraining.vilbert", "VilbertPointingConfig", "Vilbert"),
    "vokens": Kind("models.pretraining.vokenizer", "VokenLanguageModelConfig", "VokenLanguageModel"),
}
RECIPES = {
    "data2vec": "tasks.pretrain.data2vec:data2vec_recipe",
    "vilbert": "tasks.pretrain.vilbert:vilbert_recipe",
    "vilbert_pointing": "tasks.pretrain.vilbert_pointing:vilbert_pointing_recipe",
    "vokens": "tasks.pretrain.vokens:vokens_language_recipe",
}
"""(run, folder, command) -> the recipe of a kind, as "module:name" below `patchword`."""


class PretrainDataSettings(BaseModel, extra="forbid", frozen=True):
    """What is learnt from: pictures, texts, texts with vokens, captioned pictures, or phrases with boxes."""

    pictures: str | None = Field(None, description="folder of pictures without labels, with its sub-folders")
    texts: str | None = Field(
        None, description="text file with a text per line, or folder of such .txt files"
    )
    annotations: str | None = Field(None, description="pictures with captions: as for task retrieve")
    vokens: str | None = Field(
        None, description="texts with the picture of each token: a .jsonl that `patchword vokens --out` wrote"
    )
    phrases: str | None = Field(
        None, description="phrases with the boxes that they name: JSON lines of image, phrase, box, split"
    )
    images: str | None = Field(None, description="folder of the pictures that the annotations name")
    cache: str | None = Field(
        None, description="folder of the pixel cache; absent: patchword in the user's cache folder"
    )
    features: str | None = Field(
        None,
        description="vilbert: feature store of the frozen tower (`patchword features`), in place of pictures",
    )
    pixel_size: int | None = Field(
        None, ge=16, description="side at which pictures are cached; absent: the tower's own size"
    )
    augmentation: Augmentation | None = Field(
        None, description="random views while training; absent: the plain pictures"
    )
    minimum_count: int = Field(
        2, gt=0, description="words that occur less often in the training texts become unknown"
    )
    max_words: int = Field(40, gt=0, description="words of a text beyond this are cut off")
    held_out: int = Field(
        64, gt=0, description="pictures or texts set aside, on which the loss and a collapse are watched"
    )
    limit: int = Field(0, ge=0, description="use only the first n (tests, dry runs); 0: all")


class PretrainRun(RunSettings, frozen=True):
    """The configuration of a pre-training."""

    task: Literal["pretrain"] = "pretrain"
    data: PretrainDataSettings
    model: Annotated[KindSettings, ByKind(PRETRAINERS)] = Field(description="what is pre-trained, and how")
    tower: TowerSettings | None = Field(None, description="picture tower; absent where only texts are read")
    tower_from: str | None = Field(
        None, description="trained model (shipped name, folder, hub id) whose tower the training begins with"
    )
    model_from: str | None = Field(
        None,
        description="vilbert, vilbert_pointing: pre-trained two-stream model that it begins with",
    )
    text: TextTowerSettings | None = Field(
        None, description="text tower; absent where only pictures are read"
    )
    stage: tuple[StageSettings, ...] = Field(min_length=1, description="what happens, in order")

    @model_validator(mode="after")
    def _something_to_read(self) -> PretrainRun:
        names = ("pictures", "texts", "vokens", "annotations", "phrases")
        given = [name for name in names if getattr(self.data, name)]
        if len(given) != 1:
            raise ValueError(
                "a pre-training reads exactly one of data.pictures, data.texts, data.vokens, "
                "data.annotations and data.phrases; found "
                f"{' and '.join(given) or 'none'}"
            )
        if self.data.features and self.model.kind != "vilbert":
            raise ValueError(
                f"data.features is read by model.kind vilbert alone, and this is {self.model.kind}: leave it "
                "out"
            )
        return self
