"""What is minimised, as plain functions of tensors.

Losses over words come as (sum, count): a training step divides by the number of words of the whole batch, over all processes and all
accumulated parts, so that the result does not depend on how the batch was cut.

Shape legend: see `patchword.types`; I images, J captions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def caption_cross_entropy(
    logits_BTV: Tensor, targets_BT: Tensor, pad_id: int, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum of -log p(target) over the words, and their number (a tensor, for reduction over processes).

    `targets_BT[b, t]` is the token after position t, `pad_id` where there is none: such places count for nothing. With `label_smoothing`
    = s a share s of each target is spread evenly over the vocabulary (Szegedy et al. 2016).
    """
    total = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        targets_BT.flatten(),
        ignore_index=pad_id,
        reduction="sum",
        label_smoothing=label_smoothing,
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
    words_BT1 = (torch.arange(attention_BTN.shape[1], device=attention_BTN.device) < lengths_B[:, None])[
        ..., None
    ]
    gaps_BN = (1 - (attention_BTN.float() * words_BT1).sum(dim=1)).square()
    patches_B = torch.full_like(gaps_BN[:, 0], gaps_BN.shape[1])
    if mask_BN is not None:
        gaps_BN, patches_B = gaps_BN * mask_BN, mask_BN.sum(dim=1)
    per_caption_B = gaps_BN.sum(dim=1) / patches_B if mean_over_patches else gaps_BN.sum(dim=1)
    return per_caption_B.sum(), torch.tensor(len(lengths_B), device=lengths_B.device)


def hinge_loss(similarities_IJ: Tensor, owner_J: Tensor, margin: float, hardest: bool) -> Tensor:
    """Bidirectional hinge, summed over the captions (VSE++, Faghri 2018; the alignment loss of LAPS, Fu 2024).

    Caption j belongs to picture i = `owner_J[j]`: [margin + s_ik - s_ij]+ for captions k of other pictures, [margin + s_kj - s_ij]+ for
    other pictures k. `hardest` takes the largest term of each caption and direction (LAPS from its second epoch on), otherwise all terms
    are summed.
    """
    own_J = similarities_IJ[owner_J, torch.arange(len(owner_J), device=owner_J.device)]
    mine_IJ = torch.arange(len(similarities_IJ), device=owner_J.device)[:, None] == owner_J
    other_pictures_IJ = (margin + similarities_IJ - own_J).clamp_min(0).masked_fill(mine_IJ, 0.0)
    other_captions_JJ = (
        (margin + similarities_IJ[owner_J] - own_J[:, None]).clamp_min(0).masked_fill(mine_IJ[owner_J], 0.0)
    )
    if hardest:
        return other_captions_JJ.amax(dim=1).sum() + other_pictures_IJ.amax(dim=0).sum()
    return other_captions_JJ.sum() + other_pictures_IJ.sum()


def warm_up(done: float, length: float) -> float:
    """Factor of a loss that begins gently: from 0 to 1 in a line over the first `length` (LAPS: one epoch), then 1."""
    return min(1.0, done / length) if length else 1.0


def ratio_loss(keep_IJN: Tensor, keep: float) -> Tensor:
    """(share kept - rho)^2, mean over pairs (LAPS; its weight there is 2). Only the paper variant's decision gives it a gradient."""
    return (keep_IJN.mean(dim=2) - keep).square().mean()
