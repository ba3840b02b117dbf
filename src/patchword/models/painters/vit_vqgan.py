"""Pictures as tokens by the nearest of learnt codes, between two vision transformers: the codec of Parti.

Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN" (ViT-VQGAN, arXiv 2110.04627), section
3.1 and 3.2; van den Oord et al. 2017 (arXiv 1711.00937) for the straight-through gradient:

    z = W_down E(patches),  code = argmin_k | l2(z) - l2(e_k) |^2              narrow vectors of length one
    x^ = D(W_up (z + stop(e - z)))
    loss = |x - x^|^2 + |stop(l2 z) - l2 e|^2 + 0.25 |l2 z - stop(l2 e)|^2

Codes that nothing chose for a while are put where a vector of the current batch is. The perceptual and
adversarial terms of the paper are not here: below 64 pixels they are no help, and the first needs a network
that was trained elsewhere.

Shape legend: B pictures, N cells, C width of the transformers, D width of a code, K codes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.models.painters.discrete_vae import CodecLoss

COMMITMENT = 0.25
"""Weight of the term that keeps vectors near their codes."""


class VitVqganConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of encoder, codebook and decoder."""

    kind: Literal["vit_vqgan"] = "vit_vqgan"
    size: int = Field(32, ge=8, le=1024, description="side of the square pictures, in pixels")
    patch: int = Field(4, ge=2, le=64, description="side of a patch, which becomes one code (paper: 8)")
    codes: int = Field(128, gt=1, le=65536, description="entries K of the codebook (paper: 8,192)")
    code_width: int = Field(16, ge=2, le=1024, description="width of a code (paper: 32)")
    width: int = Field(128, ge=8, le=4096, description="width of the transformers")
    layers: int = Field(2, ge=1, le=48, description="layers of encoder and decoder each")
    heads: int = Field(4, ge=1, le=64, description="attention heads")
    idle_steps: int = Field(100, ge=1, description="steps without use after which a code is placed anew")

    @model_validator(mode="after")
    def _sizes_divide(self) -> VitVqganConfig:
        if self.size % self.patch:
            raise ValueError(f"size is {self.size}, which patches of {self.patch} do not divide: change one")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, which {self.heads} heads do not divide: change one")
        return self


class VitVqgan(nn.Module):
    """A codec: pictures in [0, 1] to N codes each and back.

    Attributes:
        config: its settings.
        side: cells along a side; N = side squared.
        codes: K.
    """

    def __init__(self, config: VitVqganConfig) -> None:
        super().__init__()
        self.config, self.codes = config, config.codes
        self.side = config.size // config.patch
        pixels, cells = 3 * config.patch**2, self.side**2
        self.patches = nn.Linear(pixels, config.width)
        self.positions_in = nn.Parameter(torch.randn(1, cells, config.width) * 0.02)
        self.positions_out = nn.Parameter(torch.randn(1, cells, config.width) * 0.02)
        self.encoder, self.decoder = _transformer(config), _transformer(config)
        self.down, self.up = (
            nn.Linear(config.width, config.code_width),
            nn.Linear(config.code_width, config.width),
        )
        self.codebook = nn.Parameter(torch.randn(config.codes, config.code_width))
        self.pixels = nn.Linear(config.width, pixels)
        self.idle_K: Tensor
        self.register_buffer("idle_K", torch.zeros(config.codes))
        self.placed: Tensor
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))

    def vectors(self, pictures_B3HW: Tensor) -> Tensor:
        """Unit vectors (B, N, D) of the patches of pictures in [0, 1]."""
        patches_BPN = F.unfold(2 * pictures_B3HW - 1, self.config.patch, stride=self.config.patch)
        tokens_BNC = self.patches(patches_BPN.transpose(1, 2)) + self.positions_in
        return F.normalize(self.down(self.encoder(tokens_BNC)), dim=-1)

    def nearest(self, vectors_BND: Tensor) -> Tensor:
        """The code (B, N) with the largest cosine."""
        return (vectors_BND @ F.normalize(self.codebook, dim=-1).T).argmax(-1)

    def encode(self, pictures_B3HW: Tensor) -> Tensor:
        """Codes (B, N) of pictures in [0, 1], row by row."""
        return self.nearest(self.vectors(pictures_B3HW))

    def decode(self, ids_BN: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of codes."""
        return self._pictures(F.normalize(self.codebook, dim=-1)[ids_BN]).clamp(0, 1)

    def relaxed(self, latent_BND: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of the codes nearest to latents of any length, with the gradient
        straight through the choice: what is searched for a picture (`models/pretraining/imagination.py`)."""
        vectors_BND = F.normalize(latent_BND, dim=-1)
        chosen_BND = F.normalize(self.codebook, dim=-1)[self.nearest(vectors_BND)]
        return self._pictures(vectors_BND + (chosen_BND - vectors_BND).detach()).clamp(0, 1)

    def losses(self, pictures_B3HW: Tensor, progress: float) -> CodecLoss:
        """The losses of pictures in [0, 1]; `progress` changes nothing here."""
        vectors_BND = self.vectors(pictures_B3HW)
        if self.training:
            self._place(vectors_BND.detach())
        ids_BN = self.nearest(vectors_BND)
        chosen_BND = F.normalize(self.codebook, dim=-1)[ids_BN]
        through_BND = vectors_BND + (chosen_BND - vectors_BND).detach()
        reconstruction = F.mse_loss(self._pictures(through_BND), pictures_B3HW)
        codes = (vectors_BND.detach() - chosen_BND).square().sum(-1).mean()
        commitment = (vectors_BND - chosen_BND.detach()).square().sum(-1).mean()
        if self.training:
            self.idle_K.add_(1)
            self.idle_K[ids_BN.flatten().unique()] = 0
        return CodecLoss(reconstruction, codes + COMMITMENT * commitment, ids_BN)

    @torch.no_grad()
    def _place(self, vectors_BND: Tensor) -> None:
        """Puts codes on vectors of this batch: all of them at the first step, since random ones would leave
        most unused, and later those that were idle too long. It comes before the codes are used in a step, so
        that what the gradient needs is not changed under it.
        """
        moved_K = (self.idle_K >= self.config.idle_steps) | ~self.placed
        rows_MD = vectors_BND.flatten(0, 1)
        chosen_K = torch.randint(len(rows_MD), (self.codes,), device=rows_MD.device)
        self.codebook.copy_(torch.where(moved_K[:, None], rows_MD[chosen_K], self.codebook))
        self.idle_K.masked_fill_(moved_K, 0)
        self.placed.fill_(True)

    def _pictures(self, codes_BND: Tensor) -> Tensor:
        tokens_BNC = self.decoder(self.up(codes_BND) + self.positions_out)
        patches_BPN = self.pixels(tokens_BNC).transpose(1, 2)
        patch, size = self.config.patch, self.config.size
        return F.fold(patches_BPN, size, patch, stride=patch) / 2 + 0.5


def _transformer(config: VitVqganConfig) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        config.width, config.heads, 4 * config.width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
