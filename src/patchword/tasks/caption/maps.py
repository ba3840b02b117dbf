"""Maps of what made a word: for each word of a caption a weight for every cell of the tower's grid.

    features of one picture -> SeenPicture;  with the tokens of a caption -> ToldCaption;  METHODS -> maps_Phw

Several answers to the question where a word came from, each a function below. `patchword explain-check`
measures them against boxes and masks; docs/explanations.md has the numbers, from which `DEFAULT` was chosen.

    attention            the decoder's own weights in its last layer, mean over heads
    gradient             |d log p(word) / d cell|, the length of the gradient (Simonyan et al. 2014, arXiv
        1312.6034)
    grad_cam             relu(sum_c A_nc mean_n' G_n'c), G the gradient at the grid A (Selvaraju et al. 2017,
                         arXiv 1610.02391)
    gradient_times_input relu(sum_c A_nc G_nc) (HiResCAM, Draelos and Carin 2020, arXiv 2011.08891)
    attention_gradient   attention times gradient_times_input (after Chefer et al. 2021, arXiv 2103.15679, who
        multiply
                         inside the layers)
    occlusion            relu(log p(word) - log p(word | cell taken away)) (Zeiler and Fergus 2014, arXiv
        1311.2901)
    concept              the share of the word among the codebook's words at each cell, from the cosines of
        the
                         cell's place in text space

Every map is divided by its sum. A method that has nothing to say about a word gives None, or an even map
where all its weights are zero.

Shape legend: that of `patchword.types`; P words that are asked about, h x w the grid, W words of a codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchword.decode import explain_tokens, repeat_images
from patchword.layers.codebook import Codebook
from patchword.metrics.chair_files import plural
from patchword.types import Captioner, SpecialIds, VisualFeatures

ROWS = 16
"""Rows that go through the captioner at once; it bounds the memory."""
CONCEPT_SCALE = 100.0
"""Factor on cosines before the softmax over the codebook, as in CLIP and in region alignment."""


class SeenPicture:
    """The features of one picture and what a captioner makes of them, computed when first asked for."""

    def __init__(self, captioner: Captioner, special: SpecialIds, features: VisualFeatures) -> None:
        self.captioner, self.special = captioner, special
        with torch.inference_mode(False):
            # A tensor of inference mode cannot take part in a gradient, its copy can.
            parts = [part.detach().clone() if isinstance(part, Tensor) else part for part in features]
        self.features = VisualFeatures(*parts)

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
        """The picture N times, each time without one of its N cells, in parts, each with its number of
        copies.
        """
        cells = self.features.grid_BNC.shape[1]
        left_NN = ~torch.eye(cells, dtype=torch.bool, device=self.features.grid_BNC.device)
        return [(self.encode(left_RN), len(left_RN)) for left_RN in left_NN.split(ROWS)]

    @torch.no_grad()
    def encode(self, left_RN: Tensor | None = None) -> NamedTuple:
        """The memory of the picture, or of R copies of which the cells of `left_RN` (True: there) are
        left."""
        if left_RN is None:
            return self.captioner.encode(self.features)
        copies = repeat_images(self.features, len(left_RN))
        there_RN = left_RN if copies.mask_BN is None else left_RN & copies.mask_BN
        return self.captioner.encode(copies._replace(mask_BN=there_RN))

    def log_probabilities(self, tokens_T: Tensor, memory: NamedTuple, rows: int) -> Tensor:
        """Natural logarithm of the probability of every token of one caption (R, T), for a memory of R
        rows."""
        tokens_RT = tokens_T.expand(rows, -1)
        inputs_RT = torch.cat([tokens_RT.new_full((rows, 1), self.special.start), tokens_RT[:, :-1]], dim=1)
        lengths_R = tokens_RT.new_full((rows,), len(tokens_T))
        logits_RTV = self.captioner.decode(inputs_RT, lengths_R, memory).logits_BTV
        return logits_RTV.float().log_softmax(-1).gather(2, tokens_RT[..., None])[..., 0]

    @torch.no_grad()
    def phrase_probabilities(self, tokens_T: Tensor, places: Sequence[int], left_RN: Tensor) -> np.ndarray:
        """Probability (R,) of the tokens at `places`, given those before, where only some cells are left
        (True).
        """
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
        vectors_P: Sequence[Tensor | None] | None = None,
        codebook: Codebook | None = None,
    ) -> None:
        """Tokens without start and end.

        `vectors_P`: each word in the text space of `codebook`, None where unknown.
        """
        self.picture = picture
        with torch.inference_mode(False):
            self.tokens_T = tokens_T.clone()
        self.places_P = list(range(len(tokens_T))) if places_P is None else list(places_P)
        self.vectors_P = [None] * len(self.places_P) if vectors_P is None else list(vectors_P)
        self.codebook = codebook

    def map(self, method: Callable[[ToldCaption], Tensor | None]) -> np.ndarray | None:
        """The maps of one of the functions below, (P, h, w) float32, each divided by its sum; None where it
        has none.

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
        """By how much each word's log-probability falls where one cell is taken away."""
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
    if aligned_1NE is None or told.codebook is None or all(vector is None for vector in told.vectors_P):
        return None
    cells_NE = F.normalize(aligned_1NE[0].float(), dim=-1)
    log_total_N1 = (CONCEPT_SCALE * cells_NE @ told.codebook.embeddings_WE.T).logsumexp(-1, keepdim=True)
    zero_E = torch.zeros_like(cells_NE[0])
    words_PE = torch.stack([zero_E if vector is None else vector for vector in told.vectors_P])
    shares_NP = (CONCEPT_SCALE * cells_NE @ words_PE.T - log_total_N1).exp()
    known_P1 = torch.tensor([[vector is not None] for vector in told.vectors_P], device=shares_NP.device)
    return shares_NP.T * known_P1


METHODS: dict[str, Callable[[ToldCaption], Tensor | None]] = {
    "attention": attention,
    "gradient": gradient,
    "grad_cam": grad_cam,
    "gradient_times_input": gradient_times_input,
    "attention_gradient": attention_gradient,
    "occlusion": occlusion,
    "concept": concept,
}
"""Every method by its name."""


def word_vectors(codebook: Codebook, words: Sequence[str]) -> list[Tensor | None]:
    """Each word or phrase in the text space of the codebook, from its row or that of its singular; None
    without a row.

    The vectors stand in the codebook, so no text tower is needed.
    """
    rows = {word: row for row, word in enumerate(codebook.words)}
    rows = {plural(word): row for word, row in rows.items()} | rows
    return [codebook.embeddings_WE[rows[word]] if word in rows else None for word in words]
