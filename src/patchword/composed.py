"""One composed model per task: a tower and what reads it, each with its own section of the configuration.

The unions below are the whole registry: a new tower or captioner is one more line in a union and one in the function under it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from patchword.data.captions import Inputs
from patchword.data.pictures import Preprocessing
from patchword.errors import ConfigError
from patchword.layers.codebook import Codebook
from patchword.layers.familiarity import Familiarity
from patchword.models.captioners.adaptive import Adaptive, AdaptiveConfig
from patchword.models.captioners.caption_transformer import CaptionTransformer, CaptionTransformerConfig
from patchword.models.captioners.meshed_memory import MeshedMemoryConfig, MeshedMemoryTransformer
from patchword.models.captioners.show_attend_tell import ShowAttendTell, ShowAttendTellConfig
from patchword.models.captioners.show_tell import ShowTell, ShowTellConfig
from patchword.models.fusion.question_answering import (
    AnswerClassifier,
    AnswerGenerator,
    QuestionConfig,
    QuestionEncoder,
)
from patchword.towers.convolutional import ConvolutionalTower
from patchword.towers.layered import Preprocessing as TowerPreprocessing
from patchword.towers.settings import (
    BertTowerConfig,
    ClipTextTowerConfig,
    ClipTowerConfig,
    ConvolutionalConfig,
    EfficientNetLiteConfig,
    ResNetTowerConfig,
    SentenceEncoderConfig,
    SwinTowerConfig,
    VitTowerConfig,
)
from patchword.types import Captioner, VisualFeatures

TowerSettings = Annotated[
    ConvolutionalConfig
    | EfficientNetLiteConfig
    | ClipTowerConfig
    | VitTowerConfig
    | SwinTowerConfig
    | ResNetTowerConfig,
    Field(discriminator="kind"),
]
CaptionerSettings = Annotated[
    ShowTellConfig | ShowAttendTellConfig | AdaptiveConfig | MeshedMemoryConfig | CaptionTransformerConfig,
    Field(discriminator="kind"),
]

_CAPTIONERS = {
    ShowTellConfig: ShowTell,
    ShowAttendTellConfig: ShowAttendTell,
    AdaptiveConfig: Adaptive,
    MeshedMemoryConfig: MeshedMemoryTransformer,
}


def build_tower(settings: TowerSettings) -> nn.Module:
    """The tower of these settings; transformers is imported for those that need it."""
    if isinstance(settings, ConvolutionalConfig):
        return ConvolutionalTower(settings)
    if isinstance(settings, EfficientNetLiteConfig):
        from patchword.towers.efficientnet_lite import EfficientNetLiteTower

        return EfficientNetLiteTower(settings)
    if isinstance(settings, ClipTowerConfig):
        from patchword.towers.clip import ClipTower

        return ClipTower(settings)
    if isinstance(settings, ResNetTowerConfig):
        from patchword.towers.resnet import ResNetTower

        return ResNetTower(settings)
    from patchword.towers.vit import SwinTower, VitTower

    return VitTower(settings) if isinstance(settings, VitTowerConfig) else SwinTower(settings)


def build_captioner(
    settings: CaptionerSettings, feature_width: int, vocabulary_size: int, codebook: Codebook | None
) -> Captioner:
    """Raises ConfigError when a codebook is given to a captioner without region alignment, or missing from one with it."""
    if isinstance(settings, CaptionTransformerConfig):
        return CaptionTransformer(settings, feature_width, vocabulary_size, codebook)
    if codebook is not None:
        raise ConfigError(
            f"a codebook is given and {settings.kind} has no region alignment: leave it out, or choose caption_transformer"
        )
    return _CAPTIONERS[type(settings)](settings, feature_width, vocabulary_size)


def see(tower: nn.Module, inputs: Inputs) -> VisualFeatures:
    """Stored features where there are any; else what the tower makes of the pixels, or of tokens stored inside it.

    Raises:
        ConfigError: stored features of another width, that is, of another tower.
    """
    if inputs.features is not None:
        found = inputs.features.grid_BNC.shape[-1]
        if found != tower.width:
            raise ConfigError(
                f"stored features are {found} wide and the tower {tower.width}: the store was made by another tower"
            )
        return inputs.features
    return (
        tower(inputs.pixels_B3HW)
        if inputs.tokens is None
        else tower.resume(inputs.tokens, None, inputs.first_layer)
    )


class TowerModel(nn.Module):
    """A tower, frozen or not, in front of whatever reads it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    @property
    def tower_is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.tower.parameters())

    def train(self, mode: bool = True) -> TowerModel:
        """As `nn.Module.train`; a tower in which nothing learns stays in evaluation mode, its batch statistics and all."""
        super().train(mode)
        if self.tower_is_frozen:
            self.tower.eval()
        return self

    def features(self, inputs: Inputs) -> VisualFeatures:
        """What `see` gives; without gradient where nothing of the tower learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.tower_is_frozen):
            return see(self.tower, inputs)


class CaptionModel(TowerModel):
    """A tower and a captioner."""

    def __init__(self, tower: nn.Module, captioner: nn.Module) -> None:
        super().__init__(tower)
        self.captioner = captioner

    @classmethod
    def build(
        cls,
        tower: TowerSettings,
        captioner: CaptionerSettings,
        vocabulary_size: int,
        codebook: Codebook | None = None,
    ) -> CaptionModel:
        built = build_tower(tower)
        return cls(built, build_captioner(captioner, built.width, vocabulary_size, codebook))


class AnswerModel(TowerModel):
    """A tower and what answers questions from it: by choice from a list, or word by word; and a sense of what pictures it knows."""

    def __init__(self, tower: nn.Module, answerer: AnswerClassifier | AnswerGenerator) -> None:
        super().__init__(tower)
        self.answerer = answerer
        self.familiarity = Familiarity(tower.width)

    @classmethod
    def build(
        cls,
        tower: TowerSettings,
        questions: QuestionConfig,
        generator: CaptionerSettings | None,
        vocabulary_size: int,
        answers: int,
        codebook: Codebook | None = None,
    ) -> AnswerModel:
        """With a `generator`, a captioner that words the answers; else they are chosen among `answers`."""
        built = build_tower(tower)
        if generator is None:
            return cls(built, AnswerClassifier(questions, built.width, vocabulary_size, answers, codebook))
        encoder = QuestionEncoder(questions, built.width, vocabulary_size, codebook)
        return cls(
            built,
            AnswerGenerator(encoder, build_captioner(generator, questions.width, vocabulary_size, None)),
        )


TextTowerSettings = Annotated[
    BertTowerConfig | SentenceEncoderConfig | ClipTextTowerConfig, Field(discriminator="kind")
]


def build_text_tower(settings: TextTowerSettings) -> nn.Module:
    """The text tower of these settings; transformers is imported here, not before."""
    if isinstance(settings, BertTowerConfig):
        from patchword.towers.bert import BertTower

        return BertTower(settings)
    if isinstance(settings, SentenceEncoderConfig):
        from patchword.towers.sentence_encoder import SentenceEncoder

        return SentenceEncoder(settings)
    from patchword.towers.clip import ClipTextTower

    return ClipTextTower(settings)


def reader_preprocessing(tower: TowerPreprocessing) -> Preprocessing:
    """A tower's plain values as the preprocessing that decodes pictures."""
    return Preprocessing(
        size=tower.size,
        fit="squash" if tower.fit == "squash" else "short_side_center_crop",
        cover=tower.resize / tower.size,
        interpolation=tower.resample,
        mean=tower.mean,
        std=tower.std,
    )
