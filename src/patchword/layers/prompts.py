"""Learned prompts beside the tokens of a frozen layer, and the map from one tower's rows to the other's.

Source: PMF (Li et al. 2023, arXiv 2304.06306), sections 3.2 and 3.3. A layer is split into `project` and
`attend` (see `types.TowerLayer`), which saves work twice. The keys and values of the tower's own tokens are
computed once for both stages, because both start from the same tokens. And only rows that are used are
computed: the paper's equations discard the outputs of context prompts, and of all tokens in the query stage.
The rows that are computed equal those of the whole layer.

Shape legend (in addition to `types.py`): Q query prompts, M rows that join the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchword.errors import ModelError
from patchword.types import Projections, TowerLayer

INITIAL_DEVIATION = 0.02
"""Standard deviation of untrained prompts, as in the public code."""


def _prompt(rows: int, width: int) -> nn.Parameter | None:
    return nn.Parameter(INITIAL_DEVIATION * torch.randn(rows, width)) if rows else None


class Prompts(nn.Module):
    """The prompts of one layer of one tower; a kind of length 0 has no parameter.

    `query_QC` collects what the other tower receives. `query_context_MC` joins it in the query stage, and
    `fusion_context_MC` joins the other tower's message in the fusion stage. Prompts have no positions.
    """

    def __init__(self, width: int, query: int, query_context: int, fusion_context: int) -> None:
        super().__init__()
        self.query_QC = _prompt(query, width)
        self.query_context_MC = _prompt(query_context, width)
        self.fusion_context_MC = _prompt(fusion_context, width)

    def query_prompts(self) -> Tensor:
        """The query prompts (Q, C). Raises ModelError for prompts that have none, and so no query stage."""
        if self.query_QC is None:
            raise ModelError("this layer has no query prompts: its query stage must be left out")
        return self.query_QC


class PromptMap(nn.Module):
    """W2 ReLU(W1 h + b1) + b2: maps rows of one tower to the width of the other (PMF, equation 4)."""

    def __init__(self, width: int, hidden: int, other_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, other_width)

    def forward(self, rows_BQC: Tensor) -> Tensor:
        """Returns the mapped rows, (B, Q, width of the other tower)."""
        return self.outer(torch.relu(self.inner(rows_BQC)))


def joined_with(
    tokens: Projections, joining: list[Projections], mask_BN: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns keys, values and mask of the tokens followed by the joining rows.

    Rows of a prompt have batch size 1 and are expanded to the batch.
    """
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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Returns the queries (B, H, Q, D) of the query prompts, and the keys, values and mask they attend to.

    The tokens come first in the keys.
    """
    rows_1MC = torch.cat([part for part in (prompts.query_context_MC, prompts.query_QC) if part is not None])[
        None
    ]
    joining = layer.project(rows_1MC)
    keys, values, mask_BM = joined_with(tokens, [joining], mask_BN)
    queries = len(prompts.query_prompts())
    queries_BHQD = joining.queries_BHND[:, :, -queries:].expand(keys.shape[0], -1, -1, -1)
    return queries_BHQD, keys, values, mask_BM


def query_rows(layer: TowerLayer, tokens: Projections, prompts: Prompts, mask_BN: Tensor | None) -> Tensor:
    """The query stage: the query prompts' rows of layer([tokens; query context; query]), shape (B, Q, C).

    Args:
        tokens: the tower's tokens before the layer, projected by it.
    """
    queries_BHQD, keys, values, mask_BM = query_attention(layer, tokens, prompts, mask_BN)
    prompts_BQC = prompts.query_prompts().expand(keys.shape[0], -1, -1)
    return layer.attend(prompts_BQC, queries_BHQD, keys, values, mask_BM)


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
        tokens_BNC, tokens: the tower's tokens before the layer, as they are and projected by the layer.
        message_BQC: the mapped rows of the other tower; None where there are no query prompts.
    """
    context_1MC = None if prompts.fusion_context_MC is None else prompts.fusion_context_MC[None]
    joining = [layer.project(part) for part in (context_1MC, message_BQC) if part is not None]
    keys, values, mask_BM = joined_with(tokens, joining, mask_BN)
    return layer.attend(tokens_BNC[:, :rows], tokens.queries_BHND[:, :, :rows], keys, values, mask_BM)
