"""Maps of what made a word: for each word of a caption a weight for every cell of the tower's grid.

    features of one picture -> SeenPicture;  with the tokens of a caption -> ToldCaption;  METHODS -> maps_Phw

Several answers to the question where a word came from, each a function below. `patchword explain-check`
measures them against boxes and masks; docs/explanations.md has the numbers, and `with_best_maps`
what was chosen by them.

    attention            the decoder's own weights in its last layer, mean over heads
    gradient             |d log p(word) / d cell|, the length of the gradient (Simonyan et al. 2014,
                         arXiv 1312.6034)
    grad_cam             relu(sum_c A_nc mean_n' G_n'c), G the gradient at the grid A (Selvaraju et al. 2017,
                         arXiv 1610.02391)
    gradient_times_input relu(sum_c A_nc G_nc) (HiResCAM, Draelos and Carin 2020, arXiv 2011.08891)
    attention_gradient   attention times gradient_times_input (after Chefer et al. 2021, arXiv 2103.15679,
                         who multiply inside the layers)
    occlusion            relu(log p(word) - log p(word | cell taken away)) (Zeiler and Fergus 2014,
                         arXiv 1311.2901)
    concept              the share of the word among the codebook's words at each cell, from the cosines of
                         the cell's place in text space
    class_activation     softmax over the cells of the 3 x 3 mean of sum_k (v_k - 1/K) L_nk: L_nk the
                         classifier's logits at each cell (CAM, Zhou et al. 2016, arXiv 1512.04150), v_k
                         proportional to exp(20 cos(name of class k, word)) and to the root of the picture's
                         probability of class k, so that a word which is no class borrows the classes that
                         are like it and are there

Every map is divided by its sum. A method that has nothing to say about a word gives None, or an even map
where all its weights are zero.

The last two need a word's place in text space, which the codebook of region alignment holds for its words.

Shape legend: that of `patchword.types`; P words that are asked about, h x w the grid, W words of a codebook,
K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchword.decode import explain_tokens, repeat_images
from patchword.layers.codebook import Codebook
from patchword.tasks.caption.result import Caption
from patchword.text.coco_objects import coco_words
from patchword.text.imagenet import common_words
from patchword.text.words import plural, with_plurals
from patchword.types import Captioner, SpecialIds, VisualFeatures

ROWS = 16
"""Rows that go through the captioner at once; it bounds the memory."""
CONCEPT_SCALE = 100.0
"""Factor on cosines before the softmax over the codebook, as in CLIP and in region alignment."""


LIKENESS_SCALE = 20.0
"""Factor on the cosines of a word and the names of classes."""


class TextSpace(NamedTuple):
    """Where words and the tower's classes lie in one text space."""

    codebook: Codebook
    class_names_KE: Tensor | None
    """Names of the classes, of length one; None for a tower that names no classes."""


class SeenPicture:
    """The features of one picture and what a captioner makes of them, computed when first asked for."""

    def __init__(
        self,
        captioner: Captioner,
        special: SpecialIds,
        features: VisualFeatures,
        classes_NK: Tensor | None = None,
    ) -> None:
        """`classes_NK`: logits of the tower's classes at each cell, where it has any."""
        self.captioner, self.special, self.classes_NK = captioner, special, classes_NK
        with torch.inference_mode(False):
            # A tensor of inference mode cannot take part in a gradient, its copy can.
            parts = [part.detach().clone() if isinstance(part, Tensor) else part for part in features]
        self.features = VisualFeatures._make(parts)

    @property
    def hw(self) -> tuple[int, int] | None:
        """Rows and columns of the grid; None where the patches form none, and then there are no maps."""
        return self.features.hw

    @cached_property
    def memory(self) -> NamedTuple:
        """The picture as the decoder reads it."""
        return self.encode()

    @cached_property
    def without_cell(self) -> list[tuple[NamedTuple, int]]:
        """The picture without each of its N cells in turn, in parts, each with its number of copies."""
        cells = self.features.grid_BNC.shape[1]
        left_NN = ~torch.eye(cells, dtype=torch.bool, device=self.features.grid_BNC.device)
        return [(self.encode(left_RN), len(left_RN)) for left_RN in left_NN.split(ROWS)]

    @torch.no_grad()
    def encode(self, left_RN: Tensor | None = None) -> NamedTuple:
        """The memory of the picture, or of R copies that keep the cells where `left_RN` is True."""
        if left_RN is None:
            return self.captioner.encode(self.features)
        copies = repeat_images(self.features, len(left_RN))
        there_RN = left_RN if copies.mask_BN is None else left_RN & copies.mask_BN
        return self.captioner.encode(copies._replace(mask_BN=there_RN))

    def log_probabilities(self, tokens_T: Tensor, memory: NamedTuple, rows: int) -> Tensor:
        """Log-probability of every token of one caption (R, T), natural, for a memory of R rows."""
        tokens_RT = tokens_T.expand(rows, -1)
        inputs_RT = torch.cat([tokens_RT.new_full((rows, 1), self.special.start), tokens_RT[:, :-1]], dim=1)
        lengths_R = tokens_RT.new_full((rows,), len(tokens_T))
        logits_RTV = self.captioner.decode(inputs_RT, lengths_R, memory).logits_BTV
        return logits_RTV.float().log_softmax(-1).gather(2, tokens_RT[..., None])[..., 0]

    @torch.no_grad()
    def phrase_probabilities(self, tokens_T: Tensor, places: Sequence[int], left_RN: Tensor) -> np.ndarray:
        """Probability (R,) of the tokens at `places`, where only the cells of `left_RN` are there."""
        left_RN = left_RN.to(self.features.grid_BNC.device)
        found = []
        for part_RN in left_RN.split(ROWS):
            scores_RT = self.log_probabilities(tokens_T, self.encode(part_RN), len(part_RN))
            found.append(scores_RT[:, list(places)].sum(dim=1).exp())
        return torch.cat(found).cpu().numpy()


class ToldCaption:
    """One caption of one picture, and the places of the words that are asked about."""

    def __init__(
        self,
        picture: SeenPicture,
        tokens_T: Tensor,
        places_P: Sequence[int] | None = None,
        words_P: Sequence[str] | None = None,
        space: TextSpace | None = None,
    ) -> None:
        """Tokens without start and end; `words_P` spells the words at the places, for `space`."""
        self.picture = picture
        with torch.inference_mode(False):
            self.tokens_T = tokens_T.clone()
        self.places_P = list(range(len(tokens_T))) if places_P is None else list(places_P)
        self.space = space
        self.vectors_P: list[Tensor | None] = [None] * len(self.places_P)
        if space is not None and words_P is not None:
            self.vectors_P = word_vectors(space.codebook, words_P)

    def map(self, method: Callable[[ToldCaption], Tensor | None]) -> np.ndarray | None:
        """The maps (P, h, w) of one of the functions below, each divided by its sum; None where it has none.

        A map of zeros becomes an even one: it prefers no cell.
        """
        weights_PN = method(self)
        if weights_PN is None or self.picture.hw is None:
            return None
        weights_PN = weights_PN.detach().nan_to_num().clamp(min=0)
        totals_P1 = weights_PN.sum(dim=1, keepdim=True)
        even_PN = torch.full_like(weights_PN, 1 / weights_PN.shape[1])
        shares_PN = torch.where(totals_P1 > 0, weights_PN / totals_P1.clamp(min=1e-30), even_PN)
        return shares_PN.cpu().numpy().reshape(-1, *self.picture.hw)

    @property
    def grid_NC(self) -> Tensor:
        """The cells that the captioner reads."""
        return self.picture.features.grid_BNC[0]

    @cached_property
    def attention_PN(self) -> Tensor | None:
        """The decoder's weights on the cells; None for a captioner that does not attend."""
        lengths_B = self.tokens_T.new_full((1,), len(self.tokens_T))
        trace = explain_tokens(
            self.picture.captioner, self.picture.memory, self.picture.special, self.tokens_T[None], lengths_B
        )
        return None if trace.attention_BTN is None else trace.attention_BTN[0, self.places_P].float()

    @cached_property
    def gradients_PNC(self) -> Tensor:
        """Gradient of each word's log-probability with respect to the cells."""
        found = []
        with torch.inference_mode(False), torch.enable_grad():
            for first in range(0, len(self.places_P), ROWS):
                places = self.places_P[first : first + ROWS]
                longest = max(places) + 1  # later words do not change earlier ones
                copies = repeat_images(self.picture.features, len(places))
                grid_PNC = copies.grid_BNC.clone().requires_grad_(True)
                memory = self.picture.captioner.encode(copies._replace(grid_BNC=grid_PNC))
                scores_PT = self.picture.log_probabilities(self.tokens_T[:longest], memory, len(places))
                own_P = scores_PT[range(len(places)), places]
                found.append(torch.autograd.grad(own_P.sum(), grid_PNC)[0].float())
        return torch.cat(found)

    @cached_property
    @torch.no_grad()
    def losses_PN(self) -> Tensor:
        """Returns by how much each word's log-probability falls where one cell is taken away."""
        longest = max(self.places_P) + 1
        tokens_T = self.tokens_T[:longest]
        whole_1T = self.picture.log_probabilities(tokens_T, self.picture.memory, 1)
        parts = [
            self.picture.log_probabilities(tokens_T, memory, rows)
            for memory, rows in self.picture.without_cell
        ]
        return (whole_1T - torch.cat(parts))[:, self.places_P].T


def attention(told: ToldCaption) -> Tensor | None:
    """The decoder's own weights (P, N); None for a captioner that does not attend."""
    return told.attention_PN


def gradient(told: ToldCaption) -> Tensor:
    """Length of the gradient at each cell (P, N)."""
    return told.gradients_PNC.norm(dim=-1)


def grad_cam(told: ToldCaption) -> Tensor:
    """Channels weighted by their mean gradient, and of their sum what speaks for the word (P, N)."""
    return (told.gradients_PNC.mean(dim=1) @ told.grid_NC.float().T).relu()


def gradient_times_input(told: ToldCaption) -> Tensor:
    """Each cell times its own gradient, and of the sum what speaks for the word (P, N)."""
    return (told.gradients_PNC * told.grid_NC.float()).sum(dim=-1).relu()


def attention_gradient(told: ToldCaption) -> Tensor | None:
    """Attention times `gradient_times_input` (P, N); None for a captioner that does not attend."""
    return None if told.attention_PN is None else told.attention_PN * gradient_times_input(told)


def occlusion(told: ToldCaption) -> Tensor:
    """What each word loses where one cell is taken away (P, N)."""
    return told.losses_PN.relu()


def concept(told: ToldCaption) -> Tensor | None:
    """How much more the word is like a cell than other words of the codebook are (P, N).

    None for a picture without a place in text space, or where the codebook has none of the words.
    """
    aligned_1NE = told.picture.features.aligned_BNE
    if aligned_1NE is None or told.space is None or all(vector is None for vector in told.vectors_P):
        return None
    cells_NE = F.normalize(aligned_1NE[0].float(), dim=-1)
    codebook_WE = told.space.codebook.embeddings_WE
    log_total_N1 = (CONCEPT_SCALE * cells_NE @ codebook_WE.T).logsumexp(-1, keepdim=True)
    words_PE, known_P1 = _stacked(told.vectors_P)
    return (CONCEPT_SCALE * cells_NE @ words_PE.T - log_total_N1).exp().T * known_P1


def class_activation(told: ToldCaption) -> Tensor | None:
    """Where the tower's classes that are like the word are active (P, N).

    None for a tower that names no classes, or where the codebook has none of the words.
    """
    classes_NK, space = told.picture.classes_NK, told.space
    if classes_NK is None or space is None or space.class_names_KE is None or told.picture.hw is None:
        return None
    if all(vector is None for vector in told.vectors_P):
        return None
    words_PE, known_P1 = _stacked(told.vectors_P)
    return _word_activation(classes_NK, space.class_names_KE, words_PE, told.picture.hw) * known_P1


def _word_activation(
    classes_NK: Tensor, class_names_KE: Tensor, words_PE: Tensor, hw: tuple[int, int]
) -> Tensor:
    classes_NK = classes_NK.float()
    prior_K = 0.5 * classes_NK.mean(dim=0).log_softmax(-1)
    weights_PK = (LIKENESS_SCALE * words_PE @ class_names_KE.T + prior_K).softmax(-1) - 1 / len(prior_K)
    activation_P1hw = (weights_PK @ classes_NK.T).reshape(-1, 1, *hw)
    # One cell is noisy: the classifier was trained on means of cells.
    smooth_P1hw = F.avg_pool2d(F.pad(activation_P1hw, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return smooth_P1hw.flatten(1).softmax(-1)


def _stacked(vectors_P: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The vectors (P, E), zeros where there is none, and which there are (P, 1)."""
    some_E = next(vector for vector in vectors_P if vector is not None)
    stacked_PE = torch.stack([torch.zeros_like(some_E) if one is None else one for one in vectors_P])
    return stacked_PE, torch.tensor([[one is not None] for one in vectors_P], device=some_E.device)


METHODS: dict[str, Callable[[ToldCaption], Tensor | None]] = {
    "attention": attention,
    "gradient": gradient,
    "grad_cam": grad_cam,
    "gradient_times_input": gradient_times_input,
    "attention_gradient": attention_gradient,
    "occlusion": occlusion,
    "concept": concept,
    "class_activation": class_activation,
}
"""Every method by its name."""


def word_vectors(codebook: Codebook, words: Sequence[str]) -> list[Tensor | None]:
    """Each word or phrase in the text space of the codebook; None where the codebook does not have it.

    The row is that of the word itself, of its singular, or of the last word of a phrase. The vectors stand in
    the codebook, so no text tower is needed.
    """
    rows = _rows(codebook.words)
    found = [rows.get(word, rows.get(word.rpartition(" ")[2])) for word in words]
    return [None if row is None else codebook.embeddings_WE[row] for row in found]


@lru_cache(maxsize=4)
def _rows(words: tuple[str, ...]) -> dict[str, int]:
    """The row of each word and of its plural, which are the same for every caption: to make a thousand
    plurals takes a fifth of the time of a caption."""
    rows = {word: row for row, word in enumerate(words)}
    return {plural(word): row for word, row in rows.items()} | rows


@cache
def thing_words() -> frozenset[str]:
    """Words that name a thing: the common words of ImageNet's classes, and what names COCO's 80 categories.

    The choice of the map is measured on such words; of other words ("a", "red", "running") nothing is known.
    """
    return frozenset(with_plurals({word: word for word in common_words()}) | coco_words().keys())


def with_best_maps(
    caption: Caption, space: TextSpace | None, classes_NK: Tensor | None, hw: tuple[int, int] | None
) -> Caption:
    """The caption with the map of each word that measures best, and its name: see docs/explanations.md.

    A word that names a thing gets `class_activation`, every other one the attention. Where the tower names no
    classes, nothing is changed: `explain-check` found no map that is better than attention for all of such
    models.
    """
    if (
        space is None
        or space.class_names_KE is None
        or classes_NK is None
        or hw is None
        or not caption.tokens
    ):
        return caption
    words = [token.removesuffix("</w>").lower() for token in caption.tokens]
    copied = caption.copied or (None,) * len(words)
    named = [word in thing_words() and share is None for word, share in zip(words, copied, strict=True)]
    vectors = word_vectors(space.codebook, words)
    vectors = [vector if thing else None for vector, thing in zip(vectors, named, strict=True)]
    if all(vector is None for vector in vectors):
        return caption
    words_PE, known_P1 = _stacked(vectors)
    active_TN = _word_activation(classes_NK, space.class_names_KE, words_PE, hw)
    active_Thw = active_TN.reshape(-1, *hw).cpu().numpy().astype(np.float32)
    even_Thw = np.full_like(active_Thw, 1 / active_Thw[0].size)
    known_T11 = known_P1.cpu().numpy()[:, :, None]
    shown_Thw = caption.attention_Thw if caption.maps_Thw is None else caption.maps_Thw
    others = caption.map_names or ("none" if shown_Thw is None else "attention",) * len(words)
    return replace(
        caption,
        maps_Thw=np.where(known_T11, active_Thw, even_Thw if shown_Thw is None else shown_Thw),
        map_names=tuple(
            "class_activation" if known else other
            for known, other in zip(known_T11.ravel(), others, strict=True)
        ),
    )
