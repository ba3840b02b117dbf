"""Baselines that label a picture with its text, to compare prompt fusion with: one tower, or both joined.

    image only    W v + b               text only    W t + b               both    W [v; t] + b

v is the picture's class token (the mean patch of a tower without one). t is the first token of a BERT or the
pooled token of CLIP's text tower. Over frozen towers this is a linear probe, over trained ones full
fine-tuning; `both` is LateConcat of Li et al. 2023 (PMF).

Shape legend (in addition to `types.py`): Y classes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.errors import ConfigError
from patchword.layers.features import masked_mean
from patchword.types import TextFeatures, VisualFeatures


class LateConcatenationConfig(BaseModel, extra="forbid", frozen=True):
    """The number of labels, and which towers the head reads."""

    kind: Literal["late_concatenation"] = "late_concatenation"
    classes: int = Field(gt=0, le=10_000_000, description="number of labels")
    inputs: Literal["image", "text", "both"] = Field("both", description="what the label is read from")
    pool: Literal["class", "mean"] = Field(
        "class",
        description="class: the tower's class token, where it has one; mean: the mean patch or token, for "
        "towers whose class token no pre-training reached",
    )


class PairSummary(NamedTuple):
    """One vector per picture and per text.

    The head reads nothing else, so frozen towers need to run only once.
    """

    image_BC: Tensor | None
    text_BC: Tensor | None


def image_summary(features: VisualFeatures, mean: bool = False) -> Tensor:
    """Returns the class token (B, C), or the mean of the real patches: with `mean`, or where the tower has no
    class token."""
    if mean or features.class_BC is None:
        return masked_mean(features.grid_BNC, features.mask_BN)
    return features.class_BC


def text_summary(features: TextFeatures, mean: bool = False) -> Tensor:
    """Returns the pooled token (B, E) of a two-tower model's text tower, or else the first token (B, C), or
    with `mean` that of the real tokens."""
    if features.pooled_BE is not None:
        return features.pooled_BE
    return masked_mean(features.tokens_BLC, features.mask_BL) if mean else features.tokens_BLC[:, 0]


class LateConcatenation(nn.Module):
    """A linear head over the summaries of one or two towers. A tower that is not read may be None."""

    def __init__(
        self, config: LateConcatenationConfig, image_tower: Any | None, text_tower: Any | None
    ) -> None:
        """Raises ConfigError where a tower that the config reads is missing."""
        super().__init__()
        reads = {"image": config.inputs != "text", "text": config.inputs != "image"}
        for name, tower in (("image", image_tower), ("text", text_tower)):
            if reads[name] and tower is None:
                found = f"inputs = {config.inputs!r} reads from the {name} tower, and there is none"
                raise ConfigError(f"{found}: add a [{name}_tower] section")
        self.config, self.mean = config, config.pool == "mean"
        self.image_tower = image_tower if reads["image"] else None
        self.text_tower = text_tower if reads["text"] else None
        width = 0 if self.image_tower is None else self.image_tower.width
        if self.text_tower is not None:
            # CLIP's pooled token has the width of the shared space.
            width += getattr(self.text_tower, "shared_width", None) or self.text_tower.width
        self.head = nn.Linear(width, config.classes)

    def lower(
        self,
        image: Tensor | None,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> PairSummary:
        """Returns the towers' summaries; with frozen towers they carry no gradient and may be stored.

        The arguments are those of `forward`.
        """
        image_BC = None if self.image_tower is None else image_summary(self.image_tower(image), self.mean)
        text_BC = None
        if self.text_tower is not None:
            types = () if token_type_ids is None else (token_type_ids,)
            text_BC = text_summary(self.text_tower(input_ids, attention_mask, *types), self.mean)
        return PairSummary(image_BC, text_BC)

    def resume(self, image_BNC: Tensor, text_BLC: Tensor, text_mask_BL: Tensor, left: int) -> PairSummary:
        """Returns the summaries from tokens that still have to pass the last `left` layers of the towers.

        The towers must have layers that can be called one by one.
        """
        image_BC = text_BC = None
        if self.image_tower is not None:
            for layer in self.image_tower.layers[self.image_tower.depth - left :]:
                image_BNC = layer(image_BNC)
            image_BC = image_summary(self.image_tower.finish(image_BNC), self.mean)
        if self.text_tower is not None:
            for layer in self.text_tower.layers[self.text_tower.depth - left :]:
                text_BLC = layer(text_BLC, text_mask_BL)
            text_BC = text_summary(self.text_tower.finish(text_BLC, text_mask_BL), self.mean)
        return PairSummary(image_BC, text_BC)

    def fuse(
        self, summary: PairSummary, has_image_B: Tensor | None = None, has_text_B: Tensor | None = None
    ) -> Tensor:
        """Returns the logits (B, Y).

        The vector of a picture or text that a row lacks (`has_..._B` is False) is replaced by zeros.
        """
        parts = [
            part if has_B is None else part * has_B[:, None].to(part.dtype)
            for part, has_B in zip(summary, (has_image_B, has_text_B), strict=True)
            if part is not None
        ]
        return self.head(torch.cat(parts, 1))

    def forward(
        self,
        image: Tensor | None,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits (B, Y).

        Args:
            image: pixels (B, 3, H, W); unused with `inputs = "text"`.
            input_ids: (B, L) token ids; unused with `inputs = "image"`.
            token_type_ids: (B, L) segments; None for one segment.
            attention_mask: (B, L), True or 1 at real tokens; None when all are real.
        """
        return self.fuse(self.lower(image, input_ids, token_type_ids, attention_mask))
