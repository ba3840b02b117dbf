"""Beam search in which given words must occur (constrained beam search, Anderson et al. 2017, arXiv
1612.00576).

A constraint is a set of phrases of which one must be said, such as "dog" or "dogs". A finite-state machine
counts which constraints a hypothesis has met; every state keeps its own beams, so that a hypothesis on its
way to an unlikely word does not compete with those that never try. A phrase of several tokens has states of
its own while it is begun.

    state   = (constraints met, constraint whose phrase is begun)
    result  = the likeliest ended hypothesis in which all constraints are met

Shape legend: that of `patchword.decode`; here R is the number of live hypotheses of one picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patchword.decode import BEST_SUM, BeamOptions, Decodings, select_rows
from patchword.errors import ConfigError
from patchword.types import Captioner, SpecialIds

MOST_CONSTRAINTS = 4
"""The number of states doubles with every constraint."""

Phrases = tuple[tuple[int, ...], ...]
"""The alternatives of one constraint, each the tokens of a phrase."""


class _Hypothesis(NamedTuple):
    tokens: tuple[int, ...]
    added: tuple[float, ...]
    total: float
    row: int
    """Row of the decoding state that the last token was produced with."""


@torch.no_grad()
def constrained_beam_search(
    captioner: Captioner,
    memory: NamedTuple,
    special: SpecialIds,
    constraints: Sequence[Phrases],
    beams: int,
    max_length: int,
    options: BeamOptions = BEST_SUM,
) -> Decodings:
    """The best caption of one picture in which every constraint is met; B and K are 1.

    `beams` hypotheses are kept in each state. Of `options`, `min_length`, `no_repeat_ngram` and `no_stutter`
    count; a caption has a least length, its end left out, for the likeliest of all that say a word is often
    that word alone. Where no caption of `max_length` tokens meets all constraints, the one that meets
    the most is returned, and `finished_BK` tells whether it ended. Raises ConfigError for no or too many
    constraints, or one without a phrase.
    """
    if not 1 <= len(constraints) <= MOST_CONSTRAINTS or any(
        not phrases or () in phrases for phrases in constraints
    ):
        raise ConfigError(
            f"a constrained search takes 1 to {MOST_CONSTRAINTS} constraints, each with a phrase; "
            f"found {[len(phrases) for phrases in constraints]} phrases"
        )
    everything = 2 ** len(constraints) - 1
    live, state = [_Hypothesis((), (), 0.0, 0)], captioner.start(memory, 1)
    device = next(part for part in memory if isinstance(part, Tensor)).device
    ended: dict[int, _Hypothesis] = {}
    for length in range(max_length):
        last_R = torch.tensor(
            [one.tokens[-1] if one.tokens else special.start for one in live], device=device
        )
        logits_RV, state, _ = captioner.step(last_R, memory, state)
        scores_RV = logits_RV.float().log_softmax(-1)
        scores_RV[:, [special.pad, special.start, special.unknown]] = -math.inf
        if length < options.min_length:
            scores_RV[:, special.end] = -math.inf
        kept: dict[tuple[int, int], list[_Hypothesis]] = {}
        for one in _continuations(live, scores_RV, constraints, beams, options.no_repeat_ngram):
            if options.no_stutter and one.tokens[-2:-1] == one.tokens[-1:]:
                continue
            met = constraints_met(one.tokens, constraints)
            if one.tokens[-1] == special.end:
                if met not in ended or one.total > ended[met].total:
                    ended[met] = one
                continue
            kept.setdefault((met, _begun(one.tokens, constraints, met)), []).append(one)
        live = [one for group in kept.values() for one in sorted(group, key=lambda one: -one.total)[:beams]]
        best_ended = ended.get(everything)
        if not live or (best_ended is not None and best_ended.total >= max(one.total for one in live)):
            break
        state = select_rows(state, torch.tensor([one.row for one in live], device=device))
    return _decodings(_chosen(ended, live, constraints, everything), special, device)


def constraints_met(tokens: Sequence[int], constraints: Sequence[Phrases]) -> int:
    """The constraints of which a phrase occurs in the tokens, as the bits of a number."""
    met = 0
    for number, phrases in enumerate(constraints):
        if any(_occurs(phrase, tokens) for phrase in phrases):
            met |= 1 << number
    return met


def _occurs(phrase: tuple[int, ...], tokens: Sequence[int]) -> bool:
    length = len(phrase)
    return any(tuple(tokens[first : first + length]) == phrase for first in range(len(tokens) - length + 1))


def _begun(tokens: tuple[int, ...], constraints: Sequence[Phrases], met: int) -> int:
    """The unmet constraint whose phrase ends the tokens unfinished, counted from 1; 0 for none."""
    for number, phrases in enumerate(constraints):
        if not met & 1 << number and any(_progress(phrase, tokens) for phrase in phrases):
            return number + 1
    return 0


def _progress(phrase: tuple[int, ...], tokens: tuple[int, ...]) -> int:
    """How many tokens of the phrase, less than all, the tokens end with."""
    for length in range(len(phrase) - 1, 0, -1):
        if tokens[-length:] == phrase[:length]:
            return length
    return 0


def _continuations(
    live: list[_Hypothesis], scores_RV: Tensor, constraints: Sequence[Phrases], beams: int, ngram: int
) -> Iterator[_Hypothesis]:
    """Every hypothesis with each of its likeliest tokens, and with those that a constraint asks for next."""
    likeliest_RK = scores_RV.topk(min(beams + 1, scores_RV.shape[1])).indices.tolist()
    for row, one in enumerate(live):
        met = constraints_met(one.tokens, constraints)
        asked = {
            phrase[_progress(phrase, one.tokens)]
            for number, phrases in enumerate(constraints)
            if not met & 1 << number
            for phrase in phrases
        }
        asked |= {
            phrase[0]
            for number, phrases in enumerate(constraints)
            if not met & 1 << number
            for phrase in phrases
        }
        for token in {*likeliest_RK[row], *asked}:
            score = float(scores_RV[row, token])
            if score == -math.inf or _repeats((*one.tokens, token), ngram):
                continue
            yield _Hypothesis((*one.tokens, token), (*one.added, score), one.total + score, row)


def _repeats(tokens: tuple[int, ...], ngram: int) -> bool:
    """Whether the last n tokens have stood in this order before."""
    if ngram <= 0 or len(tokens) <= ngram:
        return False
    return _occurs(tokens[-ngram:], tokens[:-1])


def _chosen(
    ended: dict[int, _Hypothesis], live: list[_Hypothesis], constraints: Sequence[Phrases], everything: int
) -> tuple[_Hypothesis, bool]:
    """The best hypothesis, and whether it ended: all constraints first, then as many as possible, then the
    score.
    """
    if everything in ended:
        return ended[everything], True
    found = [(one, True) for one in ended.values()] + [(one, False) for one in live]
    return max(
        found,
        key=lambda pair: (constraints_met(pair[0].tokens, constraints).bit_count(), pair[1], pair[0].total),
    )


def _decodings(chosen: tuple[_Hypothesis, bool], special: SpecialIds, device: torch.device) -> Decodings:
    one, finished = chosen
    return Decodings(
        tokens_BKT=torch.tensor([[one.tokens]], device=device),
        lengths_BK=torch.tensor([[len(one.tokens)]], device=device),
        log_probabilities_BK=torch.tensor([[one.total]], device=device),
        token_log_probabilities_BKT=torch.tensor([[one.added]], device=device),
        finished_BK=torch.tensor([[finished]], device=device),
    )
