"""Region alignment (FSGR, Gao 2025): patches attend to their assigned words; same-word patches attract.

    concept tokens   G = LN(CELU(W word))
                     the same keys and values in every layer, because only the picture is updated
    layers           x = LN(x + dropout(cross-attention(x, G))), then feed-forward
                     grid positions are added to the keys
    patch contrast   supervised contrastive loss (Khosla 2020, eq. 2) over patches, labels = assigned words

The published code returns the mean cosine of same-word patches as a loss to be minimised, which pushes them
apart; here they are pulled together.

Shape legend: B images, N patches, C width, E width of the text space, H heads, D width of one head, A
anchors, P width of the projection.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.errors import ConfigError, ModelError
from patchword.layers.codebook import Codebook, ConceptAssignment, assign
from patchword.layers.linear import Linear
from patchword.layers.positions import GridGeometry, grid_positions
from patchword.layers.transformer import CrossAttention, FeedForward, add_dropped, padding_bias
from patchword.types import VisualFeatures

_CELU_ALPHA = 1.3
# finite, so that an anchor without others has a gradient of zero instead of 0/0
_NEVER = torch.finfo(torch.float32).min


class RegionAlignmentConfig(BaseModel):
    """How words are assigned to patches, and how patches attend to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(2, gt=0, le=512, description="cross-attention layers from patches to concept tokens")
    assignment: Literal["argmax", "gumbel"] = Field(
        "argmax",
        description="argmax: the nearest word; "
        "gumbel: in training drawn by straight-through Gumbel-softmax (FSGR)",
    )
    top_k: int | None = Field(
        None,
        gt=0,
        le=10_000_000,
        description="words left to each image by its own embedding before patches choose; absent: all",
    )
    count_normalised: bool = Field(
        False, description="divide each concept token by one more than the patches of its word (FSGR)"
    )
    logit_scale: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="factor on cosines before the Gumbel-softmax; CLIP's own is 100",
    )
    grid_geometry: bool = Field(
        False, description="bias the cross-attention by how cells lie to one another (RSTNet)"
    )
    contrast_width: int = Field(
        128, ge=0, le=65536, description="width of the projection head of the patch contrast; 0: no contrast"
    )
    text_regulariser: bool = Field(
        False, description="own a projection of the mean patch for the loss 1 - cosine(picture, caption text)"
    )


class RegionAlignmentLayer(nn.Module):
    """Cross-attention from patches to concept tokens, and a feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.cross = CrossAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = dropout

    def forward(self, x_BNC: Tensor, keyed_BNC: Tensor, concepts_BNC: Tensor, bias: Tensor | None) -> Tensor:
        """`keyed_BNC` are the concept tokens with their positions, `concepts_BNC` the same without."""
        keys_BHND, values_BHND = self.cross.project(concepts_BNC, keyed_BNC)
        looked_BNC, _ = self.cross(x_BNC, keys_BHND, values_BHND, bias)
        return self.feed_forward(self.cross_norm(add_dropped(x_BNC, looked_BNC, self.dropout, self.training)))


class RegionAlignment(nn.Module):
    """Assigns words to patches and lets the patches attend to them.

    Raises ConfigError where `top_k` exceeds the codebook, and warns where it keeps half of it or more.
    """

    def __init__(
        self,
        config: RegionAlignmentConfig,
        codebook: Codebook,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        _check_top_k(config.top_k, len(codebook))
        self.config = config
        self.codebook = codebook
        self.embed = Linear(codebook.embeddings_WE.shape[1], width)
        self.embed_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            RegionAlignmentLayer(width, heads, hidden, dropout) for _ in range(config.layers)
        )
        self.geometry = GridGeometry(heads) if config.grid_geometry else None

    def assign(self, features: VisualFeatures) -> ConceptAssignment:
        """Returns the word of each patch.

        Raises ModelError where the features have no patches in the codebook's text space, or no pooled
        embedding although `top_k` needs it.
        """
        config, width = self.config, self.codebook.embeddings_WE.shape[1]
        if features.aligned_BNE is None:
            raise ModelError(
                "region alignment needs patch tokens in the text space of the codebook, and the features "
                "hold none; "
                "set the tower's 'aligned' (value_only, value_with_residual or correlative), or leave the "
                "[captioner.region_alignment] table out"
            )
        if features.aligned_BNE.shape[-1] != width:
            raise ModelError(
                f"aligned patches are {features.aligned_BNE.shape[-1]} wide and the codebook {width}: they "
                "belong to different towers; "
                f"use a codebook made with this tower (it was made with {self.codebook.tower!r})"
            )
        if config.top_k is not None and features.pooled_BE is None:
            raise ModelError(
                "region_alignment.top_k chooses words by the picture's own embedding, and the features hold "
                "none; leave top_k out"
            )
        how = config.assignment if self.training else "argmax"
        return assign(
            features.aligned_BNE, self.codebook.embeddings_WE, how, features.pooled_BE, config.top_k,
            config.count_normalised, config.logit_scale, features.mask_BN,
        )  # fmt: skip

    def forward(
        self, x_BNC: Tensor, assigned: ConceptAssignment, hw: tuple[int, int] | None, mask_BN: Tensor | None
    ) -> Tensor:
        """Returns the patches after the layers, (B, N, C), or (B, N + 1, C) with a global token.

        The global token attends to all concepts without a geometric bias. Raises ModelError where grid
        geometry is configured and the patches form no grid.
        """
        concepts_BNC = self.embed_norm(F.celu(self.embed(assigned.tokens_BNE), _CELU_ALPHA))
        keyed_BNC = concepts_BNC
        if hw is not None:
            keyed_BNC = concepts_BNC + grid_positions(*hw, x_BNC.shape[-1], x_BNC.device).to(x_BNC.dtype)
        bias = self._bias(x_BNC, hw, mask_BN)
        for layer in self.layers:
            x_BNC = layer(x_BNC, keyed_BNC, concepts_BNC, bias)
        return x_BNC

    def _bias(self, x_BNC: Tensor, hw: tuple[int, int] | None, mask_BN: Tensor | None) -> Tensor | None:
        padding_B11N = padding_bias(mask_BN, x_BNC)
        if self.geometry is None:
            return padding_B11N
        if hw is None:
            raise ModelError(
                "region_alignment.grid_geometry needs patches that form a grid, and these features do not; "
                "set it to false"
            )
        bias_HNN = self.geometry(*hw)
        bias_HNN = F.pad(bias_HNN, (0, 0, 0, x_BNC.shape[1] - bias_HNN.shape[1])).to(x_BNC.dtype)
        return bias_HNN[None] if padding_B11N is None else bias_HNN + padding_B11N


class PatchContrast(nn.Module):
    """Supervised contrastive loss between patches, after a small projection head.

    Sources: Khosla 2020; FSGR's section on local contrast; temperature 0.07.
    """

    def __init__(self, width: int, projection: int, temperature: float = 0.07, anchors: int = 1024) -> None:
        super().__init__()
        self.expand = Linear(width, width)
        self.project = Linear(width, projection)
        self.temperature = temperature
        self.anchors = anchors

    def forward(
        self,
        patches_BNC: Tensor,
        labels_BN: Tensor,
        mask_BN: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns the loss over at most `anchors` patches of the batch.

        Where there are more, `generator` (on the CPU) draws them. A table of similarities takes anchors *
        anchors * 4 bytes (4 MiB at 1024) for any batch; about five exist at once. `labels_BN` are codebook
        rows, or classes of a segmentation. Patches with a negative label or outside `mask_BN` are ignored.
        The loss is zero, with a gradient of zero, where no label occurs twice.
        """
        real_BN = labels_BN >= 0 if mask_BN is None else mask_BN & (labels_BN >= 0)
        rows = real_BN.flatten().nonzero()[:, 0]
        if len(rows) > self.anchors:
            rows = rows[torch.randperm(len(rows), generator=generator)[: self.anchors].to(rows.device)]
        patches_AC, labels_A = patches_BNC.flatten(0, 1)[rows], labels_BN.flatten()[rows]
        projected_AP = F.normalize(self.project(self.expand(patches_AC).relu()), dim=-1)
        return supervised_contrast(projected_AP, labels_A, self.temperature)


def supervised_contrast(unit_AP: Tensor, labels_A: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla 2020, eq. 2, L_out).

    For each anchor it is the mean over its positives of -log softmax of their cosine over all other anchors.
    `unit_AP` have length one. The result is the mean over the anchors with a positive, and zero where no
    anchor has one.
    """
    scores_AA = (unit_AP @ unit_AP.T).float() / temperature
    itself_AA = torch.eye(len(labels_A), dtype=torch.bool, device=labels_A.device)
    positive_AA = (labels_A[:, None] == labels_A) & ~itself_AA
    log_AA = scores_AA - scores_AA.masked_fill(itself_AA, _NEVER).logsumexp(dim=1, keepdim=True)
    positives_A = positive_AA.sum(dim=1)
    losses_A = -(log_AA.masked_fill(~positive_AA, 0.0).sum(dim=1) / positives_A.clamp(min=1))
    return losses_A.sum() / (positives_A > 0).sum().clamp(min=1)


def check_codebook(
    alignment: RegionAlignmentConfig | None, copying: nn.Module | None, codebook: Codebook | None
) -> None:
    """Raises ConfigError where a part needs a codebook and there is none, or one is given that none uses."""
    parts = {"region alignment": alignment, "copying": copying}
    used = [name for name, part in parts.items() if part is not None]
    if used and codebook is None:
        raise ConfigError(
            f"{used[0]} is on and no codebook is given; make one with 'patchword codebook WORDS.txt "
            "--tower T --out D'"
        )
    if not used and codebook is not None:
        raise ConfigError(
            "a codebook is given and neither region alignment nor copying is on, so it would not be used; "
            "add one of their tables or drop it"
        )


def _check_top_k(top_k: int | None, words: int) -> None:
    if top_k is None:
        return
    if top_k > words:
        raise ConfigError(
            f"region_alignment.top_k = {top_k} exceeds the codebook's {words} words; choose fewer"
        )
    if 2 * top_k >= words:
        warnings.warn(
            f"region_alignment.top_k = {top_k} keeps half of the codebook's {words} words or more, so it "
            "filters little",
            stacklevel=3,
        )
