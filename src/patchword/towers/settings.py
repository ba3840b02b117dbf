"""Settings of all towers.

They are apart from the towers, so that a configuration can be read and listed without importing transformers.
Their schemas are built when they are first used (`defer_build`): most programs use one or two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, model_validator

from patchword.errors import ConfigError

Aligned = Literal["value_only", "value_with_residual", "correlative"]
"""Ways of mapping CLIP's patch tokens to its text space; see `towers/clip.py`."""


Channels = Annotated[int, Field(ge=1, le=65536)]
"""Channels of a stage."""
Cells = Annotated[int, Field(ge=1, le=8192)]
"""Rows or columns of a grid."""

_LARGEST = 10_000_000
"""No number of an architecture is larger: the largest are sizes of vocabularies."""
_STEERS = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")
"""Fields that say where code comes from or how it runs; a size of a network is none of them."""


class TowerConfig(BaseModel, extra="forbid", frozen=True, defer_build=True):
    """The fields that all towers over transformers' modules have.

    Exactly one of `source` and `architecture` must be given.
    """

    source: str | None = Field(None, description="folder or hub id of published weights")
    revision: str | None = Field(
        None, description="commit of the hub id; a branch name would not be repeatable"
    )
    architecture: dict[str, Any] | None = Field(
        None, description="fields of transformers' own configuration; weights start random"
    )
    trainable_from: int | None = Field(
        None, ge=0, le=10000, description="first trained layer; absent: frozen; 0: everything is trained"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> TowerConfig:
        if (self.source is None) == (self.architecture is None):
            found = "both" if self.source is not None else "neither"
            raise ValueError(
                "a tower needs either source (published weights) or architecture (random weights), and got "
                f"{found}"
            )
        return self

    @model_validator(mode="after")
    def _sizes_of_a_network(self) -> TowerConfig:
        for name, value in _values(self.architecture or {}):
            if name.lstrip("_").startswith(_STEERS) and value is not None:
                raise ValueError(f"architecture.{name} is no size of a network: leave it out")
            if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
                raise ValueError(
                    f"architecture.{name} is {value}: no number of a network is above {_LARGEST}"
                )
            if name.endswith("heads") and isinstance(value, (int, float)) and value < 1:
                raise ValueError(f"architecture.{name} is {value}: attention has at least one head")
        return self


def _values(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of nested tables and lists, with the name of the table's entry that they stand
    under."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _values(value, str(key))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _values(value, name)
    else:
        yield name, content


class AdaptersConfig(BaseModel, extra="forbid", frozen=True, defer_build=True):
    """Sizes of the adapters: small trained parts in the last blocks of a tower that may be frozen.

    An untrained adapter changes nothing.
    """

    blocks: int = Field(
        6, gt=0, le=512, description="last blocks that get an adapter on their attention's output"
    )
    bottleneck: int = Field(192, gt=0, le=65536, description="inner width of an adapter")


class ConvolutionalConfig(BaseModel, extra="forbid", frozen=True, defer_build=True):
    """Sizes of the convolutional tower, and how much of it is trained."""

    kind: Literal["convolutional"] = "convolutional"
    stem: int = Field(
        32,
        gt=0,
        le=65536,
        description="channels after the first convolution, at half the picture's resolution",
    )
    widths: tuple[Channels, ...] = Field(
        (64, 128, 256),
        min_length=1,
        max_length=12,
        description="channels of each stage; every stage halves the resolution",
    )
    blocks: tuple[Annotated[int, Field(ge=0, le=512)], ...] = Field(
        (1, 1, 1),
        min_length=1,
        max_length=12,
        description="residual blocks of each stage, the halving one not counted",
    )
    size: int = Field(
        96, ge=16, le=8192, description="side of the square picture that it is given, in pixels"
    )
    shared_width: int | None = Field(
        None,
        gt=0,
        le=65536,
        description="width of a linear map into a text space (pooled and aligned features); none if absent",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="probability that a picture skips a residual block while training"
    )
    trainable_from: int | None = Field(
        0, ge=0, le=10000, description="first trained stage; 0: everything is trained"
    )

    @model_validator(mode="after")
    def _same_stages(self) -> ConvolutionalConfig:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths has {len(self.widths)} stages and blocks {len(self.blocks)}: give one number of "
                "blocks per stage"
            )
        return self


class ClipTowerConfig(TowerConfig, extra="forbid", frozen=True, defer_build=True):
    """Settings of CLIP's vision tower."""

    kind: Literal["clip"] = "clip"
    grid: Literal["last", "penultimate"] = Field(
        "last", description="layer whose patch tokens are the grid; the last one's are not normed"
    )
    aligned: Aligned | None = Field(
        None, description="how patch tokens are brought into the text space; absent: they are not"
    )
    adapters: AdaptersConfig | None = Field(
        None, description="adapters in the last blocks, group tower.adapters; absent: none"
    )


class ClipTextTowerConfig(TowerConfig, extra="forbid", frozen=True, defer_build=True):
    """Settings of CLIP's text tower."""

    kind: Literal["clip-text"] = "clip-text"


class VitTowerConfig(TowerConfig, extra="forbid", frozen=True, defer_build=True):
    """Settings of a ViT tower."""

    kind: Literal["vit"] = "vit"
    adapters: AdaptersConfig | None = Field(
        None, description="adapters in the last blocks, group tower.adapters; absent: none"
    )


class SwinTowerConfig(TowerConfig, extra="forbid", frozen=True, defer_build=True):
    """Settings of a Swin tower."""

    kind: Literal["swin"] = "swin"


class ResNetTowerConfig(TowerConfig, extra="forbid", frozen=True, defer_build=True):
    """Settings of a ResNet tower."""

    kind: Literal["resnet"] = "resnet"
    grid: tuple[Cells, Cells] | None = Field(
        None, description="rows and columns that the last map is pooled to; absent: as it comes"
    )
    size: int = Field(
        224, ge=32, le=8192, description="side of the square picture that it is given, in pixels"
    )


class EfficientNetLiteConfig(BaseModel, extra="forbid", frozen=True, defer_build=True):
    """Settings of an EfficientNet-Lite tower, trained on ImageNet, for any picture size."""

    kind: Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"] = "efficientnet-lite2"
    weights: Literal["package", "none"] = Field(
        "package",
        description="package: the published ones, from an installed package; "
        "none: random, or a model folder's own",
    )
    grid: Literal["head", "last_block"] = Field(
        "head", description="the 1,280 channels of the head, or those of the last block (352 of lite2)"
    )
    size: int | None = Field(
        None,
        ge=32,
        le=8192,
        description="side of the square picture in pixels; absent: that of its own training",
    )
    fit: Literal["squash", "crop"] = Field(
        "squash",
        description="squash: the whole picture, aspect not kept; "
        "crop: its middle, as the weights were trained",
    )
    classifier: bool = Field(
        True, description="keep the 1,000 classes of ImageNet, which name pictures and cells"
    )
    statistics: Literal["batch", "stored"] = Field(
        "batch",
        description="what trained blocks normalise by while training: the batch, or the stored statistics",
    )
    aligned: Literal["class_names"] | None = Field(
        None,
        description="class_names: every cell gets a place in the space of the sentence encoder, by the "
        "names of "
        "its likeliest classes (ConSE); absent: cells have none",
    )
    names_width: int = Field(384, gt=0, description="class_names: width of the sentence encoder's space")
    gate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="class_names: weight of the whole picture's logits in those of a cell, which alone is "
        "far too sure",
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability that a picture skips the last block while training; less below",
    )
    inference: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="numbers of a pass without gradient; bfloat16 pays only on processors that have it",
    )
    trainable_from: int | None = Field(
        None, ge=0, le=10000, description="first trained block; absent: frozen; 0: everything is trained"
    )


class BertTowerConfig(TowerConfig, extra="forbid", frozen=True, defer_build=True):
    """Settings of a BERT-like text tower: published weights, or a custom architecture."""

    kind: Literal["bert"] = "bert"
    family: Literal["bert", "roberta", "xlm-roberta"] = "bert"


class LanguageConfig(TowerConfig, extra="forbid", frozen=True):
    """Settings of a causal language model: published weights, or an architecture with its `model_type`."""

    kind: Literal["causal"] = "causal"


class BertSizes(NamedTuple):
    """Fields of transformers' BertConfig with its defaults."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    @classmethod
    def read(cls, architecture: dict[str, Any]) -> BertSizes:
        """Raises ConfigError for a field that is no size, and for a width that its heads do not divide."""
        strange = sorted(set(architecture) - set(cls._fields))
        if strange:
            raise ConfigError(
                f"the sentence encoder's architecture has no {', '.join(strange)}: give "
                f"{', '.join(cls._fields)}, or take the tower of kind bert"
            )
        sizes = cls(**architecture)
        if sizes.num_attention_heads < 1:
            raise ConfigError(f"num_attention_heads is {sizes.num_attention_heads}: at least one is needed")
        if sizes.hidden_size % sizes.num_attention_heads:
            raise ConfigError(
                f"hidden_size {sizes.hidden_size} is no multiple of {sizes.num_attention_heads} heads"
            )
        return sizes


MINILM = BertSizes(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
"""The architecture of all-MiniLM-L6-v2."""
LONGEST_SENTENCE = 256
"""Longest text in tokens that its published weights are meant for."""


class SentenceEncoderConfig(BaseModel, extra="forbid", frozen=True, defer_build=True):
    """Settings of a sentence encoder as text tower: all-MiniLM-L6-v2 with its WordPiece tokenizer."""

    kind: Literal["sentence-encoder"] = "sentence-encoder"
    weights: Literal["package", "none"] = Field(
        "package",
        description="package: the published ones, from an installed package; "
        "none: random, or a model folder's own",
    )
    architecture: dict[str, Any] | None = Field(
        None,
        description="sizes, by their names in transformers' BertConfig, with weights = none; "
        "absent: that of all-MiniLM-L6-v2",
    )
    own_space: bool = Field(
        False,
        description="texts keep the encoder's own space (two_towers.width is then 384), pictures come to it",
    )
    trainable_from: int | None = Field(
        None, ge=0, le=10000, description="first trained layer; absent: frozen; 0: everything is trained"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> SentenceEncoderConfig:
        if self.weights == "package" and self.architecture is not None:
            raise ValueError(
                "an architecture of one's own has no published weights: leave it out, or set weights to none"
            )
        return self

    def sizes(self) -> BertSizes:
        """The sizes that these settings name. Raises ConfigError where they name none of a BERT."""
        return MINILM if self.architecture is None else BertSizes.read(self.architecture)
