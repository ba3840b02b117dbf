"""Two towers with one shared space, in which matching pictures and texts are close.

Radford et al. 2021 (CLIP, arXiv 2103.00020); the sigmoid loss is Zhai et al. 2023 (SigLIP, arXiv 2303.15343).

    i = normalise(f(picture)), t = normalise(g(text))                   both of width E
    softmax loss:  mean of CE(s I T^T, own text) and CE(s T I^T, own picture), s = exp(log temperature scale)
    sigmoid loss:  - sum_ij log sigmoid(z_ij (s i_i . t_j + b)) / pictures
                   z = 1 for matching pairs and -1 for all others

    UniCL loss:    - 1/2 sum_i mean_{k in P(i)} log softmax_k(s i_i . t_k), and the same from the texts;
                   P(i): the pairs of one class, here those whose texts are the same words
                   Yang et al. 2022 (arXiv 2204.03610), Florence (arXiv 2111.11432)
    smoothing:     a share e of the softmax targets is spread over all candidates (ALIGN, arXiv 2102.05918)

A picture may have several texts: each is a positive, and none is a negative of the others.

Shape legend: that of `patchword.types`; J texts in a batch, b pictures of one process.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.errors import ConfigError, ModelError
from patchword.layers.features import masked_mean
from patchword.types import TextFeatures, VisualFeatures


class TwoTowersConfig(BaseModel, extra="forbid", frozen=True):
    """The width of the shared space, and the loss."""

    kind: Literal["two_towers"] = "two_towers"
    width: int = Field(256, gt=0, le=65536, description="width E of the shared space")
    loss: Literal["softmax", "sigmoid", "unicl"] = Field(
        "softmax",
        description="softmax: InfoNCE both ways (CLIP); sigmoid: every pair on its own (SigLIP); unicl: "
        "InfoNCE in which pairs with the same words are positives of each other (Florence)",
    )
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="softmax, unicl: share of the targets that is spread over all candidates (ALIGN: 0.1)",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a tower's channels that is dropped before its projection, in training",
    )
    initial_scale: float = Field(
        1 / 0.07,
        gt=0,
        allow_inf_nan=False,
        description="what cosines are multiplied by at the start; learned",
    )
    largest_scale: float = Field(
        100.0, gt=0, allow_inf_nan=False, description="the learned scale is never larger"
    )


class TwoTowers(nn.Module):
    """Projections of the features of two towers to one space, and the scale of their cosines."""

    def __init__(self, config: TwoTowersConfig, vision: nn.Module, text: nn.Module) -> None:
        """Builds the projections; a tower with its own (CLIP's, or a small one with `shared_width`) keeps it.

        Raises:
            ConfigError: a tower's own projection has another width than the shared space.
        """
        super().__init__()
        self.config, self.vision, self.text = config, vision, text
        for name, tower in (("vision", vision), ("text", text)):
            if tower.shared_width not in (None, config.width):
                raise ConfigError(
                    f"the {name} tower projects to {tower.shared_width} and the shared space is "
                    f"{config.width} wide: make them equal"
                )
        self.vision_projection = (
            None if vision.shared_width else nn.Linear(vision.width, config.width, bias=False)
        )
        self.text_projection = None if text.shared_width else nn.Linear(text.width, config.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.initial_scale)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if config.loss == "sigmoid" else None

    def embed_pictures(self, pixels_B3HW: Tensor) -> Tensor:
        """Returns unit vectors (B, E)."""
        return self.pictures_of(self.vision(pixels_B3HW))

    def pictures_of(self, features: VisualFeatures) -> Tensor:
        """Returns unit vectors (B, E) from the vision tower's features."""
        return F.normalize(self.pool_vision(features), dim=-1)

    def embed_texts(self, ids_JL: Tensor, mask_JL: Tensor) -> Tensor:
        """Returns unit vectors (J, E)."""
        return F.normalize(self.pool_text(self.text(ids_JL, mask_JL)), dim=-1)

    def scale(self) -> Tensor:
        """Factor of the cosines, learned and bounded by `largest_scale`."""
        return self.log_scale.exp().clamp(max=self.config.largest_scale)

    def pool_vision(self, features: VisualFeatures) -> Tensor:
        """Returns one vector (B, E) per picture, not normalised."""
        if self.vision_projection is None:
            return _pooled(features.pooled_BE, "vision")
        return self.vision_projection(self._dropped(masked_mean(features.grid_BNC, features.mask_BN)))

    def pool_text(self, features: TextFeatures) -> Tensor:
        """Returns one vector (J, E) per text, not normalised."""
        return self.project_texts(self.mean_text(features))

    def mean_text(self, features: TextFeatures) -> Tensor:
        """Returns one vector (J, C) per text before the projection: what a frozen text tower gives every
        time.
        """
        if self.text_projection is None:
            return _pooled(features.pooled_BE, "text")
        return masked_mean(features.tokens_BLC, features.mask_BL)

    def project_texts(self, mean_JC: Tensor) -> Tensor:
        """Returns one vector (J, E) per text, not normalised, from those of `mean_text`."""
        return mean_JC if self.text_projection is None else self.text_projection(self._dropped(mean_JC))

    def _dropped(self, vectors: Tensor) -> Tensor:
        return F.dropout(vectors, self.config.dropout, self.training)


def softmax_loss(similarity_BJ: Tensor, owner_J: Tensor, first: int, count: int) -> Tensor:
    """InfoNCE in both directions with several texts per picture.

    It is summed over the rows first ... first + count - 1 of the pictures. similarity_BJ holds the scaled
    cosines of all pictures with all texts, owner_J the picture of each text. A picture's loss is half the sum
    of two means over its texts: of -log softmax against the texts of other pictures, and of -log softmax over
    pictures.
    """
    own_BJ = torch.arange(similarity_BJ.shape[0], device=owner_J.device)[:, None] == owner_J
    rows = slice(first, first + count)
    scores_bJ, own_bJ = similarity_BJ[rows].float(), own_BJ[rows]
    others_b1 = scores_bJ.masked_fill(own_bJ, -math.inf).logsumexp(1, keepdim=True)
    to_text_bJ = torch.logaddexp(scores_bJ, others_b1) - scores_bJ
    to_picture_BJ = similarity_BJ.float().logsumexp(0, keepdim=True) - similarity_BJ.float()
    per_picture_b = ((to_text_bJ + to_picture_BJ[rows]) * own_bJ).sum(1) / own_bJ.sum(1).clamp(min=1)
    return per_picture_b.sum() / 2


def sigmoid_loss(similarity_BJ: Tensor, owner_J: Tensor, first: int, count: int) -> Tensor:
    """Pairwise sigmoid loss of the pictures first ... first + count - 1 with all texts.

    similarity_BJ holds the scaled and shifted cosines of all pictures with all texts.
    """
    rows = slice(first, first + count)
    own_bJ = (torch.arange(similarity_BJ.shape[0], device=owner_J.device)[:, None] == owner_J)[rows]
    signs_bJ = own_bJ.float() * 2 - 1
    return -F.logsigmoid(signs_bJ * similarity_BJ[rows].float()).sum()


def smoothed_softmax_loss(
    similarity_BJ: Tensor, positive_BJ: Tensor, owner_J: Tensor, rows: slice, smoothing: float = 0.0
) -> Tensor:
    """InfoNCE over the positives of each picture and of each text (UniCL), with label smoothing (ALIGN).

    It is summed over the pictures in `rows`; a text counts by its share among the texts of its picture. With
    one text per picture and no other positives it is the mean of the two cross-entropies, summed.
    """
    scores_BJ, targets_BJ = similarity_BJ.float(), positive_BJ.float()

    def cross_entropy(log_BJ: Tensor, axis: int) -> Tensor:
        shares_BJ = targets_BJ / targets_BJ.sum(axis, keepdim=True).clamp(min=1)
        spread_BJ = (1 - smoothing) * shares_BJ + smoothing / log_BJ.shape[axis]
        return -(spread_BJ * log_BJ).sum(axis)

    of_pictures_b = cross_entropy(scores_BJ.log_softmax(1), 1)[rows]
    of_texts_J = cross_entropy(scores_BJ.log_softmax(0), 0)
    own_BJ = torch.arange(len(scores_BJ), device=owner_J.device)[:, None] == owner_J
    weights_bJ = (own_BJ / own_BJ.sum(1, keepdim=True).clamp(min=1))[rows]
    return (of_pictures_b.sum() + (weights_bJ * of_texts_J).sum()) / 2


def same_class(owner_J: Tensor, class_J: Tensor, pictures: int) -> Tensor:
    """Positives (B, J): texts of the class of one of the picture's own texts."""
    own_BJ = torch.arange(pictures, device=owner_J.device)[:, None] == owner_J
    return (own_BJ.float() @ (class_J[:, None] == class_J).float()) > 0


def _pooled(pooled_XE: Tensor | None, tower: str) -> Tensor:
    if pooled_XE is None:
        raise ModelError(f"the {tower} tower gives no pooled feature, which this model takes")
    return pooled_XE
