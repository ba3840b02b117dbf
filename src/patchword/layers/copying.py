"""Copying: words for what the picture shows, said by pointing at it instead of choosing among all words.

Yao, Pan, Li, Mei: Incorporating Copying Mechanism in Image Captioning for Learning Novel Objects. CVPR 2017.
Li, Yao, Pan, Chao, Mei: Pointing Novel Objects in Image Captioning. CVPR 2019.

    evidence   e_w = max over patches of cos(patch, word w), for the words that can be copied
    concepts   the `words` words of highest evidence, each in the singular and the plural: tokens k with the
               word vector v_k
    pointing   s_k = (W_q y)^T (W_k v_k + w_e e_k) / sqrt(D)       s_0 = w_0^T y + b_0
    gate       [g a_1 ... g a_K; 1 - g] = softmax([s_1 ... s_K; s_0])
    words      p(word) = (1 - g) p_vocab(word) + g sum over k with word_k = word of a_k    (Li, equation 7)
    tied words input W_in v_w + own row, score (W_out y)^T v_w + own row: of a word that no caption taught
               the first alone says something

Where the papers learn the gate from how likely both ways make a word, here a word that can be pointed at is
always pointed at: p_vocab is zero for the concepts of the picture, and for words that no training caption
taught. So every such word in a training caption teaches the gate, and what it learns, from vectors and
evidence alone, holds for words that it never met. These are no concepts while it learns: as they are in no
caption, it would learn to leave them unsaid. With `hidden` = h the vector of a concept is left out with
probability h while the gate learns, and always for words that no caption taught, so that these are judged by
what the eyes say of a thing of unknown name, and not by the fate of the words that lie next to them.

Gate and pointing share one softmax with a sentinel, as in Merity et al. 2017 (Pointer Sentinel Mixture
Models): that the eyes are sure of a thing raises the gate. v and the patches lie in the codebook's text
space; a word's vector is that of the word alone, less the mean of all.

Shape legend: B images, R rows of text, Q words or beams of one image, N patches, K concept tokens, W words of
the codebook, F forms of a word, V vocabulary, E width of the text space, C width of the decoder, D width of
the pointing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.errors import ConfigError, ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.linear import Linear
from patchword.types import Copies, VisualFeatures

FORMS = 2
"""Singular and plural."""
_LEAST = -30.0
"""Log-probability of a word that can be neither chosen nor pointed at: finite, so that a search which must
say it can."""
_SPREAD = 8.0
"""Evidence is a cosine; times this it is of the size of the other scores."""


class CopyTokens(NamedTuple):
    """The concepts of B pictures that can be copied."""

    ids_BK: Tensor
    """Token of each in the vocabulary; -1 where there is none."""
    keys_BKD: Tensor
    cosines_BKN: Tensor
    """How much each patch speaks for each, for people."""

    def copies(self, shares_RTK: Tensor) -> Copies:
        """What a trace says of copying; the shares are those of `Copying`, of one row per picture."""
        return Copies(self.ids_BK, shares_RTK, self.cosines_BKN)


class Copying(nn.Module):
    """The gate, the pointing, and the vectors of all words, which `set_words` fills.

    `words` concepts of a picture can be copied, `pointing` is D. Raises ConfigError without a codebook, and
    for more words than it has.
    """

    def __init__(
        self,
        words: int,
        pointing: int,
        width: int,
        vocabulary: int,
        codebook: Codebook | None,
        hidden: float = 0.0,
    ) -> None:
        super().__init__()
        if codebook is None:
            raise ConfigError(
                "copying is on and no codebook is given; make one with 'patchword codebook --class-names "
                "--tower T --out D'"
            )
        if words > len(codebook):
            raise ConfigError(
                f"copying.words is {words} and the codebook has {len(codebook)}: choose fewer words"
            )
        space = codebook.embeddings_WE.shape[1]
        self.count = words
        self.tower = codebook.tower
        self.register_buffer("codebook_WE", codebook.embeddings_WE.clone())
        self.register_buffer("ids_WF", torch.full((len(codebook), FORMS), -1))
        self.register_buffer("vectors_VE", torch.zeros(vocabulary, space))
        self.register_buffer("taught_V", torch.ones(vocabulary, dtype=torch.bool))
        self.input = Linear(space, width, bias=False)
        self.output = Linear(width, space, bias=False)
        self.query = Linear(width, pointing, bias=False)
        self.key = Linear(space, pointing)
        self.evidence = Linear(1, pointing, bias=False)
        self.sentinel = nn.Linear(width, 1)
        self.hidden = hidden
        # Without its vector a word is still known to be singular or plural.
        self.form_FD = nn.Parameter(0.02 * torch.randn(FORMS, pointing)) if hidden else None

    def set_words(self, vectors_VE: Tensor, ids_WF: Tensor, taught_V: Tensor) -> None:
        """What the words mean: the vector of every token of the vocabulary, of length one; the tokens of
        every word of the codebook, -1 for none; and which tokens training captions hold.

        Raises ModelError where shapes do not fit.
        """
        given = {"vectors_VE": vectors_VE, "ids_WF": ids_WF, "taught_V": taught_V}
        for name, tensor in given.items():
            own = getattr(self, name)
            if own.shape != tensor.shape:
                raise ModelError(
                    f"{name} of the words to copy is {tuple(tensor.shape)} and {tuple(own.shape)} is "
                    "expected: vocabulary and codebook must be those of the model"
                )
            own.copy_(tensor)

    def concepts(self, features: VisualFeatures) -> CopyTokens:
        """The concepts of each picture, singular beside plural, those of most evidence first.

        Raises ModelError where the features have no patches in the codebook's text space.
        """
        width = self.codebook_WE.shape[1]
        if features.aligned_BNE is None or features.aligned_BNE.shape[-1] != width:
            aligned_BNE = features.aligned_BNE
            found = "none" if aligned_BNE is None else f"some of width {aligned_BNE.shape[-1]}"
            raise ModelError(
                f"copying needs patches in the codebook's text space (width {width}, tower {self.tower!r}), "
                f"and the features hold {found}: set the tower's 'aligned', or leave the "
                "[captioner.copying] table out"
            )
        cosines_BNW = F.normalize(features.aligned_BNE.float(), dim=-1) @ self.codebook_WE.T
        if features.mask_BN is not None:
            cosines_BNW = cosines_BNW.masked_fill(~features.mask_BN[..., None], -1.0)
        ids_WF = self.ids_WF
        if self.training:
            ids_WF = ids_WF.masked_fill(~self.taught_V[ids_WF], -1)
        can_be_W = (ids_WF >= 0).any(dim=1)
        evidence_BW = cosines_BNW.amax(dim=1).masked_fill(~can_be_W, -1.0)
        best_BS = evidence_BW.topk(self.count, dim=1)
        ids_BK = ids_WF[best_BS.indices].flatten(1)
        ids_BK = ids_BK.masked_fill(best_BS.values.repeat_interleave(FORMS, dim=1) <= -1.0, -1)
        evidence_BK1 = _SPREAD * best_BS.values.repeat_interleave(FORMS, dim=1)[..., None]
        vectors_BKE = self.vectors_VE[ids_BK.clamp(min=0)]
        if self.form_FD is not None:
            vectors_BKE = vectors_BKE.masked_fill(self._hidden(ids_BK)[..., None], 0.0)
        keys_BKD = self.key(vectors_BKE) + self.evidence(evidence_BK1)
        if self.form_FD is not None:
            keys_BKD = keys_BKD + self.form_FD.repeat(self.count, 1)
        cosines_BSN = cosines_BNW.transpose(1, 2).gather(
            1, best_BS.indices[..., None].expand(-1, -1, cosines_BNW.shape[1])
        )
        return CopyTokens(ids_BK, keys_BKD, cosines_BSN.repeat_interleave(FORMS, dim=1))

    def _hidden(self, ids_BK: Tensor) -> Tensor:
        """The concepts whose vectors are left out: drawn word by word while learning, else those that no
        caption taught.
        """
        if not self.training:
            return ~self.taught_V[ids_BK]
        drawn_BS = torch.rand(len(ids_BK), self.count, device=ids_BK.device) < self.hidden
        return drawn_BS.repeat_interleave(FORMS, dim=1)

    def embed(self, tokens_RT: Tensor) -> Tensor:
        """What the vectors of the tokens add to their own rows, (R, T, C)."""
        embedded_RTC: Tensor = self.input(self.vectors_VE[tokens_RT])
        return embedded_RTC

    def forward(self, y_RTC: Tensor, own_RTV: Tensor, copied: CopyTokens) -> tuple[Tensor, Tensor]:
        """The log-probabilities of all words (R, T, V), and g a_k of each concept token (R, T, K).

        `own_RTV` are the scores by the words' own rows. R may be several rows of each picture, image by
        image.
        """
        # Shapes are asked of tensors, so that a graph which is written of this holds for any of them.
        images, vocabulary = copied.ids_BK.shape[0], own_RTV.shape[-1]
        y_BQC = y_RTC.reshape(images, -1, y_RTC.shape[-1])
        scores_BQV = own_RTV.reshape(images, -1, vocabulary) + self.output(y_BQC) @ self.vectors_VE.T
        real_BK = copied.ids_BK >= 0
        # Tokens that are none point at the last place, beyond the vocabulary, which is cut off again.
        places_BK = copied.ids_BK.masked_fill(~real_BK, vocabulary)
        pointed_at_BV = F.pad(torch.zeros_like(scores_BQV[:, 0]), (0, 1))
        pointed_at_BV = pointed_at_BV.scatter(
            1, places_BK, torch.ones_like(places_BK, dtype=scores_BQV.dtype)
        )
        pointed_at_BV = pointed_at_BV[:, :-1] > 0
        chosen_BQV = scores_BQV.masked_fill((pointed_at_BV | ~self.taught_V)[:, None], -torch.inf)
        pointed_BQK = self.query(y_BQC) @ copied.keys_BKD.transpose(1, 2) / copied.keys_BKD.shape[-1] ** 0.5
        pointed_BQK = pointed_BQK.masked_fill(~real_BK[:, None], -torch.inf)
        gated_BQX = torch.cat((pointed_BQK, self.sentinel(y_BQC)), dim=2).float().log_softmax(dim=2)
        copying_BQK, choosing_BQ1 = gated_BQX[..., :-1], gated_BQX[..., -1:]
        words_BQV = chosen_BQV.float().log_softmax(dim=2) + choosing_BQ1
        words_BQV = F.pad(words_BQV, (0, 1)).scatter(
            2, places_BK[:, None].expand_as(copying_BQK), copying_BQK.clamp(min=_LEAST)
        )
        words_BQV = words_BQV[..., :-1].clamp(min=_LEAST)
        return words_BQV.view(own_RTV.shape), copying_BQK.exp().view(*own_RTV.shape[:2], -1)
