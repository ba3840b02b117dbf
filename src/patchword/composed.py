"""One composed model per task: a tower and what reads it, each with its own section of the configuration.

The tables below are the whole registry: a new captioner is one line in `CAPTIONERS`, a new tower one in
`TOWERS` and one in the union of settings under it. What a table names is imported when a configuration asks
for it, so that no model is loaded for the sake of another.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from patchword.config import ByKind, Kind, KindSettings
from patchword.data.captions import Inputs
from patchword.data.pictures import Preprocessing
from patchword.errors import ConfigError
from patchword.layers.codebook import Codebook
from patchword.lookup import look_up
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
from patchword.types import Prototypes, VisualFeatures

CAPTIONERS = {
    "show_tell": Kind("models.captioners.show_tell", "ShowTellConfig", "ShowTell"),
    "show_attend_tell": Kind("models.captioners.show_attend_tell", "ShowAttendTellConfig", "ShowAttendTell"),
    "adaptive": Kind("models.captioners.adaptive", "AdaptiveConfig", "Adaptive"),
    "meshed_memory": Kind("models.captioners.meshed_memory", "MeshedMemoryConfig", "MeshedMemoryTransformer"),
    "caption_transformer": Kind(
        "models.captioners.caption_transformer", "CaptionTransformerConfig", "CaptionTransformer"
    ),
}
TOWERS = {
    "convolutional": "towers.convolutional:ConvolutionalTower",
    "efficientnet-lite0": "towers.efficientnet_lite:EfficientNetLiteTower",
    "efficientnet-lite1": "towers.efficientnet_lite:EfficientNetLiteTower",
    "efficientnet-lite2": "towers.efficientnet_lite:EfficientNetLiteTower",
    "clip": "towers.clip:ClipTower",
    "vit": "towers.vit:VitTower",
    "swin": "towers.vit:SwinTower",
    "resnet": "towers.resnet:ResNetTower",
}
TEXT_TOWERS = {
    "bert": "towers.bert:BertTower",
    "sentence-encoder": "towers.sentence_encoder:SentenceEncoder",
    "clip-text": "towers.clip:ClipTextTower",
}

CaptionerSettings = Annotated[KindSettings, ByKind(CAPTIONERS)]
TowerSettings = Annotated[
    ConvolutionalConfig
    | EfficientNetLiteConfig
    | ClipTowerConfig
    | VitTowerConfig
    | SwinTowerConfig
    | ResNetTowerConfig,
    Field(discriminator="kind"),
]
TextTowerSettings = Annotated[
    BertTowerConfig | SentenceEncoderConfig | ClipTextTowerConfig, Field(discriminator="kind")
]


def build_tower(settings: TowerSettings) -> nn.Module:
    """The tower of these settings; transformers is imported for those that need it."""
    tower = look_up(TOWERS[settings.kind])(settings)
    if isinstance(settings, EfficientNetLiteConfig) and (settings.aligned, settings.weights) == (
        "class_names",
        "package",
    ):
        tower.set_names(look_up("sentences:embed_class_names")())
    return tower


def build_text_tower(settings: TextTowerSettings) -> nn.Module:
    """The text tower of these settings; transformers is imported here, not before."""
    return look_up(TEXT_TOWERS[settings.kind])(settings)


def build_two_streams(
    config: Any, text: TextTowerSettings, feature_width: int, classes: int, heads: bool = True
) -> Any:
    """The two streams of ViLBERT (`VilbertConfig`) over features of that width; without `heads` for a task
    that brings its own.
    """
    sizes = {"vocab_size": 1, "max_position_embeddings": 1, "num_hidden_layers": config.pairs}
    sizes |= {"hidden_size": config.width, "intermediate_size": config.hidden}
    fields = {**sizes, "num_attention_heads": config.heads}
    picture = build_text_tower(BertTowerConfig(architecture=fields, trainable_from=0))
    # The blocks alone are used: regions have an embedding of their own.
    picture.model.embeddings.requires_grad_(False)
    vilbert = look_up("models.pretraining.vilbert:Vilbert")
    return vilbert(config, build_text_tower(text), picture, feature_width, classes, heads)


def build_captioner(
    settings: CaptionerSettings, feature_width: int, vocabulary_size: int, codebook: Codebook | None
) -> Any:
    """A captioner that is a module as well, for which Python has no type.

    Raises ConfigError when a codebook is given to a captioner without region alignment, or missing from
    one with it.
    """
    build = CAPTIONERS[settings.kind].part_class()
    if hasattr(settings, "region_alignment"):
        return build(
            settings, feature_width, vocabulary_size, codebook, _copying(settings, vocabulary_size, codebook)
        )
    if codebook is not None:
        raise ConfigError(
            f"a codebook is given and {settings.kind} has no region alignment: leave it out, or choose "
            "caption_transformer"
        )
    return build(settings, feature_width, vocabulary_size)


def _copying(settings: Any, vocabulary_size: int, codebook: Codebook | None) -> nn.Module | None:
    """The copy gate of a caption transformer, or None. Raises ConfigError where it lacks a codebook."""
    if settings.copying is None:
        return None
    sizes = settings.copying.words, settings.copying.width, settings.width
    make = look_up("layers.copying:Copying")
    gate: nn.Module = make(*sizes, vocabulary_size, codebook, settings.copying.hidden)
    return gate


def region_alignment_of(settings: CaptionerSettings) -> Any:
    """The settings of a captioner's region alignment; None where it has none, or is of a kind that has no
    such part.
    """
    return getattr(settings, "region_alignment", None)


def prototypes_of(captioner: nn.Module) -> Prototypes | None:
    """The prototype memory of a captioner; None where it has none, or is of a kind that has no such part."""
    memory = getattr(captioner, "memory", None)
    return memory if isinstance(memory, Prototypes) else None


def see(tower: nn.Module, inputs: Inputs) -> VisualFeatures:
    """Stored features where there are any; else what the tower makes of the pixels, or of tokens stored
    inside it.

    Raises:
        ConfigError: stored features of another width, that is, of another tower.
    """
    if inputs.features is not None:
        found = inputs.features.grid_BNC.shape[-1]
        if found != tower.width:
            raise ConfigError(
                f"stored features are {found} wide and the tower {tower.width}: the store was made by "
                "another tower"
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
        """Sets the mode, as `nn.Module.train` does; a tower in which nothing learns stays in evaluation mode,
        its batch statistics included.
        """
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

    def __init__(
        self,
        tower: nn.Module,
        captioner: nn.Module,
        familiarity: nn.Module | None = None,
        consensus: nn.Module | None = None,
    ) -> None:
        super().__init__(tower)
        self.captioner = captioner
        self.familiarity = familiarity
        self.consensus = consensus

    @classmethod
    def build(
        cls,
        tower: TowerSettings,
        captioner: CaptionerSettings,
        vocabulary_size: int,
        codebook: Codebook | None = None,
    ) -> CaptionModel:
        """A model that begins to be trained."""
        return cls.over(build_tower(tower), captioner, vocabulary_size, codebook)

    @classmethod
    def over(
        cls,
        tower: nn.Module,
        captioner: CaptionerSettings,
        vocabulary_size: int,
        codebook: Codebook | None = None,
        familiar: bool = False,
        ngrams: int | None = None,
    ) -> CaptionModel:
        """Builds the same over a tower that is given.

        `familiar`: with a sense of what pictures the model was trained on; `ngrams`: with a consensus that
        predicts so many.
        """
        sense = look_up("layers.familiarity:Familiarity")(tower.width) if familiar else None
        consensus = None if ngrams is None else look_up("layers.consensus:Consensus")(tower.width, ngrams)
        built = build_captioner(captioner, tower.width, vocabulary_size, codebook)
        return cls(tower, built, sense, consensus)


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
