"""Learned prompts that join the tokens of a frozen layer, and the map that carries what they gathered to another tower.

Li et al. 2023 (PMF, arXiv 2304.06306), sections 3.2 and 3.3. A layer comes apart into `project` and `attend` (see `types.TowerLayer`), and
that is used twice. The keys and values of the tower's own tokens are made once for both stages, since both start from the same tokens. And
only rows that somebody reads are computed: the outputs of context prompts, and of all tokens in the query stage, are thrown away by the
paper's equations, so they are never made. The result is that of the whole layer, row by row.

Shape legend (with that of `types.py`): Q query prompts, M rows that join the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchword.types import Projections, TowerLayer

INITIAL_DEVIATION = 0.02
"""Standard deviation of untrained prompts, as in the public code."""


def _prompt(rows: int, width: int) -> nn.Parameter | None:
    return nn.Parameter(INITIAL_DEVIATION * torch.randn(rows, width)) if rows else None


class Prompts(nn.Module):
    """The prompts of one layer of one tower; a kind of length 0 has no parameter.

    `query_QC` gathers what the other tower should know, `query_context_MC` stands beside it in the query stage, and `fusion_context_MC`
    beside the other tower's message in the fusion stage. Prompts have no positions.
    """

    def __init__(self, width: int, query: int, query_context: int, fusion_context: int) -> None:
        super().__init__()
        self.query_QC = _prompt(query, width)
        self.query_context_MC = _prompt(query_context, width)
        self.fusion_context_MC = _prompt(fusion_context, width)


class PromptMap(nn.Module):
    """W2 ReLU(W1 h + b1) + b2: rows of one tower as rows of the other (PMF, equation 4)."""

    def __init__(self, width: int, hidden: int, other_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, other_width)

    def forward(self, rows_BQC: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(rows_BQC)))


def joined_with(
    tokens: Projections, joining: list[Projections], mask_BN: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask of the tokens with the joining rows behind them; a prompt's rows (batch 1) serve all rows of the batch."""
    batch = tokens.keys_BHND.shape[0]
    keys = torch.cat([tokens.keys_BHND, *(rows.keys_BHND.expand(batch, -1, -1, -1) for rows in joining)], 2)
    values = torch.cat(
        [tokens.values_BHND, *(rows.values_BHND.expand(batch, -1, -1, -1) for rows in joining)], 2
    )
    if mask_BN is None:
        return keys, values, None
    return keys, values, torch.cat([mask_BN, mask_BN.new_ones(batch, keys.shape[2] - mask_BN.shape[1])], 1)


def query_attention(
    layer: TowerLayer, tokens: Projections, prompts: Prompts, mask_BN: Tensor | None
) -> tuple[Tensor, ...]:
    """Queries (B, H, Q, D) of the query prompts, and the keys, values and mask of all that they attend to, the tokens first."""
    rows_1MC = torch.cat([part for part in (prompts.query_context_MC, prompts.query_QC) if part is not None])[
        None
    ]
    joining = layer.project(rows_1MC)
    keys, values, mask_BM = joined_with(tokens, [joining], mask_BN)
    queries_BHQD = joining.queries_BHND[:, :, -prompts.query_QC.shape[0] :].expand(keys.shape[0], -1, -1, -1)
    return queries_BHQD, keys, values, mask_BM


def query_rows(layer: TowerLayer, tokens: Projections, prompts: Prompts, mask_BN: Tensor | None) -> Tensor:
    """The query stage: the query prompts' rows of layer([tokens; query context; query]), shape (B, Q, C).

    Args:
        tokens: the tower's tokens before the layer, projected by it.
    """
    queries_BHQD, keys, values, mask_BM = query_attention(layer, tokens, prompts, mask_BN)
    return layer.attend(prompts.query_QC.expand(keys.shape[0], -1, -1), queries_BHQD, keys, values, mask_BM)


def fused_rows(
    layer: TowerLayer,
    tokens_BNC: Tensor,
    tokens: Projections,
    prompts: Prompts,
    message_BQC: Tensor | None,
    mask_BN: Tensor | None,
    rows: int | None,
) -> Tensor:
    """The fusion stage: the first `rows` token rows (None: all) of layer([tokens; fusion context; message]).

    Args:
        tokens_BNC, tokens: the tower's tokens before the layer, and the same projected by it.
        message_BQC: the mapped rows of the other tower; None where there are no query prompts.
    """
    context_1MC = None if prompts.fusion_context_MC is None else prompts.fusion_context_MC[None]
    joining = [layer.project(part) for part in (context_1MC, message_BQC) if part is not None]
    keys, values, mask_BM = joined_with(tokens, joining, mask_BN)
    return layer.attend(tokens_BNC[:, :rows], tokens.queries_BHND[:, :, :rows], keys, values, mask_BM)
