"""Two towers with LAPS: linear maps bring patches and words to one width, and a head aligns them.

Fu et al. 2024 (LAPS, section 3.1): the last hidden states of both encoders pass a linear map each, and the
head compares them. Optionally the patches first attend to the concepts of a codebook
(`layers/region_alignment.py`, Gao 2025), so that a word is compared with a patch together with its concept.
The pooled vectors of the same towers remain; they make the shortlist that the head re-ranks.

Shape legend: that of `patchword.types`; J texts in a batch, d width of the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.layers.codebook import Codebook
from patchword.layers.region_alignment import RegionAlignment, RegionAlignmentConfig
from patchword.models.pairs.patch_slimming import PatchSlimming, PatchSlimmingConfig
from patchword.models.pairs.two_towers import TwoTowers
from patchword.types import VisualFeatures

REGION_HEADS = 4


class PairTokens(NamedTuple):
    """Pictures or texts ready for comparison: tokens for the head, and one unit vector for the shortlist."""

    tokens: Tensor
    """(B, [1 +] N, d), with the class token first where the tower has one; for texts (J, L, d)."""
    vectors: Tensor
    """Pooled unit vectors, (B, E); for texts (J, E)."""
    hw: tuple[int, int] | None = None


class AlignedTowers(nn.Module):
    """Towers, maps to the width of the head, and the head.

    With a codebook, region alignment stands between the image map and the head.
    """

    def __init__(
        self,
        towers: TwoTowers,
        config: PatchSlimmingConfig,
        region: RegionAlignmentConfig | None = None,
        codebook: Codebook | None = None,
    ) -> None:
        super().__init__()
        self.towers = towers
        self.patch_map = nn.Linear(towers.vision.width, config.width)
        self.word_map = nn.Linear(towers.text.width, config.width)
        self.region = None
        if region is not None and codebook is not None:
            self.region = RegionAlignment(region, codebook, config.width, REGION_HEADS, 2 * config.width, 0.1)
        self.head = PatchSlimming(config)

    @property
    def class_token(self) -> bool:
        """True where the image tokens begin with a class token."""
        return self.towers.vision.has_class_token

    def train(self, mode: bool = True) -> AlignedTowers:
        """Sets the mode, as `nn.Module.train` does, but leaves frozen towers in evaluation mode.

        Otherwise their batch statistics would change.
        """
        super().train(mode)
        for tower in (self.towers.vision, self.towers.text):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    @torch.no_grad()
    def begin_in_the_shared_space(self) -> None:
        """Copies the towers' projections into their shared space to the two maps, where the shapes agree.

        Patches and words of trained towers are then comparable before the first step.
        """
        vision_map = self.towers.vision_projection or getattr(self.towers.vision, "to_shared", None)
        for own, theirs in ((self.patch_map, vision_map), (self.word_map, self.towers.text_projection)):
            if theirs is not None and theirs.weight.shape == own.weight.shape:
                own.weight.copy_(theirs.weight)
                own.bias.zero_()

    def look(self, features: VisualFeatures) -> PairTokens:
        """Returns tokens and vectors of pictures from the vision tower's features."""
        return PairTokens(self._image_tokens(features), self.towers.pictures_of(features), features.hw)

    def read(self, ids_JL: Tensor, mask_JL: Tensor) -> PairTokens:
        """Returns tokens and vectors of texts; every token counts as a word, including start and end."""
        features = self.towers.text(ids_JL, mask_JL)
        return PairTokens(
            self.word_map(features.tokens_BLC), F.normalize(self.towers.pool_text(features), dim=-1)
        )

    def _image_tokens(self, features: VisualFeatures) -> Tensor:
        tokens_BPd = self.patch_map(features.grid_BNC)
        if self.class_token:
            # The class token goes last here, because region alignment counts positions from the first patch.
            tokens_BPd = torch.cat([tokens_BPd, self.patch_map(features.class_BC)[:, None]], dim=1)
        if self.region is not None:
            tokens_BPd = self.region(tokens_BPd, self.region.assign(features), features.hw, features.mask_BN)
        return tokens_BPd.roll(1, dims=1) if self.class_token else tokens_BPd
