"""Imagination: a text is drawn before it is judged, and text and drawing are judged together.

Lu, Zhu, Wang, Eckstein and Wang 2022 (Imagination-Augmented Natural Language Understanding, NAACL; iACE).
The drawing is VQGAN+CLIP's (Crowson et al. 2022, ECCV):

    z* = argmax_z  mean over random crops of cos(v(crop of decode(z)), t(x))        v, t: two frozen towers
    L  = l L_imagination(MLP[v(decode z*); h(x)]) + (1 - l) L_text(W h(x))           h: a language model
    p  = l softmax(imagination) + (1 - l) softmax(text)

z goes through the codec's quantiser with a straight-through gradient, so that what is drawn are codes. A high
score says little: a picture can please the towers and show nothing, which only an independent reader tells.

Shape legend: B texts, V width of picture vectors, H width of text features, K classes, N crops of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn


class ImaginedPictures(NamedTuple):
    """Pictures that were drawn for texts."""

    pictures_B3HW: Tensor
    """In [0, 1]."""
    scores_SB: Tensor
    """The score of the whole picture before each step, and after the last one."""


def imagine(
    draw: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    latent_BX: Tensor,
    steps: int,
    rate: float = 0.1,
    crops: int = 4,
    smallest: float = 0.7,
    generator: torch.Generator | None = None,
) -> ImaginedPictures:
    """Pictures (B, 3, H, W) in [0, 1] of latents that Adam moves towards a high score.

    Args:
        draw: latents to pictures in [0, 1], with a gradient (`relaxed` of a codec).
        score: pictures to one number each (B,), higher is better; row b of its input belongs to text b.
        latent_BX: where the search begins, of any shape behind B.
        steps: steps of Adam.
        rate: learning rate.
        crops: random crops that a step averages over; 0: the whole picture.
        smallest: side of the smallest crop, as a share of the picture's.
        generator: draws the crops.
    """
    latent_BX = latent_BX.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([latent_BX], lr=rate)
    scores = []
    with torch.enable_grad():
        for _ in range(steps):
            pictures_B3HW = draw(latent_BX)
            scores.append(score(pictures_B3HW.detach()).detach())
            views = [random_crop(pictures_B3HW, smallest, generator) for _ in range(crops)]
            mean_B = torch.stack([score(view) for view in views or [pictures_B3HW]]).mean(0)
            # Not backward(): the towers and the codec keep no gradient.
            (latent_BX.grad,) = torch.autograd.grad(-mean_B.sum(), latent_BX)
            optimiser.step()
    with torch.no_grad():
        pictures_B3HW = draw(latent_BX)
        return ImaginedPictures(pictures_B3HW, torch.stack([*scores, score(pictures_B3HW)]))


def random_crop(pictures_B3HW: Tensor, smallest: float, generator: torch.Generator | None) -> Tensor:
    """One random square of the pictures, enlarged to their size; the same square of each."""
    side = pictures_B3HW.shape[-1]
    draw_3 = torch.rand(3, generator=generator)
    crop = min(side, max(1, round(side * float(smallest + (1 - smallest) * draw_3[0]))))
    top, left = (int(float(value) * (side - crop + 1)) for value in draw_3[1:])
    part_B3HW = pictures_B3HW[..., top : top + crop, left : left + crop]
    return F.interpolate(part_B3HW, (side, side), mode="bilinear", align_corners=False)


class ImaginationConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the classifier of texts and what they were imagined as."""

    kind: Literal["imagination"] = "imagination"
    weight: float = Field(
        0.5, ge=0, le=1, description="weight of the imagination, l; 0: the text alone, 1: its head alone"
    )
    hidden: int = Field(64, gt=0, description="width of the hidden layer of the imagination's head")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the imagination's head")
    logit_squash: Literal["tanh"] | None = Field(
        None, description="tanh: logits of the imagination between -1 and 1, as in the authors' code"
    )


class ImaginationClassifier(nn.Module):
    """Classes from a text's features, and from them with the vector of its imagined picture."""

    def __init__(self, config: ImaginationConfig, text_width: int, picture_width: int, classes: int) -> None:
        super().__init__()
        self.config = config
        self.text = nn.Linear(text_width, classes)
        self.imagination = nn.Sequential(
            nn.Linear(text_width + picture_width, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, classes),
        )

    def logits(self, text_BH: Tensor, pictures_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) from the text alone and from text and imagination."""
        seen_BK = self.imagination(torch.cat([pictures_BV, text_BH], dim=1))
        return self.text(text_BH), seen_BK if self.config.logit_squash is None else seen_BK.tanh()

    def forward(self, text_BH: Tensor, pictures_BV: Tensor) -> Tensor:
        """Probabilities (B, K), mixed."""
        text_BK, seen_BK = self.logits(text_BH, pictures_BV)
        weight = self.config.weight
        return weight * seen_BK.softmax(1) + (1 - weight) * text_BK.softmax(1)

    def loss(self, text_BH: Tensor, pictures_BV: Tensor, target_B: Tensor) -> dict[str, Tensor]:
        """Named cross-entropies, each with its weight."""
        text_BK, seen_BK = self.logits(text_BH, pictures_BV)
        weight = self.config.weight
        return {
            "text": (1 - weight) * F.cross_entropy(text_BK, target_B),
            "imagination": weight * F.cross_entropy(seen_BK, target_B),
        }
