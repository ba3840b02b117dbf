"""The prior of unCLIP: from a text to the embedding of a picture that fits it, by diffusion.

Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents" (arXiv 2204.06125),
section 2.2. A causal transformer reads one sequence per picture,

    [text tokens ..., z_text, time, noised z_picture, query]   ->   z_picture is predicted at the query (x_0)

and is trained by the squared error; the decoder (`denoiser.py` with `picture_width`) then paints from the
embedding. Embeddings come from two towers as unit vectors; here they are scaled by sqrt(E), so that every
number has a mean square of 1 like the noise: without it the noise would be sqrt(E) times too strong.

    x_0 = sqrt(E) z / |z|          chosen of two samples: the larger z . z_text          (section 2.2)

Shape legend: B texts, L text tokens, C width of the transformer, E width of the embeddings, S = L + 4.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.layers.attention import attend, hide
from patchword.layers.positions import sine_positions
from patchword.models.painters.denoiser import Denoiser, DenoiserConfig

BESIDE_TEXT = 4
"""Tokens after those of the text: its embedding, the time, the noised picture embedding, the query."""


class ClipPriorConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the prior."""

    width: int = Field(128, ge=8, le=8192, description="width of the transformer (paper: 2048)")
    heads: int = Field(4, gt=0, description="attention heads")
    layers: int = Field(4, gt=0, le=96, description="layers (paper: 24)")
    longest: int = Field(40, gt=0, le=100_000, description="text tokens that have a position")
    steps: int = Field(1000, gt=1, le=100_000, description="times of the cosine schedule")
    drop_text: float = Field(0.1, ge=0, lt=1, description="share of texts left out while training")
    guidance: float = Field(1.0, ge=0, description="of the prior while painting; the decoder has its own")
    samples: int = Field(
        2, gt=0, le=64, description="embeddings per picture, of which the nearest to the text counts"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> ClipPriorConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads: change one of them")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd, and sine positions come in pairs: make it even")
        return self


class UnClipConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of a prior and the decoder that paints from its embeddings."""

    kind: Literal["unclip"] = "unclip"
    prior: ClipPriorConfig = ClipPriorConfig()
    decoder: DenoiserConfig

    @model_validator(mode="after")
    def _decoder_is_told(self) -> UnClipConfig:
        if self.decoder.picture_width is None:
            raise ValueError(
                "painter.decoder.picture_width is missing: set it to the width of the two towers' space"
            )
        return self

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.decoder.size


class TextSide(NamedTuple):
    """What the prior is told; every tensor has B rows."""

    tokens_BLC: Tensor
    """Features of a text tower."""
    mask_BL: Tensor
    sentence_BE: Tensor
    """The text's embedding in the space of the two towers, a unit vector; zeros say nothing."""


class _Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BSC: Tensor, bias: Tensor) -> Tensor:
        parts = self.project(self.norm_in(x_BSC)).chunk(3, -1)
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        context, _ = attend(queries, keys, values, bias)
        x_BSC = x_BSC + self.merge(context.transpose(1, 2).flatten(2))
        return x_BSC + self.out(F.gelu(self.hidden(self.norm_out(x_BSC))))


class ClipPrior(nn.Module):
    """Predicts a picture embedding from a text and the noised embedding."""

    def __init__(self, config: ClipPriorConfig, text_width: int, embedding_width: int) -> None:
        super().__init__()
        self.config, self.embedding_width = config, embedding_width
        width = config.width
        self.text, self.sentence = nn.Linear(text_width, width), nn.Linear(embedding_width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.noised = nn.Linear(embedding_width, width)
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(config.longest + BESIDE_TEXT, width) * 0.02)
        self.layers = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, embedding_width)

    def forward(self, noisy_BE: Tensor, times_B: Tensor, text: TextSide) -> Tensor:
        """The prediction of x_0 (B, E), in the scale of `scaled`.

        Padding of the text is hidden, and positions of what follows the text do not depend on its length.
        """
        told_BLC = self.text(text.tokens_BLC)
        length = told_BLC.shape[1]
        after = torch.stack(
            [
                self.sentence(text.sentence_BE * math.sqrt(self.embedding_width)),
                self.time(sine_positions(times_B, self.config.width).to(noisy_BE.dtype)),
                self.noised(noisy_BE),
                self.query.expand(len(noisy_BE), -1),
            ],
            1,
        )
        longest = self.config.longest
        places = torch.cat([self.positions[:length], self.positions[longest:]])
        x_BSC = torch.cat([told_BLC, after], 1) + places
        seen_BS = F.pad(text.mask_BL.bool(), (0, BESIDE_TEXT), value=True)
        total = x_BSC.shape[1]
        causal_SS = torch.ones(total, total, dtype=torch.bool, device=x_BSC.device).tril()
        # Every position sees itself, so that padding has something to attend to.
        own_SS = torch.eye(total, dtype=torch.bool, device=x_BSC.device)
        bias = hide((causal_SS & seen_BS[:, None, :]) | own_SS, x_BSC.dtype)[:, None]
        for layer in self.layers:
            x_BSC = layer(x_BSC, bias)
        return self.out(self.norm(x_BSC[:, -1]))


class UnClip(nn.Module):
    """The prior and its decoder, which are trained apart."""

    def __init__(self, config: UnClipConfig, text_width: int) -> None:
        super().__init__()
        self.config = config
        assert config.decoder.picture_width is not None  # UnClipConfig asks for it
        self.prior = ClipPrior(config.prior, text_width, config.decoder.picture_width)
        self.decoder = Denoiser(config.decoder, text_width)


def scaled(embeddings_BE: Tensor) -> Tensor:
    """Embeddings of any length with a mean square of 1: sqrt(E) z / |z|."""
    return F.normalize(embeddings_BE, dim=-1) * math.sqrt(embeddings_BE.shape[-1])


def silent(text: TextSide, dropped_B: Tensor) -> TextSide:
    """The same texts, of which the dropped ones say nothing: their tokens are hidden and zero, their
    embedding is zero. The noised picture embedding stays."""
    kept_B = ~dropped_B
    return TextSide(
        text.tokens_BLC * kept_B[:, None, None],
        text.mask_BL.bool() & kept_B[:, None],
        text.sentence_BE * kept_B[:, None],
    )


def best_of(samples_KBE: Tensor, sentence_BE: Tensor) -> Tensor:
    """Returns, of K samples for each text, the one nearest to it (the paper: of two): unit vectors (B, E)."""
    unit_KBE = F.normalize(samples_KBE, dim=-1)
    best_B = (unit_KBE * sentence_BE).sum(-1).argmax(0)
    return unit_KBE[best_B, torch.arange(len(sentence_BE), device=best_B.device)]
