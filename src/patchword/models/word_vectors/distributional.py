"""Multimodal distributional semantics: counts of words, pictures of words, mixed and fused.

Bruni, Tran and Baroni 2014 (Multimodal Distributional Semantics, JAIR 49, sections 3.2 and 3.3):

    PMI(w, c) = log n(w, c) N / (n(w) n(c))          PPMI = max(0, PMI)        LMI = n(w, c) PPMI
    M = [T^ || P^] ~ U_k S_k V_k'                    T^, P^: rows of length one; its columns are split again
    feature level: F = a T^ || (1 - a) P^, compared by the cosine
    score level: S(u, w) = a cos(T_u, T_w) + (1 - a) cos(P_u, P_w)

The score level is a feature level with other weights: the rows sqrt(a) T^ || sqrt(1 - a) P^ have length one,
and their inner product is S. So both are one matrix here. A word without pictures has a picture row of zeros;
it is compared by its text alone.

The visual words of the paper (k-means over SIFT) are replaced by what a vision tower sees (Kiela and Bottou
2014).

Shape legend: W words, X contexts, T width of text vectors, P width of picture vectors, K rank.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from patchword.errors import ConfigError


class DistributionalConfig(BaseModel, extra="forbid", frozen=True):
    """How text and pictures are brought together."""

    kind: Literal["distributional"] = "distributional"
    fusion: Literal["features", "scores"] = Field(
        "features", description="features: a T || (1 - a) P; scores: a cos(T) + (1 - a) cos(P)"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the text; 1: text alone, 0: pictures alone")
    rank: int | None = Field(
        None, gt=0, description="rank of the SVD that mixes text and pictures; absent: they are not mixed"
    )


class PairCounts(NamedTuple):
    """How often words occur near contexts: one entry per pair that occurs."""

    rows_E: Tensor
    """Word of each pair, int64."""
    columns_E: Tensor
    """Context of each pair, int64."""
    counts_E: Tensor
    """Occurrences, float64."""
    shape: tuple[int, int]
    """Words, contexts."""


def weighted(counts: PairCounts, weighting: Literal["ppmi", "lmi"]) -> Tensor:
    """Returns positive PMI or local mutual information as a sparse matrix (W, X); pairs below 0 are left
    out."""
    word_W, context_X = (torch.zeros(size, dtype=torch.float64) for size in counts.shape)
    word_W.index_add_(0, counts.rows_E, counts.counts_E)
    context_X.index_add_(0, counts.columns_E, counts.counts_E)
    expected_E = word_W[counts.rows_E] * context_X[counts.columns_E] / counts.counts_E.sum()
    pmi_E = (counts.counts_E / expected_E).log()
    values_E = pmi_E if weighting == "ppmi" else counts.counts_E * pmi_E
    kept = pmi_E > 0
    indices_2E = torch.stack([counts.rows_E[kept], counts.columns_E[kept]])
    return torch.sparse_coo_tensor(
        indices_2E, values_E[kept].float(), counts.shape, check_invariants=False
    ).coalesce()


class SingularFactors(NamedTuple):
    """A matrix as U_K S_K V_K'."""

    left_WK: Tensor
    singular_K: Tensor
    right_XK: Tensor


def truncated_svd(
    matrix_WX: Tensor, rank: int, generator: torch.Generator, passes: int = 4
) -> SingularFactors:
    """The largest singular values and vectors of a dense or sparse matrix, by random projection with power
    iterations (Halko et al. 2011, algorithm 4.4); exact where `rank` is that of the matrix.

    Raises ConfigError where `rank` is more than the matrix can have.
    """
    most = min(matrix_WX.shape)
    if rank > most:
        raise ConfigError(
            f"a matrix of {tuple(matrix_WX.shape)} has rank {most} at most, found {rank}: ask for less"
        )
    transposed_XW = matrix_WX.t()
    start_XK = torch.randn(
        matrix_WX.shape[1], min(rank + 10, most), generator=generator, dtype=matrix_WX.dtype
    )
    basis_WK = torch.linalg.qr(matrix_WX @ start_XK).Q
    for _ in range(passes):
        basis_XK = torch.linalg.qr(transposed_XW @ basis_WK).Q
        basis_WK = torch.linalg.qr(matrix_WX @ basis_XK).Q
    small = torch.linalg.svd((transposed_XW @ basis_WK).t(), full_matrices=False)
    left_WK = basis_WK @ small.U
    return SingularFactors(left_WK[:, :rank], small.S[:rank], small.Vh[:rank].t())


def unit_rows(rows_WX: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays."""
    return rows_WX / rows_WX.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def mix(
    text_WT: Tensor, pictures_WP: Tensor, rank: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Text and picture columns of the rank-K reconstruction of [T^ || P^]; with `rank` None they are T^ and
    P^."""
    joined_WC = torch.cat([unit_rows(text_WT), unit_rows(pictures_WP)], dim=1)
    if rank is not None:
        svd = truncated_svd(joined_WC, rank, generator)
        joined_WC = (svd.left_WK * svd.singular_K) @ svd.right_XK.t()
    return joined_WC[:, : text_WT.shape[1]], joined_WC[:, text_WT.shape[1] :]


def fuse(
    config: DistributionalConfig, text_WT: Tensor, pictures_WP: Tensor, generator: torch.Generator
) -> Tensor:
    """Rows (W, T + P) whose cosines are the similarities of the fusion; words without pictures have zeros
    there."""
    has_picture_W1 = (pictures_WP != 0).any(1, keepdim=True)
    text_WT, pictures_WP = mix(text_WT, pictures_WP, config.rank, generator)
    pictures_WP = unit_rows(pictures_WP) * has_picture_W1
    scores = config.fusion == "scores"
    of_text, of_pictures = config.alpha, 1 - config.alpha
    if scores:
        of_text, of_pictures = of_text**0.5, of_pictures**0.5
    return torch.cat([of_text * unit_rows(text_WT), of_pictures * pictures_WP], dim=1)
