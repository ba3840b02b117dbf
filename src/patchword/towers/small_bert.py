"""BERT in plain torch, for text towers that must be there at once: importing transformers' takes seconds.

Devlin et al. 2019 (arXiv 1810.04805), with x the sum of the embeddings of word, position and segment, normed:

    layer:  y = LN(x + attention(x)),   x' = LN(y + W_2 gelu(W_1 y))                   (post-norm)

Modules have the names of transformers' BertModel, so weights published for that one load as they are. Sizes
are fields of its BertConfig; whatever else a BertConfig can say (another activation, relative positions) is
refused (`settings.BertSizes`), and `towers/bert.py` has it.

Shape legend: that of `patchword.types`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.errors import ModelError
from patchword.towers import layered
from patchword.towers.layered import PartlyFrozenModule, Parts
from patchword.towers.settings import BertSizes
from patchword.types import Projections


class _Embeddings(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.word_embeddings = nn.Embedding(sizes.vocab_size, width, padding_idx=sizes.pad_token_id)
        self.position_embeddings = nn.Embedding(sizes.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(sizes.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=sizes.layer_norm_eps)
        self.dropout = nn.Dropout(sizes.hidden_dropout_prob)

    def forward(self, ids_BL: Tensor, types_BL: Tensor | None) -> Tensor:
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        types_BL = torch.zeros_like(ids_BL) if types_BL is None else types_BL
        tokens_BLC = self.word_embeddings(ids_BL) + self.token_type_embeddings(types_BL)
        return self.dropout(self.LayerNorm(tokens_BLC + self.position_embeddings(positions_L)))


class _Projections(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        for name in ("query", "key", "value"):
            self.add_module(name, nn.Linear(sizes.hidden_size, sizes.hidden_size))


class _ResidualNorm(nn.Module):
    """LN(x + W h): the end of both halves of a layer."""

    def __init__(self, inputs: int, sizes: BertSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)
        self.dropout = nn.Dropout(sizes.hidden_dropout_prob)

    def forward(self, hidden_BLC: Tensor, tokens_BLC: Tensor) -> Tensor:
        return self.LayerNorm(tokens_BLC + self.dropout(self.dense(hidden_BLC)))


class BertBlock(nn.Module):
    """One layer, with the interface of `types.TowerLayer`."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.heads, self.attention_dropout = sizes.num_attention_heads, sizes.attention_probs_dropout_prob
        self.attention = nn.ModuleDict(
            {"self": _Projections(sizes), "output": _ResidualNorm(sizes.hidden_size, sizes)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(sizes.hidden_size, sizes.intermediate_size)})
        self.output = _ResidualNorm(sizes.intermediate_size, sizes)

    def forward(self, tokens_BLC: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Returns the tokens (B, L, C) after the layer."""
        return self.attend(tokens_BLC, *self.project(tokens_BLC), mask_BL)

    def project(self, tokens_BLC: Tensor) -> Projections:
        """See `types.TowerLayer.project`."""
        maps = self.attention["self"]
        return Projections(
            *(
                layered.split_heads(to_heads(tokens_BLC), self.heads)
                for to_heads in (maps.query, maps.key, maps.value)
            )
        )

    def attend(
        self, tokens_BQC: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask_BL: Tensor | None = None
    ) -> Tensor:
        """See `types.TowerLayer.attend`."""
        dropout = self.attention_dropout if self.training else 0.0
        attended_BQC = layered.attend_heads(queries, keys, values, mask_BL, dropout)
        tokens_BQC = self.attention["output"](attended_BQC, tokens_BQC)
        return self.output(F.gelu(self.intermediate["dense"](tokens_BQC)), tokens_BQC)


class SmallBert(PartlyFrozenModule):
    """BERT without its pooler.

    Attributes:
        width: C.
        depth: number of layers.
        max_length: longest text in tokens.
        vocabulary_size: number of rows of the embedding.
    """

    def __init__(self, sizes: BertSizes, trainable_from: int | None) -> None:
        """Raises ConfigError for a `trainable_from` beyond the last layer."""
        super().__init__()
        blocks = nn.ModuleList(BertBlock(sizes) for _ in range(sizes.num_hidden_layers))
        encoder = nn.ModuleDict({"layer": blocks})
        self.model = nn.ModuleDict({"embeddings": _Embeddings(sizes), "encoder": encoder})
        self.layers = tuple(blocks)
        self.width, self.depth = sizes.hidden_size, sizes.num_hidden_layers
        self.max_length, self.vocabulary_size = sizes.max_position_embeddings, sizes.vocab_size
        self._begin(sizes.initializer_range)
        embeddings = self.model["embeddings"]
        self.freeze_below(Parts((embeddings,), tuple((block,) for block in blocks), ()), trainable_from)

    def _begin(self, deviation: float) -> None:
        """Random weights as BERT's: normal of this deviation, biases and the padding's embedding zero."""
        for module in self.model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])

    def embed(
        self, ids_BL: Tensor, mask_BL: Tensor | None = None, types_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the tokens (B, L, C) before layer 0, and the mask (B, L), True at real tokens.

        Raises ModelError for a text that is longer than the table of positions.
        """
        if ids_BL.shape[1] > self.max_length:
            raise ModelError(
                f"a text has {ids_BL.shape[1]} tokens and the text tower takes at most {self.max_length}: "
                "cut it"
            )
        mask_BL = torch.ones_like(ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL.bool()
        return self.model["embeddings"](ids_BL, types_BL), mask_BL
