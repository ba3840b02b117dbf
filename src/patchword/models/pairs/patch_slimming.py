"""LAPS: each caption selects the patches that it describes, and its words are aligned with these.

Fu, Zhang, Xia, Mao: "Linguistic-Aware Patch Slimming Framework for Fine-grained Cross-Modal Alignment", CVPR
2024.

    1 selection     s_n = saliency in the picture + relevance for the caption; a share `keep` is kept
    2 calibration   a_c = sum over kept n of softmax_n(MLP(v_n))_c v_n      `aggregated` tokens of kept ones
                    e   = sum over dropped n of softmax_n(s_n) v_n          one fused token of dropped ones
    3 alignment     of the words with [class token; a_1 ... a_C; e]         layers/patch_word.py

The paper and its public code compute different functions; both are here under their names.

    `code`    s is the plain sum of two cosines, and a hard top-k without a gradient selects.
    `paper`   s also contains the probability of a score network, a straight-through Gumbel decision selects,
              and a ratio loss controls the share.

The code saves work in three ways. The MLP depends on the patch alone, so it runs once per picture. Selecting
multiplies its exponentials by 0 or 1, because the softmax's denominator cancels where tokens are scaled to
length one. And the tokens are never formed (`layers/patch_word.py`, `sum_cosines`). The result equals the
equations up to rounding; docs/models/patch-slimming.md has the mapping.

Shape legend (in addition to `types.py`): I images, J captions, L words, N patches, P = [class] + C aggregated
+ [fused] tokens, d width of the head.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from patchword.errors import DataError, ModelError
from patchword.layers.patch_word import Tile, max_mean, mixed_cosines, sum_cosines, tile_for, unit

WIDEST_EXPONENT = 30.0
"""Largest spread of aggregation logits (nats) for float32. Beyond it a square could underflow, and float64
is used."""


class PatchSlimmingConfig(BaseModel):
    """How many patches of a picture are kept, and how they are selected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(gt=0, le=65536, description="width of image and caption tokens")
    variant: Literal["code", "paper"] = "code"
    keep: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the patches that stay (rho): 0.5 for ViT, 0.8 for Swin in the paper",
    )
    aggregated: int = Field(
        39,
        ge=0,
        le=1_000_000,
        description="tokens made of the kept patches; 0: no calibration, the kept patches themselves",
    )
    text_score: bool = Field(True, description="whether the caption takes part in the selection")
    fused_token: bool = Field(True, description="whether the dropped patches leave one token behind")
    attention_share: float = Field(
        0.8, ge=0, le=1, description="paper variant: share of the two attentions in the score (beta)"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="paper variant: of the Gumbel decision",
    )


def aggregated_tokens(patches: int, keep: float, share: float) -> int:
    """Returns `aggregated` by the published rule: a share (0.4 for ViT, 0.6 for Swin) of the kept patches."""
    return int(patches * share * keep)


class ImageSide(NamedTuple):
    """The prepared pictures of a batch; nothing here depends on a caption."""

    patches_INd: Tensor
    unit_INd: Tensor
    saliency_IN: Tensor
    counts_I: Tensor
    gram_INN: Tensor
    mixes_ICN: Tensor | None
    """exp of the aggregation logits minus their largest; None without calibration."""
    class_I1d: Tensor | None
    own_IN: Tensor | None
    """Probability from the score network (paper variant)."""
    mask_IN: Tensor | None

    def split(self, size: int) -> list[ImageSide]:
        """Splits the batch into pieces of `size` pictures.

        Each slice would write a gradient of the whole batch; a split writes one for all pieces.
        """
        columns = [
            [None] * -(-len(self.patches_INd) // size) if field is None else field.split(size)
            for field in self
        ]
        return [ImageSide(*piece) for piece in zip(*columns, strict=True)]


class CaptionSide(NamedTuple):
    """The prepared captions of a batch; nothing here depends on a picture."""

    words_JLd: Tensor
    """Words at length one; zeros on padding."""
    mask_JL: Tensor
    means_Jd: Tensor

    def split(self, size: int) -> list[CaptionSide]:
        """Splits the batch into pieces of `size` captions, each cut to its longest."""
        pieces = []
        for words_JLd, mask_JL, means_Jd in zip(*(field.split(size) for field in self), strict=True):
            longest = int(mask_JL.sum(dim=1).max())
            pieces.append(CaptionSide(words_JLd[:, :longest], mask_JL[:, :longest], means_Jd))
        return pieces


class PatchSelection(NamedTuple):
    """The patches that are kept for each pair of picture and caption."""

    keep_IJN: Tensor
    """1.0 for patches that are kept for a caption; in the paper variant with the gradient of the decision."""
    scores_IJN: Tensor


class PairSimilarity(NamedTuple):
    """The similarity of each pair of picture and caption, and the patches that were kept for it."""

    similarities_IJ: Tensor
    keep_IJN: Tensor


class PairTrace(NamedTuple):
    """The parts of the similarity of one caption and one picture.

    The token rows are [class token], aggregated tokens (or kept patches), [fused token].
    """

    similarity: float
    scores_N: Tensor
    kept_N: Tensor
    tokens_PN: Tensor
    """Weight of each patch in each token; rows sum to one, but the class token's row is zero."""
    cosines_LP: Tensor
    word_token_L: Tensor
    """Best token of each word."""
    gifts_LN: Tensor
    """Share of each patch in the cosine of a word's best token, with negative contributions set to zero.
    Where the best token is the class token, which has no patches, the word's cosines with the kept patches
    are used. Rows sum to one, or to zero where all contributions are negative."""
    word_patch_L: Tensor
    """The patch with the largest contribution, even if that is negative."""


class Aggregation(nn.Module):
    """Logits of C weighted sums for every patch: LayerNorm, two linear layers and one learned scale."""

    def __init__(self, width: int, tokens: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, max(1, int(0.2 * width)))
        self.outer = nn.Linear(self.inner.out_features, tokens)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, patches_INd: Tensor) -> Tensor:
        """Returns the logits (I, C, N); the caller applies the softmax."""
        logits_INC = self.outer(nn.functional.gelu(self.inner(self.norm(patches_INd)))) * self.scale
        return logits_INC.transpose(1, 2).contiguous()


class ScoreNetwork(nn.Module):
    """Probability that a patch matters, from the patch alone (the paper's significance score)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, max(1, width // 4))
        self.outer = nn.Linear(self.inner.out_features, 1)

    def forward(self, patches_INd: Tensor) -> Tensor:
        """Returns the probability of every patch, (I, N)."""
        return self.outer(nn.functional.gelu(self.inner(self.norm(patches_INd))))[..., 0].sigmoid()


class PatchSlimming(nn.Module):
    """The alignment head over the tokens of any two towers, projected to one width."""

    def __init__(self, config: PatchSlimmingConfig):
        super().__init__()
        self.config = config
        self.aggregation = Aggregation(config.width, config.aggregated) if config.aggregated else None
        self.score_network = ScoreNetwork(config.width) if config.variant == "paper" else None

    def forward(
        self, image_tokens_BNC: Tensor, caption_tokens_BLC: Tensor, lengths_B: Tensor, class_token: bool
    ) -> Tensor:
        """Returns the similarities (images, captions), within about [-0.2, 2].

        They are float32 even under autocast, because near ties decide the selection. `image_tokens_BNC` are
        (I, 1+N, d) with the class token first, or (I, N, d); `class_token` says which. `caption_tokens_BLC`
        are (J, L, d); the first `lengths_B` are words ([CLS] and [SEP] of a BERT count as words). Raises
        ModelError for another width, DataError for lengths that do not fit.
        """
        return self.align(
            self.images(image_tokens_BNC, class_token), self.captions(caption_tokens_BLC, lengths_B)
        ).similarities_IJ

    def images(self, tokens_INd: Tensor, class_token: bool, mask_IN: Tensor | None = None) -> ImageSide:
        """Prepares a batch of pictures for comparison with any caption.

        `mask_IN` is True for real patches (it has no entry for the class token).
        """
        self._check_width(tokens_INd, "image")
        with torch.autocast(tokens_INd.device.type, enabled=False):
            return self._images(tokens_INd.float(), class_token, mask_IN)

    def _images(self, tokens_INd: Tensor, class_token: bool, mask_IN: Tensor | None) -> ImageSide:
        class_I1d = unit(tokens_INd[:, :1]) if class_token else None
        patches_INd = tokens_INd[:, 1:] if class_token else tokens_INd
        if patches_INd.shape[1] == 0:
            raise DataError(
                "image tokens without a patch: found a class token alone, expected (images, 1 + patches, "
                "width)"
            )
        count = patches_INd.new_full((len(patches_INd),), patches_INd.shape[1])
        if mask_IN is not None:
            patches_INd = patches_INd.masked_fill(~mask_IN[..., None], 0.0)
            count = mask_IN.sum(dim=1)
        with torch.no_grad():
            unit_INd = unit(patches_INd)
            saliency_IN = torch.einsum("ind,id->in", unit_INd, unit(patches_INd.sum(dim=1) / count[:, None]))
            # Rounded in double precision: a share of 0.7 keeps 7 of 10 patches, where float32 would keep 8.
            counts_I = torch.tensor(
                [math.ceil(n * self.config.keep) for n in count.int().tolist()], device=patches_INd.device
            )
        mixes_ICN = None
        if self.aggregation is not None:
            mixes_ICN = _exponentials(self.aggregation(patches_INd), mask_IN)
            patches_INd = patches_INd.to(mixes_ICN.dtype)
        own_IN = None if self.score_network is None else self.score_network(patches_INd.float())
        gram_INN = patches_INd @ patches_INd.transpose(1, 2)
        return ImageSide(
            patches_INd, unit_INd, saliency_IN, counts_I, gram_INN, mixes_ICN, class_I1d, own_IN, mask_IN
        )

    def captions(self, tokens_JLd: Tensor, lengths_J: Tensor) -> CaptionSide:
        """Prepares a batch of captions for comparison with any picture."""
        self._check_width(tokens_JLd, "caption")
        lengths_J = torch.as_tensor(lengths_J)
        if (
            len(lengths_J) != len(tokens_JLd)
            or int(lengths_J.min()) < 1
            or int(lengths_J.max()) > tokens_JLd.shape[1]
        ):
            raise DataError(
                f"caption lengths {lengths_J.tolist()[:8]} for caption tokens of shape "
                f"{tuple(tokens_JLd.shape)}: expected one length "
                f"per caption, from 1 to {tokens_JLd.shape[1]}"
            )
        mask_JL = (
            torch.arange(tokens_JLd.shape[1], device=tokens_JLd.device)
            < lengths_J.to(tokens_JLd.device)[:, None]
        )
        tokens_JLd = tokens_JLd.float().masked_fill(~mask_JL[..., None], 0.0)
        with torch.no_grad():
            means_Jd = unit(tokens_JLd.sum(dim=1) / mask_JL.sum(dim=1, keepdim=True))
        return CaptionSide(unit(tokens_JLd), mask_JL, means_Jd)

    def align(
        self,
        images: ImageSide,
        captions: CaptionSide,
        tile: Tile | None = None,
        product_dtype: torch.dtype = torch.float32,
    ) -> PairSimilarity:
        """Compares every picture with every caption, tile by tile; captions of similar length share a tile.

        The tile never changes the result; `product_dtype` is that of `compare`.
        """
        tile = tile or tile_for(images.patches_INd.device, images.patches_INd[0].numel(), captions=32)
        order_J = captions.mask_JL.sum(dim=1).argsort(descending=True, stable=True)
        pieces = CaptionSide(*(field[order_J] for field in captions)).split(tile.captions)
        rows = []
        for some_images in images.split(tile.images):
            columns = [self.compare(some_images, some_captions, product_dtype) for some_captions in pieces]
            rows.append([torch.cat(parts, dim=1) for parts in zip(*columns, strict=True)])
        similarities_IJ, keep_IJN = (torch.cat(parts) for parts in zip(*rows, strict=True))
        back_J = order_J.argsort()
        return PairSimilarity(similarities_IJ[:, back_J], keep_IJN[:, back_J])

    def compare(
        self, images: ImageSide, captions: CaptionSide, product_dtype: torch.dtype = torch.float32
    ) -> PairSimilarity:
        """Compares one tile.

        `product_dtype` is used for the products of words and patches, most of the work; the rest is float32.
        """
        with torch.autocast(images.patches_INd.device.type, enabled=False):
            selected = self.select(images, captions)
            cosines_IJLP, tokens_IJP = self._cosines(images, captions, selected, product_dtype)
            return PairSimilarity(max_mean(cosines_IJLP, captions.mask_JL, tokens_IJP), selected.keep_IJN)

    def select(self, images: ImageSide, captions: CaptionSide) -> PatchSelection:
        """Selects the patches to keep for each caption (the paper's language-context patch selection)."""
        relevance_IJN = (
            (captions.means_Jd @ images.unit_INd.transpose(1, 2)) if self.config.text_score else None
        )
        saliency_IJN = images.saliency_IN[:, None].expand(-1, len(captions.means_Jd), -1)
        if images.own_IN is None:
            with torch.no_grad():
                scores_IJN = saliency_IJN if relevance_IJN is None else saliency_IJN + relevance_IJN
                return PatchSelection(_best(scores_IJN, images.counts_I, images.mask_IN), scores_IJN)
        attentions = [
            _stretched(a_IJN, images.mask_IN) for a_IJN in (saliency_IJN, relevance_IJN) if a_IJN is not None
        ]
        beta = self.config.attention_share
        scores_IJN = (1 - beta) * images.own_IN[:, None] + beta * sum(attentions) / len(attentions)
        return PatchSelection(
            _decide(scores_IJN, self.config.temperature, self.training, images.mask_IN), scores_IJN
        )

    def explain(self, tokens_Nd: Tensor, words_Ld: Tensor, class_token: bool) -> PairTrace:
        """Explains one pair: which patches were kept, merged and dropped, and where each word points.

        All of `words_Ld` are words.
        """
        with torch.no_grad():
            images = self.images(tokens_Nd[None], class_token)
            captions = self.captions(words_Ld[None], torch.tensor([len(words_Ld)]))
            selected = self.select(images, captions)
            cosines_IJLP, tokens_IJP = self._cosines(images, captions, selected, torch.float32)
            similarity = float(max_mean(cosines_IJLP, captions.mask_JL, tokens_IJP))
            kept_N, cosines_LP = selected.keep_IJN[0, 0] > 0.5, cosines_IJLP[0, 0]
            weights_PN = self._patch_weights(images, selected)[0, 0].float()
            if class_token:
                weights_PN = torch.cat([weights_PN.new_zeros(1, len(kept_N)), weights_PN])
            reachable_LP = (
                cosines_LP
                if tokens_IJP is None
                else cosines_LP.masked_fill(tokens_IJP[0, 0] < 0.5, -torch.inf)
            )
            word_token_L = reachable_LP.argmax(dim=1)
            # A patch contributes weight times inner product to a token's cosine. The class token has no
            # patches, so all kept ones compete.
            words_Ld = captions.words_JLd[0]
            given_LN = words_Ld @ images.patches_INd[0].float().T * weights_PN[word_token_L]
            given_LN = given_LN.masked_fill(weights_PN[word_token_L] == 0, -torch.inf)
            nearest_LN = (words_Ld @ images.unit_INd[0].T).masked_fill(~kept_N, -torch.inf)
            no_patch_L1 = (weights_PN[word_token_L] == 0).all(dim=1, keepdim=True)
            gifts_LN = torch.where(no_patch_L1, nearest_LN, given_LN)
            word_patch_L = gifts_LN.argmax(dim=1)
            gifts_LN = gifts_LN.clamp_min(0.0)
            gifts_LN = gifts_LN / gifts_LN.sum(dim=1, keepdim=True).clamp_min(1e-30)
            shares_PN = weights_PN / weights_PN.sum(dim=1, keepdim=True).clamp_min(1e-30)
        return PairTrace(
            similarity,
            selected.scores_IJN[0, 0],
            kept_N,
            shares_PN,
            cosines_LP,
            word_token_L,
            gifts_LN,
            word_patch_L,
        )

    def _patch_weights(self, images: ImageSide, selected: PatchSelection) -> Tensor:
        """Weights (I, J, P, N), up to a factor per row, of the patches in the tokens, for an explanation."""
        if images.mixes_ICN is None:
            weights_IJPN = torch.diag_embed(selected.keep_IJN)
        else:
            weights_IJPN = selected.keep_IJN[:, :, None] * images.mixes_ICN[:, None]
        if not self.config.fused_token:
            return weights_IJPN
        return torch.cat([weights_IJPN, self._dropped(images, selected)[:, :, None]], dim=2)

    def _dropped(self, images: ImageSide, selected: PatchSelection) -> Tensor:
        """Weights (I, J, N), up to a factor, of the dropped patches in the fused token: exp of the score."""
        real = 1.0 if images.mask_IN is None else images.mask_IN[:, None].float()
        return ((real - selected.keep_IJN) * selected.scores_IJN.exp()).to(images.patches_INd.dtype)

    def _cosines(
        self, images: ImageSide, captions: CaptionSide, selected: PatchSelection, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Returns cosines (I, J, L, P) of words and tokens, and token weights (I, J, P), or None for ones."""
        keep_IJN = selected.keep_IJN
        I, J, N = keep_IJN.shape
        words_1Rd = captions.words_JLd.flatten(0, 1)[None]
        working = images.patches_INd.dtype
        within = working if dtype == torch.float32 else dtype
        products_IRN = words_1Rd.to(within) @ images.patches_INd.to(within).transpose(1, 2)
        products_IJLN = products_IRN.to(working).view(I, J, -1, N)
        columns = []
        if images.class_I1d is not None:
            columns.append((words_1Rd @ images.class_I1d.transpose(1, 2)).view(I, J, -1, 1))
        if images.mixes_ICN is None:
            squared_IN = images.gram_INN.diagonal(dim1=1, dim2=2)
            columns.append(products_IJLN * squared_IN.clamp_min(1e-24).rsqrt()[:, None, None])
        else:
            columns.append(mixed_cosines(products_IJLN, keep_IJN, images.mixes_ICN, images.gram_INN).float())
        if self.config.fused_token:
            columns.append(
                sum_cosines(products_IJLN, self._dropped(images, selected), images.gram_INN).float()
            )
        cosines_IJLP = torch.cat(columns, dim=3)
        if images.mixes_ICN is not None:
            return cosines_IJLP, None
        one_IJ1 = keep_IJN.new_ones(I, J, 1)
        before, behind = [one_IJ1] * (images.class_I1d is not None), [one_IJ1] * self.config.fused_token
        return cosines_IJLP, torch.cat([*before, keep_IJN, *behind], dim=2)

    def _check_width(self, tokens: Tensor, what: str) -> None:
        if tokens.dim() != 3 or tokens.shape[2] != self.config.width:
            raise ModelError(
                f"{what} tokens of shape {tuple(tokens.shape)}: this head expects (batch, tokens, "
                f"{self.config.width}); project the "
                f"tower's output to {self.config.width} or build the head with its width"
            )


def _exponentials(logits_ICN: Tensor, mask_IN: Tensor | None) -> Tensor:
    """exp of the logits minus their row's largest, and 0 at padding.

    The result is float64 where float32 could lose kept patches beside larger dropped ones.
    """
    lowest_ICN = highest_ICN = logits_ICN.detach()
    if mask_IN is not None:
        lowest_ICN = lowest_ICN.masked_fill(~mask_IN[:, None], torch.inf)
        highest_ICN = highest_ICN.masked_fill(~mask_IN[:, None], -torch.inf)
    top_IC1 = highest_ICN.amax(dim=2, keepdim=True)
    if (top_IC1 - lowest_ICN.amin(dim=2, keepdim=True)).max() > WIDEST_EXPONENT:
        logits_ICN, top_IC1 = logits_ICN.double(), top_IC1.double()
    mixes_ICN = (logits_ICN - top_IC1).clamp(-300.0, 0.0).exp()
    return mixes_ICN if mask_IN is None else mixes_ICN.masked_fill(~mask_IN[:, None], 0.0)


def _best(scores_IJN: Tensor, counts_I: Tensor, mask_IN: Tensor | None) -> Tensor:
    """1.0 for the `counts_I` patches with the highest scores; of equal scores the first patch wins."""
    if mask_IN is not None:
        scores_IJN = scores_IJN.masked_fill(~mask_IN[:, None], -torch.inf)
    most = int(counts_I.max())
    if int(counts_I.min()) == most:
        least_IJ1 = scores_IJN.topk(most, dim=2, sorted=False).values.amin(dim=2, keepdim=True)
    else:
        ranked_IJN = scores_IJN.sort(dim=2, descending=True).values
        least_IJ1 = ranked_IJN.gather(2, (counts_I - 1)[:, None, None].expand(-1, scores_IJN.shape[1], 1))
    keep_IJN = scores_IJN >= least_IJ1
    if (keep_IJN.sum(dim=2) != counts_I[:, None]).any():
        ranks_IJN = scores_IJN.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        keep_IJN = ranks_IJN < counts_I[:, None, None]
    return keep_IJN.float()


def _stretched(attention_IJN: Tensor, mask_IN: Tensor | None) -> Tensor:
    """Scales each row to [0, 1] by its smallest and largest real patch, for comparable scores."""
    low_IJN = high_IJN = attention_IJN
    if mask_IN is not None:
        low_IJN = attention_IJN.masked_fill(~mask_IN[:, None], torch.inf)
        high_IJN = attention_IJN.masked_fill(~mask_IN[:, None], -torch.inf)
    low_IJ1, high_IJ1 = low_IJN.amin(dim=2, keepdim=True), high_IJN.amax(dim=2, keepdim=True)
    return ((attention_IJN - low_IJ1) / (high_IJ1 - low_IJ1).clamp_min(1e-12)).clamp(0, 1)


def _decide(scores_IJN: Tensor, temperature: float, training: bool, mask_IN: Tensor | None) -> Tensor:
    """Decides which patches to keep: where the score exceeds its complement.

    Training uses a straight-through Gumbel-softmax over the two classes. The difference of two Gumbel
    variables is logistic, so the first class has probability sigmoid((logit s + noise) / tau). The best patch
    is always kept, so that a caption never has none.
    """
    odds_IJN = scores_IJN.clamp(1e-6, 1 - 1e-6).logit()
    if training:
        uniform_IJN = torch.rand_like(odds_IJN).clamp(1e-6, 1 - 1e-6)
        odds_IJN = odds_IJN + uniform_IJN.logit()
    if mask_IN is not None:
        odds_IJN = odds_IJN.masked_fill(~mask_IN[:, None], -torch.inf)
    soft_IJN = (odds_IJN / temperature).sigmoid()
    hard_IJN = ((odds_IJN > 0) | (odds_IJN == odds_IJN.amax(dim=2, keepdim=True))).float()
    return hard_IJN + soft_IJN - soft_IJN.detach() if training else hard_IJN
