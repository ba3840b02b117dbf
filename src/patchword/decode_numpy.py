"""The beam search of `decode.py` in numpy, for models that run without torch: the same hypotheses, the best
of each picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from patchword.ids import SpecialIds

Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(tokens_R, rows_R) -> logits (R, V) of the next token: `rows_R` says which row of the step before each row
continues."""


class Found(NamedTuple):
    """The best hypothesis of B pictures."""

    tokens: list[list[int]]
    """Without the start token, the end token included where there is one."""
    log_probabilities_B: np.ndarray
    finished_B: np.ndarray
    """False where the search ran into its length."""


class SearchOptions(NamedTuple):
    """What `decode.BeamOptions` has of the same name."""

    beams: int
    max_length: int
    length_penalty: float = 0.0
    no_repeat_ngram: int = 0
    no_stutter: bool = False
    min_length: int = 0


def beam_search(step: Step, images: int, special: SpecialIds, options: SearchOptions) -> Found:
    """A hypothesis that has ended competes for its beam with the others; a picture's search ends when no
    unfinished hypothesis can overtake its best one."""
    K, R = options.beams, images * options.beams
    tokens_RT = np.zeros((R, 0), dtype=np.int64)
    lengths_R, totals_R, ended_R = np.zeros(R, np.int64), np.zeros(R, np.float32), np.zeros(R, bool)
    totals_R.reshape(images, K)[:, 1:] = -np.inf  # all begin alike: only the first may branch
    next_R, rows_R = np.full(R, special.start), np.arange(R)
    for _ in range(options.max_length):
        added_RV = _allowed(step(next_R, rows_R), tokens_RT, special, options)
        best_RK = np.argsort(-added_RV, axis=1, kind="stable")[:, :K]
        added_RK = np.take_along_axis(added_RV, best_RK, axis=1)
        scores_RK = (totals_R[:, None] + added_RK) / (lengths_R[:, None] + 1) ** options.length_penalty
        scores_RK[ended_R] = -np.inf
        scores_RK[ended_R, 0] = (totals_R / np.maximum(lengths_R, 1) ** options.length_penalty)[ended_R]
        kept_BK = np.argsort(-scores_RK.reshape(images, -1), axis=1, kind="stable")[:, :K]
        first_B1, width = np.arange(0, R, K)[:, None], best_RK.shape[1]
        rows_R, places_R = (first_B1 + kept_BK // width).ravel(), (kept_BK % width).ravel()
        was_R = ended_R[rows_R]
        next_R = np.where(was_R, special.pad, best_RK[rows_R, places_R])
        tokens_RT = np.concatenate([tokens_RT[rows_R], next_R[:, None]], axis=1)
        lengths_R = lengths_R[rows_R] + ~was_R
        totals_R = totals_R[rows_R] + np.where(was_R, 0, added_RK[rows_R, places_R])
        ended_R = was_R | (next_R == special.end) & (totals_R > -np.inf)
        if _settled(lengths_R, totals_R, ended_R, options):
            break
    scores_R = totals_R / np.maximum(lengths_R, 1) ** options.length_penalty
    best_B = np.arange(0, R, K) + scores_R.reshape(images, K).argmax(axis=1)
    told = [[] if np.isneginf(totals_R[row]) else tokens_RT[row, : lengths_R[row]].tolist() for row in best_B]
    return Found(told, totals_R[best_B], ended_R[best_B])


def _allowed(
    logits_RV: np.ndarray, tokens_RT: np.ndarray, special: SpecialIds, options: SearchOptions
) -> np.ndarray:
    """Log-probabilities of all tokens; minus infinity for tokens that may not follow."""
    logits_RV = logits_RV - logits_RV.max(axis=1, keepdims=True)
    added_RV = logits_RV - np.log(np.exp(logits_RV).sum(axis=1, keepdims=True))
    added_RV[:, [special.pad, special.start, special.unknown]] = -np.inf
    R, steps = tokens_RT.shape
    if options.no_stutter and steps:
        added_RV[np.arange(R), tokens_RT[:, -1]] = -np.inf
    for start in range(steps - options.no_repeat_ngram + 1) if options.no_repeat_ngram else ():
        before_RN = tokens_RT[:, start : start + options.no_repeat_ngram - 1]
        rows = (before_RN == tokens_RT[:, steps - options.no_repeat_ngram + 1 :]).all(axis=1)
        added_RV[rows, tokens_RT[rows, start + options.no_repeat_ngram - 1]] = -np.inf
    if steps < options.min_length:
        added_RV[:, special.end] = -np.inf
    return added_RV


def _settled(
    lengths_R: np.ndarray, totals_R: np.ndarray, ended_R: np.ndarray, options: SearchOptions
) -> bool:
    reach_R = np.where(ended_R, -np.inf, totals_R / options.max_length**options.length_penalty)
    scores_R = np.where(ended_R, totals_R / np.maximum(lengths_R, 1) ** options.length_penalty, -np.inf)
    best_B, reach_B = (values.reshape(-1, options.beams).max(axis=1) for values in (scores_R, reach_R))
    return bool((best_B >= reach_B).all())
