"""Decoding: greedy search, beam search and sampling for every captioner in `models/`.

A search uses two methods of `patchword.types.Captioner`: `start` and `step`. The memory of the pictures is
read and never copied; only the state, with one row for each of the K beams of B pictures, is reordered, once
per token. Nothing here records gradients. Put the captioner in evaluation mode first.

    score of a hypothesis = sum of its log-probabilities / length ** length_penalty

A length penalty of 0 gives the plain sum, 1 the mean per token.

Shape legend: see `patchword.types`; here R = B*K rows, image by image, and W windows of n tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from patchword.errors import ConfigError
from patchword.types import Captioner, SpecialIds, Trace

Tree = TypeVar("Tree")


class Decodings(NamedTuple):
    """K hypotheses for each of B pictures, best first (samples: in the order in which they were drawn)."""

    tokens_BKT: Tensor
    """Tokens without the start token, with the end token where one was produced, then padding. T is the
    longest length."""
    lengths_BK: Tensor
    """Number of tokens of each hypothesis, including the end token; 0 where the search found fewer
    hypotheses than requested."""
    log_probabilities_BK: Tensor
    """Natural logarithm of the probability of each hypothesis under the model; minus infinity where there
    is no hypothesis."""
    token_log_probabilities_BKT: Tensor
    """Log-probability of each token; 0 on padding."""
    finished_BK: Tensor
    """True where the hypothesis ended with the end token, False where it reached the length limit."""


class SamplingOptions(NamedTuple):
    """The tokens from which a sample is drawn."""

    temperature: float = 1.0
    """Divides the logits: below 1 likely tokens become likelier."""
    top_k: int = 0
    """Only so many of the likeliest tokens are candidates; 0: all."""
    top_p: float = 1.0
    """Only the smallest set of likeliest tokens that holds this share of the probability (nucleus sampling,
    Holtzman et al. 2020)."""
    forbid_unknown: bool = True
    """Excludes the tokens that are not words: unknown, padding and a second start."""


class BeamOptions(NamedTuple):
    """How a beam search ranks its hypotheses, and what they may say."""

    n_best: int = 1
    """Hypotheses that are returned for each picture."""
    length_penalty: float = 0.0
    finished: Literal["keep", "retire"] = "keep"
    """What happens to a hypothesis that has ended. With "keep" it competes for its beam with the others, and
    the best scores win, ended or not. With "retire" it is kept for good, the search continues with one beam
    fewer, and ended hypotheses rank before unfinished ones."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens occurs twice in a caption; 0: allowed."""
    no_stutter: bool = False
    """No token directly follows itself."""
    forbid_unknown: bool = True
    """Excludes the tokens that are not words: unknown, padding and a second start."""
    min_length: int = 0
    """Tokens that a caption has at least before it may end."""


ANY_TOKEN = SamplingOptions()
BEST_SUM = BeamOptions()


@torch.no_grad()
def greedy(
    captioner: Captioner,
    memory: NamedTuple,
    special: SpecialIds,
    max_length: int,
    no_repeat_ngram: int = 0,
    forbid_unknown: bool = True,
) -> Decodings:
    """Takes the likeliest token at every step, until the end token or `max_length` tokens; K is 1.

    `max_length` includes the end token. With `no_repeat_ngram` = n, no sequence of n tokens occurs twice in a
    caption. `forbid_unknown` excludes the tokens that are not words: unknown, padding and a second start.
    Neither option changes the returned log-probabilities, which are those of the model.
    """

    options = BeamOptions(no_repeat_ngram=no_repeat_ngram, forbid_unknown=forbid_unknown)
    return _roll_out(captioner, memory, special, 1, max_length, options, _likeliest)


@torch.no_grad()
def greedy_steps(
    captioner: Captioner,
    memory: NamedTuple,
    special: SpecialIds,
    max_length: int,
    no_repeat_ngram: int = 0,
    forbid_unknown: bool = True,
    no_stutter: bool = False,
) -> Iterator[Decodings]:
    """Yields what `greedy` has decoded so far after every token.

    The last item equals the result of `greedy`. With `no_stutter` no token directly follows itself.
    """
    options = BeamOptions(
        no_repeat_ngram=no_repeat_ngram, forbid_unknown=forbid_unknown, no_stutter=no_stutter
    )
    for running in _steps(captioner, memory, special, 1, max_length, options, _likeliest):
        yield _decodings(running, 1)


@torch.no_grad()
def sample(
    captioner: Captioner,
    memory: NamedTuple,
    special: SpecialIds,
    samples: int,
    max_length: int,
    options: SamplingOptions = ANY_TOKEN,
    generator: torch.Generator | None = None,
) -> Decodings:
    """Draws `samples` captions per picture, each token from softmax(logits / temperature); K = samples.

    `generator` must be on the device of the memory. The returned log-probabilities are those of the model at
    temperature 1 over all tokens. Raises ConfigError for a temperature, top_k or top_p out of range.
    """
    temperature, top_k, top_p, forbid_unknown = options
    if temperature <= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"sampling needs temperature > 0, top_k >= 0 and 0 < top_p <= 1; found {temperature}, {top_k} "
            f"and {top_p}"
        )

    def draw(log_probabilities_RV: Tensor) -> Tensor:
        scores_RV = log_probabilities_RV / temperature
        if top_k:
            least_R1 = scores_RV.topk(min(top_k, scores_RV.shape[-1])).values[:, -1:]
            scores_RV = scores_RV.masked_fill(scores_RV < least_R1, -math.inf)
        if top_p < 1:
            scores_RV = _nucleus(scores_RV, top_p)
        return torch.multinomial(scores_RV.softmax(dim=-1), 1, generator=generator).squeeze(1)

    allowed = BeamOptions(forbid_unknown=forbid_unknown)
    return _roll_out(captioner, memory, special, samples, max_length, allowed, draw)


@torch.no_grad()
def beam_search(
    captioner: Captioner,
    memory: NamedTuple,
    special: SpecialIds,
    beams: int,
    max_length: int,
    options: BeamOptions = BEST_SUM,
) -> Decodings:
    """Returns the `n_best` hypotheses of a beam search with `beams` beams per picture; K is n_best.

    The search of a picture stops when no unfinished hypothesis can still enter its `n_best`. Raises
    ConfigError where n_best exceeds beams or the length penalty is negative.
    """
    if not 1 <= options.n_best <= beams:
        raise ConfigError(
            f"a beam search of {beams} beams cannot return {options.n_best} hypotheses: ask for 1 to {beams}"
        )
    if options.length_penalty < 0:
        raise ConfigError(
            f"the length penalty is {options.length_penalty}; it must be 0 (sum of log-probabilities) or "
            "more (1: their mean)"
        )
    state, R = captioner.start(memory, beams), _images(memory) * beams
    running = _Hypotheses.begin(R, special, _device(memory))
    # All beams of a picture start from the same state, so only the first may branch.
    running.totals_R.view(-1, beams)[:, 1:] = -math.inf
    tokens_R = running.tokens_RT.new_full((R,), special.start)
    for _ in range(max_length):
        logits_RV, state, _ = captioner.step(tokens_R, memory, state)
        log_probabilities_RV = _scored(logits_RV, running, special, options)
        if running.tokens_RT.shape[1] < options.min_length:
            log_probabilities_RV[:, special.end] = -math.inf
        rows_R, tokens_R, added_R = _select(running, log_probabilities_RV, beams, special, options)
        state = select_rows(state, rows_R)
        running = select_rows(running, rows_R).extend(tokens_R, added_R, special)
        if _settled(running, beams, max_length, options):
            break
    return _best(running, beams, special, options)


@torch.no_grad()
def explain_tokens(
    captioner: Captioner, memory: NamedTuple, special: SpecialIds, tokens_BT: Tensor, lengths_B: Tensor
) -> Trace:
    """Returns the trace of one given caption per picture, from one pass of teacher forcing.

    Entry t of the trace belongs to `tokens_BT[:, t]`. `tokens_BT` has no start token, as in `Decodings`. For
    several captions of one picture, repeat the memory first (`repeat_images`).
    """
    inputs_BT = torch.cat([tokens_BT.new_full((len(tokens_BT), 1), special.start), tokens_BT[:, :-1]], dim=1)
    trace = captioner.decode(inputs_BT, lengths_B, memory, trace=True).trace
    return Trace() if trace is None else trace


def select_rows(tree: Tree, rows: Tensor) -> Tree:
    """Indexes the first axis of every tensor in a memory, a state or any nest of tuples by `rows`."""
    selected: Tree = _selected(tree, rows)
    return selected


def _selected(node: Any, rows: Tensor) -> Any:
    if isinstance(node, Tensor):
        return node.index_select(0, rows)
    if isinstance(node, tuple):
        parts = [_selected(part, rows) for part in node]
        return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)
    return node


def repeat_images(memory: Tree, times: int) -> Tree:
    """Repeats the memory of every picture `times` times in a row.

    Teacher forcing with several captions of each picture needs the copies; a search does not.
    """
    first = _first_tensor(memory)
    rows = torch.arange(len(first), device=first.device).repeat_interleave(times)
    return select_rows(memory, rows)


class _Hypotheses(NamedTuple):
    """The hypotheses of R rows so far."""

    tokens_RT: Tensor
    token_log_probabilities_RT: Tensor
    lengths_R: Tensor
    totals_R: Tensor
    ended_R: Tensor

    @classmethod
    def begin(cls, rows: int, special: SpecialIds, device: torch.device) -> _Hypotheses:
        return cls(
            torch.full((rows, 0), special.pad, device=device),
            torch.zeros(rows, 0, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
            torch.zeros(rows, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def extend(self, tokens_R: Tensor, log_probabilities_R: Tensor, special: SpecialIds) -> _Hypotheses:
        """Appends one token to the rows that have not ended, and padding to the others."""
        tokens_R = tokens_R.masked_fill(self.ended_R, special.pad)
        log_probabilities_R = log_probabilities_R.masked_fill(self.ended_R, 0)
        return _Hypotheses(
            torch.cat([self.tokens_RT, tokens_R[:, None]], dim=1),
            torch.cat([self.token_log_probabilities_RT, log_probabilities_R[:, None]], dim=1),
            self.lengths_R + ~self.ended_R,
            self.totals_R + log_probabilities_R,
            self.ended_R
            | (tokens_R == special.end) & (log_probabilities_R > -math.inf) & (self.totals_R > -math.inf),
        )

    def scores_R(self, length_penalty: float) -> Tensor:
        return self.totals_R / self.lengths_R.clamp(min=1) ** length_penalty


def _roll_out(
    captioner: Captioner,
    memory: NamedTuple,
    special: SpecialIds,
    copies: int,
    max_length: int,
    options: BeamOptions,
    choose: Callable[[Tensor], Tensor],
) -> Decodings:
    """Runs `_steps` to its end and returns the last result."""
    steps = _steps(captioner, memory, special, copies, max_length, options, choose)
    return _decodings(deque(steps, maxlen=1).pop(), copies)


def _steps(
    captioner: Captioner,
    memory: NamedTuple,
    special: SpecialIds,
    copies: int,
    max_length: int,
    options: BeamOptions,
    choose: Callable[[Tensor], Tensor],
) -> Iterator[_Hypotheses]:
    """Decodes B * copies independent rows token by token.

    `choose` picks each token from its log-probabilities (R, V); `options` say which tokens may follow.
    """
    state, R = captioner.start(memory, copies), _images(memory) * copies
    running = _Hypotheses.begin(R, special, _device(memory))
    yield running
    tokens_R = running.tokens_RT.new_full((R,), special.start)
    for _ in range(max_length):
        logits_RV, state, _ = captioner.step(tokens_R, memory, state)
        log_probabilities_RV = _scored(logits_RV, running, special, options)
        tokens_R = choose(log_probabilities_RV)
        running = running.extend(
            tokens_R, log_probabilities_RV.gather(1, tokens_R[:, None]).squeeze(1), special
        )
        yield running
        if running.ended_R.all():
            break


def _likeliest(log_probabilities_RV: Tensor) -> Tensor:
    return log_probabilities_RV.argmax(dim=-1)


def _scored(logits_RV: Tensor, running: _Hypotheses, special: SpecialIds, options: BeamOptions) -> Tensor:
    """Log-probabilities of all tokens in single precision; minus infinity for tokens that may not follow."""
    log_probabilities_RV = logits_RV.float().log_softmax(dim=-1)
    if options.forbid_unknown:
        for token in (special.pad, special.start, special.unknown):
            log_probabilities_RV[:, token] = -math.inf
    steps, ngram = running.tokens_RT.shape[1], options.no_repeat_ngram
    if options.no_stutter and steps:
        log_probabilities_RV.scatter_(1, running.tokens_RT[:, -1:], -math.inf)
    if 0 < ngram <= steps:
        windows_RWN = running.tokens_RT.unfold(1, ngram, 1)
        suffix_R1N = running.tokens_RT[:, None, steps - ngram + 1 :]
        seen_RW = (windows_RWN[..., :-1] == suffix_R1N).all(dim=-1)
        repeats_RV = torch.zeros_like(log_probabilities_RV).scatter_add_(
            1, windows_RWN[..., -1], seen_RW.to(log_probabilities_RV.dtype)
        )
        log_probabilities_RV.masked_fill_(repeats_RV > 0, -math.inf)
    return log_probabilities_RV


def _nucleus(scores_RV: Tensor, top_p: float) -> Tensor:
    """Sets the scores outside the smallest set of likeliest tokens that holds `top_p` to minus infinity."""
    sorted_RV, order_RV = scores_RV.sort(dim=-1, descending=True)
    shares_RV = sorted_RV.softmax(dim=-1)
    # A token is outside when the tokens before it already hold top_p.
    outside_RV = shares_RV.cumsum(dim=-1) - shares_RV >= top_p
    return scores_RV.masked_fill(torch.zeros_like(outside_RV).scatter(1, order_RV, outside_RV), -math.inf)


def _select(
    running: _Hypotheses,
    log_probabilities_RV: Tensor,
    beams: int,
    special: SpecialIds,
    options: BeamOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the best `beams` candidates of every picture: rows, next tokens and log-probabilities.

    No row can contribute more than its own best `beams` candidates, so only these are compared between rows.
    A hypothesis that has ended has one candidate, itself. Where it retires it ranks before all unfinished
    ones, so it keeps its beam and the others share the rest.
    """
    retire, length_penalty = options.finished == "retire", options.length_penalty
    R, V = log_probabilities_RV.shape
    added_RK, tokens_RK = log_probabilities_RV.topk(min(beams, V), dim=-1)
    tokens_RK = tokens_RK.masked_fill(running.ended_R[:, None], special.pad)
    scores_RK = (running.totals_R[:, None] + added_RK) / (running.lengths_R[:, None] + 1) ** length_penalty
    resting_R = torch.full_like(running.totals_R, math.inf) if retire else running.scores_R(length_penalty)
    scores_RK = scores_RK.masked_fill(running.ended_R[:, None], -math.inf)
    scores_RK[:, 0] = torch.where(running.ended_R, resting_R, scores_RK[:, 0])
    best_BK = scores_RK.view(R // beams, -1).topk(beams).indices
    first_row_B1 = torch.arange(0, R, beams, device=best_BK.device)[:, None]
    rows_R = (first_row_B1 + best_BK // tokens_RK.shape[1]).flatten()
    places_R = (best_BK % tokens_RK.shape[1]).flatten()
    return rows_R, tokens_RK[rows_R, places_R], added_RK[rows_R, places_R]


def _settled(running: _Hypotheses, beams: int, max_length: int, options: BeamOptions) -> bool:
    """True when every picture has `n_best` ended hypotheses that no unfinished one can overtake.

    Log-probabilities only fall, and a positive penalty raises the score most at the greatest length.
    """
    length_penalty = options.length_penalty
    reach_R = running.totals_R / max_length**length_penalty
    reach_BK = reach_R.masked_fill(running.ended_R, -math.inf).view(-1, beams)
    ended_BK = running.scores_R(length_penalty).masked_fill(~running.ended_R, -math.inf).view(-1, beams)
    worst_kept_B = ended_BK.topk(options.n_best).values[:, -1]
    return bool((worst_kept_B >= reach_BK.amax(dim=1)).all())


def _best(running: _Hypotheses, beams: int, special: SpecialIds, options: BeamOptions) -> Decodings:
    """Orders the hypotheses by score; where ended ones retire, they come before unfinished ones."""
    scores_BK = running.scores_R(options.length_penalty).view(-1, beams)
    order_BK = scores_BK.argsort(dim=1, descending=True, stable=True)
    if options.finished == "retire":
        ended_BK = running.ended_R.view(-1, beams).gather(1, order_BK)
        order_BK = order_BK.gather(1, (~ended_BK).to(torch.uint8).argsort(dim=1, stable=True))
    first_row_B1 = torch.arange(0, len(running.ended_R), beams, device=order_BK.device)[:, None]
    running = select_rows(running, (first_row_B1 + order_BK[:, : options.n_best]).flatten())
    nothing_R = running.totals_R == -math.inf
    running = running._replace(
        tokens_RT=running.tokens_RT.masked_fill(nothing_R[:, None], special.pad),
        token_log_probabilities_RT=running.token_log_probabilities_RT.masked_fill(nothing_R[:, None], 0),
        lengths_R=running.lengths_R.masked_fill(nothing_R, 0),
        ended_R=running.ended_R & ~nothing_R,
    )
    return _decodings(running, options.n_best)


def _decodings(running: _Hypotheses, per_image: int) -> Decodings:
    longest = int(running.lengths_R.max()) if running.lengths_R.numel() else 0
    return Decodings(
        running.tokens_RT[:, :longest].unflatten(0, (-1, per_image)),
        running.lengths_R.view(-1, per_image),
        running.totals_R.view(-1, per_image),
        running.token_log_probabilities_RT[:, :longest].unflatten(0, (-1, per_image)),
        running.ended_R.view(-1, per_image),
    )


def _first_tensor(memory: Any) -> Tensor:
    for part in memory:
        if isinstance(part, Tensor):
            return part
        if isinstance(part, tuple) and part:
            return _first_tensor(part)
    raise ConfigError(
        f"a captioner's memory must hold tensors with one row per picture; {type(memory).__name__} holds none"
    )


def _images(memory: NamedTuple) -> int:
    return len(_first_tensor(memory))


def _device(memory: NamedTuple) -> torch.device:
    return _first_tensor(memory).device
