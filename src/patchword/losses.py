"""What is minimised, as plain functions of tensors.

Losses over words come as (sum, count): a training step divides by the number of words of the whole batch, over all processes and all
accumulated parts, so that the result does not depend on how the batch was cut.

Shape legend: see `patchword.types`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def caption_cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, pad_id: int, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sum of -log p(target) over the words, and their number (a tensor, for reduction over processes).

    `targets_BT[b, t]` is the token after position t, `pad_id` where there is none: such places count for nothing. With `label_smoothing`
    = s a share s of each target is spread evenly over the vocabulary (Szegedy et al. 2016).
    """
    total = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=pad_id, reduction="sum", label_smoothing=label_smoothing
    )
    return total, (targets_BT != pad_id).sum()


def doubly_stochastic(
    attention_BTN: Tensor, lengths_B: Tensor, mean_over_patches: bool = False, mask_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over captions of sum_i (1 - sum_t alpha_ti)^2, and the number of captions (Xu et al. 2015, equation 14).

    It asks every patch to be looked at about once in a caption. The paper sums over the patches i; the PyTorch course takes their mean
    (`mean_over_patches`), which makes the same weight 196 times smaller on a grid of 14 x 14. Words at t >= lengths and patches that are
    not real (`mask_BN`) count for nothing.
    """
    words_BT1 = (torch.arange(attention_BTN.shape[1], device=attention_BTN.device) < lengths_B[:, None])[..., None]
    gaps_BN = (1 - (attention_BTN.float() * words_BT1).sum(dim=1)).square()
    patches_B = torch.full_like(gaps_BN[:, 0], gaps_BN.shape[1])
    if mask_BN is not None:
        gaps_BN, patches_B = gaps_BN * mask_BN, mask_BN.sum(dim=1)
    per_caption_B = gaps_BN.sum(dim=1) / patches_B if mean_over_patches else gaps_BN.sum(dim=1)
    return per_caption_B.sum(), torch.tensor(len(lengths_B), device=lengths_B.device)
