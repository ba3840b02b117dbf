"""Multimodal skip-gram: words predict their neighbours, and lie near what their pictures look like.

Lazaridou, Pham and Baroni 2015 (Combining Language and Vision with a Multimodal Skip-gram Model, NAACL):

    L = 1/T sum_t ( L_ling(w_t) + L_vis(w_t) )
    L_ling(w) = sum over neighbours c of  log s(u_w . o_c) + k E_{n ~ count^0.75} log s(-u_w . o_n)
    A: L_vis(w) = - sum_{n} max(0, margin - cos(u_w, v_w) + cos(u_w, v_n))
    B: the same of z_w = M u_w in place of u_w, with an L2 penalty on M
    L_vis(w) = 0 for a word without pictures

Without pictures it is skip-gram with negative sampling (Mikolov et al. 2013). A block of L words in a row
shares its S negatives, so that scores are matrix products (Ji et al. 2016, Parallelizing Word2Vec in Shared
and Distributed Memory); each counts k c / S times for a word with c neighbours, which leaves the expected
gradient what it is.

Shape legend: B blocks, L centres of a block, N words around them, S shared negatives, W words, D width, P
width of picture vectors, R words whose pictures serve as visual negatives.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.errors import ConfigError


class SkipGramConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of a skip-gram, with or without pictures."""

    kind: Literal["skip_gram"] = "skip_gram"
    variant: Literal["text", "A", "B"] = Field(
        "B", description="text: no pictures; A: words lie in the space of pictures; B: a matrix leads there"
    )
    width: int = Field(100, gt=0, description="width of a word's vector; variant A: that of picture vectors")
    window: int = Field(5, gt=0, description="neighbours on each side; each word draws 1 to this many")
    negatives: int = Field(5, gt=0, description="negatives per neighbour, k")
    shared_negatives: int = Field(32, gt=0, description="negatives that a block of words draws and shares, S")
    block: int = Field(32, gt=0, description="words of a block, L")
    subsample: float = Field(
        1e-3,
        ge=0,
        description="words more frequent than this are dropped at random (Mikolov et al.); 0: none",
    )
    margin: float = Field(0.5, ge=0, description="margin between the cosines with own and other pictures")
    visual_weight: float = Field(1.0, ge=0, description="weight of L_vis; 0: the pictures do nothing")
    visual_negatives: int = Field(20, gt=0, description="words whose pictures a word is kept away from, n")
    penalty: float = Field(1e-4, ge=0, description="B: weight of the squared numbers of M")


class SkipGramBatch(NamedTuple):
    """Blocks of words in a row, what stands around them, and the negatives."""

    centres_BL: Tensor
    """Words, int64; 0 where `near` is False."""
    around_BN: Tensor
    """Words from `window` places before the block to `window` after it."""
    near_BLN: Tensor
    """True where a word of `around` is a neighbour of a centre."""
    real_BL: Tensor
    """True at words, False at padding."""
    negatives_BS: Tensor
    visual_negatives_R: Tensor

    @property
    def target_count(self) -> int:
        """Words that the loss is a mean over."""
        return int(self.real_BL.sum())

    @property
    def picture_count(self) -> int:
        """Words, whose speed is logged."""
        return int(self.real_BL.sum())

    def to(self, device: torch.device) -> SkipGramBatch:
        """The same batch on a device."""
        return SkipGramBatch(*(tensor.to(device) for tensor in self))


class SkipGram(nn.Module):
    """Vectors of words as centres (`words`, the result) and as neighbours (`contexts`)."""

    def __init__(self, config: SkipGramConfig, words: int, pictures_WP: Tensor | None) -> None:
        """`pictures_WP` holds the picture vector of each word, zeros where it has none; None for variant
        text.

        Raises ConfigError where variant A has picture vectors of another width than its words.
        """
        super().__init__()
        self.config = config
        self.words = nn.Embedding(words, config.width, sparse=True)
        self.contexts = nn.Embedding(words, config.width, sparse=True)
        nn.init.uniform_(self.words.weight, -0.5 / config.width, 0.5 / config.width)
        nn.init.zeros_(self.contexts.weight)
        self.map: nn.Linear | None = None
        if config.variant == "text":
            return
        if pictures_WP is None:
            raise ConfigError(
                f"skip-gram of variant {config.variant} needs pictures: give [pictures], or variant text"
            )
        if config.variant == "A" and pictures_WP.shape[1] != config.width:
            found = f"picture vectors of {pictures_WP.shape[1]} and words of {config.width}"
            raise ConfigError(
                f"variant A has words in the space of pictures, found {found}: set pictures.width alike"
            )
        # Parameters that do not learn, not buffers: a loop may copy buffers at every step.
        self.pictures_WP = nn.Parameter(F.normalize(pictures_WP.float(), dim=1), requires_grad=False)
        if config.variant == "B":
            self.map = nn.Linear(config.width, pictures_WP.shape[1], bias=False)

    def linguistic_loss(self, centres_BLD: Tensor, batch: SkipGramBatch) -> Tensor:
        """The sum of -L_ling over the centres of a batch, whose vectors are given."""
        around_BND = self.contexts(batch.around_BN)
        scores_BLN = centres_BLD @ around_BND.transpose(1, 2)
        positive = (F.softplus(-scores_BLN) * batch.near_BLN).sum()
        negatives_BSD = self.contexts(batch.negatives_BS)
        scores_BLS = centres_BLD @ negatives_BSD.transpose(1, 2)
        share_BL1 = batch.near_BLN.sum(2, keepdim=True) * (
            self.config.negatives / batch.negatives_BS.shape[1]
        )
        return positive + (F.softplus(scores_BLS) * share_BL1).sum()

    def visual_loss(self, centres_BLD: Tensor, batch: SkipGramBatch) -> Tensor:
        """The sum of -L_vis over the centres of a batch that have pictures; a word's own pictures are no
        negative of it."""
        chosen_BL = batch.real_BL & self.pictures_WP[batch.centres_BL].any(2)
        ids_C = batch.centres_BL[chosen_BL]
        seen_CP = F.normalize(self.towards_pictures(centres_BLD[chosen_BL]), dim=1)
        own_C1 = (seen_CP * self.pictures_WP[ids_C]).sum(1, keepdim=True)
        others_CR = seen_CP @ self.pictures_WP[batch.visual_negatives_R].t()
        other_CR = ids_C[:, None] != batch.visual_negatives_R[None]
        return (F.relu(self.config.margin - own_C1 + others_CR) * other_CR).sum()

    def towards_pictures(self, words_CD: Tensor) -> Tensor:
        """Vectors of words in the space of pictures: M u, or u itself in variant A."""
        return words_CD if self.map is None else self.map(words_CD)

    def forward(self, batch: SkipGramBatch) -> dict[str, Tensor]:
        """Named losses, sums over the centres: `linguistic`, and where there are pictures `visual` and
        `penalty`."""
        # Looked up once: the two gradients of a word are summed before its row is touched, so that a weight
        # of 0 changes no bit.
        centres_BLD = self.words(batch.centres_BL)
        losses = {"linguistic": self.linguistic_loss(centres_BLD, batch)}
        if self.config.variant != "text":
            losses["visual"] = self.config.visual_weight * self.visual_loss(centres_BLD, batch)
        if self.map is not None and self.config.visual_weight:
            losses["penalty"] = self.config.penalty * self.map.weight.square().sum()
        return losses
