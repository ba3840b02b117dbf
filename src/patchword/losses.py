"""Losses, as plain functions of tensors.

A loss over words is returned as (sum, count). A training step divides by the number of words of the whole
batch, over all processes and all accumulated parts, so the result does not depend on how the batch was split.

Shape legend: see `patchword.types`; I images, J captions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def caption_cross_entropy(
    logits_BTV: Tensor, targets_BT: Tensor, pad_id: int, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Returns the sum of -log p(target) over the words, and the number of words.

    The number is a tensor, so that processes can reduce it. `targets_BT[b, t]` is the token after position t,
    or `pad_id` where there is none; such positions do not count. With `label_smoothing` = s, a share s of
    each target is spread evenly over the vocabulary (Szegedy et al. 2016).
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
    """Returns the sum over captions of sum_i (1 - sum_t alpha_ti)^2, and the number of captions.

    This is the doubly stochastic attention of Xu et al. 2015, equation 14: it asks that every patch be
    attended to about once in a caption. The paper sums over the patches i. The PyTorch course takes their
    mean (`mean_over_patches`), which makes the same weight 196 times smaller on a grid of 14 x 14. Words at t
    >= lengths and padded patches (False in `mask_BN`) do not count.
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
    """Bidirectional hinge loss, summed over the captions.

    It is the loss of VSE++ (Faghri 2018) and the alignment loss of LAPS (Fu 2024). Caption j belongs to
    picture i = `owner_J[j]`. Its terms are [margin + s_ik - s_ij]+ for captions k of other pictures, and
    [margin + s_kj - s_ij]+ for other pictures k. With `hardest`, only the largest term of each caption and
    direction counts (LAPS from its second epoch on); otherwise all terms are summed.
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
    """Factor of a loss that rises linearly from 0 to 1 over the first `length`, and stays 1.

    LAPS warms up over one epoch.
    """
    return min(1.0, done / length) if length else 1.0


def ratio_loss(keep_IJN: Tensor, keep: float) -> Tensor:
    """(share of kept patches - rho)^2, averaged over pairs; LAPS gives it a weight of 2.

    It has a gradient only in the paper variant, where the decision to keep a patch is differentiable.
    """
    return (keep_IJN.mean(dim=2) - keep).square().mean()
