"""BERT-like text towers (BERT, RoBERTa, XLM-RoBERTa) as layered towers over transformers' modules.

Devlin et al. 2019 (arXiv 1810.04805). The layers are post-norm: LN(x + attention(x)), then LN(... + MLP).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    PretrainedConfig,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from patchword.errors import ModelError
from patchword.towers import layered
from patchword.towers.layered import PartlyFrozenModule, Parts
from patchword.towers.settings import BertTowerConfig
from patchword.types import Projections, TextFeatures

_FAMILIES = {
    "bert": (BertModel, BertConfig),
    "roberta": (RobertaModel, RobertaConfig),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig),
}


class BertLayer:
    """A view of one post-norm block with the interface of `types.TowerLayer`."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, tokens_BLC: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        return self.attend(tokens_BLC, *self.project(tokens_BLC), mask_BL)

    def project(self, tokens_BLC: Tensor) -> Projections:
        """See `types.TowerLayer.project`; a post-norm block has no norm before its attention."""
        attention = self.block.attention.self
        maps, heads = (attention.query, attention.key, attention.value), attention.num_attention_heads
        return Projections(*(layered.split_heads(to_heads(tokens_BLC), heads) for to_heads in maps))

    def attend(
        self, tokens_BQC: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask_BL: Tensor | None = None
    ) -> Tensor:
        """See `types.TowerLayer.attend`."""
        attention = self.block.attention
        dropout = attention.self.dropout.p if self.block.training else 0.0
        attended_BQC = layered.attend_heads(queries, keys, values, mask_BL, dropout)
        return self.block.feed_forward_chunk(attention.output(attended_BQC, tokens_BQC))


class BertTower(PartlyFrozenModule):
    """A BERT-like text tower.

    Attributes:
        width: C.
        depth: number of layers.
        max_length: longest text in tokens.
        vocabulary_size: number of rows of the embedding.
        has_class_token: True; it is token 0.
        appendable: True; a layer takes any number of tokens, and every token sees all others.
    """

    shared_width = None
    has_class_token = True
    appendable = True

    def __init__(self, config: BertTowerConfig) -> None:
        """Raises ModelError for published weights that do not fit.

        Raises ConfigError for a `trainable_from` beyond the last layer.
        """
        super().__init__()
        self.config = config
        model_class, config_class = _FAMILIES[config.family]
        if config.source is not None:
            self.model = layered.load_published(
                model_class, config.source, config.revision, {"add_pooling_layer": False}
            )
        else:
            self.model = model_class(config_class(**(config.architecture or {})), add_pooling_layer=False)
        self.layers = tuple(BertLayer(block) for block in self.model.encoder.layer)
        architecture = self.model.config
        self.width, self.depth, self.vocabulary_size = (
            architecture.hidden_size,
            len(self.layers),
            architecture.vocab_size,
        )
        # RoBERTa counts positions from the padding id + 1 on, so the rows before are unused.
        unused = 0 if config.family == "bert" else architecture.pad_token_id + 1
        self.max_length = architecture.max_position_embeddings - unused
        blocks = tuple((layer.block,) for layer in self.layers)
        self.freeze_below(Parts((self.model.embeddings,), blocks, ()), config.trainable_from)

    @classmethod
    def from_architecture(
        cls, architecture: PretrainedConfig, trainable_from: int | None = None
    ) -> BertTower:
        """Builds the tower with random weights from a transformers configuration.

        It is a BertConfig, RobertaConfig or XLMRobertaConfig.
        """
        fields = architecture.to_diff_dict()
        return cls(
            BertTowerConfig(
                family=architecture.model_type, architecture=fields, trainable_from=trainable_from
            )
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        revision: str | None = None,
        family: Literal["bert", "roberta", "xlm-roberta"] = "bert",
        trainable_from: int | None = None,
    ) -> BertTower:
        """Loads published weights from a folder or by a hub id."""
        return cls(
            BertTowerConfig(
                family=family, source=str(source), revision=revision, trainable_from=trainable_from
            )
        )

    def embed(
        self, ids_BL: Tensor, mask_BL: Tensor | None = None, types_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the tokens (B, L, C) before layer 0, and the mask (B, L), True at real tokens.

        Args:
            mask_BL: bool or 0/1; None means that all tokens are real.
            types_BL: segment of each token; None means segment 0.
        Raises:
            ModelError: a text is longer than the tower's table of positions.
        """
        if ids_BL.shape[1] > self.max_length:
            raise ModelError(
                f"a text has {ids_BL.shape[1]} tokens and the text tower takes at most {self.max_length}: "
                "cut it"
            )
        mask_BL = torch.ones_like(ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL.bool()
        return self.model.embeddings(input_ids=ids_BL, token_type_ids=types_BL), mask_BL

    def embed_hidden(
        self, ids_BL: Tensor, mask_BL: Tensor | None = None, *, hidden: Tensor, mark_C: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `embed`, with `mark_C` in the place of the words that `hidden` (B, L) marks; their positions
        stay.

        Raises ModelError for RoBERTa, whose positions follow from the ids.
        """
        if self.config.family != "bert":
            raise ModelError(f"words of a {self.config.family} tower cannot be hidden: take family bert")
        mask_BL = torch.ones_like(ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL.bool()
        words_BLC = self.model.embeddings.word_embeddings(ids_BL)
        words_BLC = torch.where(hidden[..., None], mark_C.to(words_BLC.dtype), words_BLC)
        return self.model.embeddings(inputs_embeds=words_BLC), mask_BL

    @property
    def feed_forwards(self) -> tuple[nn.Module, ...]:
        """Of each layer the module whose output the last residual is added to."""
        return tuple(layer.block.output.dense for layer in self.layers)

    def finish(self, tokens_BLC: Tensor, mask_BL: Tensor | None = None) -> TextFeatures:
        """Returns the features as they are: a post-norm layer already ends in a LayerNorm."""
        return TextFeatures(tokens_BLC=tokens_BLC, mask_BL=mask_BL)

    def forward(
        self, ids_BL: Tensor, mask_BL: Tensor | None = None, types_BL: Tensor | None = None
    ) -> TextFeatures:
        """Returns the features of B texts; the arguments are those of `embed`."""
        tokens_BLC, mask_BL = self.embed(ids_BL, mask_BL, types_BL)
        return self.finish(layered.run_layers(self.layers, tokens_BLC, mask_BL), mask_BL)
