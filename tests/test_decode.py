import itertools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from patchword.decode import (
    BeamOptions,
    SamplingOptions,
    beam_search,
    explain_tokens,
    greedy,
    greedy_steps,
    repeat_images,
    sample,
)
from patchword.errors import ConfigError
from patchword.types import Decoded, SpecialIds

SPECIAL = SpecialIds(pad=0, start=1, end=2, unknown=3)
V = 7
WORDS = range(4, V)


class Memory(NamedTuple):
    tables_BLVV: Tensor


class State(NamedTuple):
    places_R: Tensor
    last_RV: Tensor


class Table:
    """A captioner whose next word depends on place, last word and the one before, from random tables: one per
    picture.
    """

    vocabulary_size = V

    def encode(self, seed: int, pictures: int = 2, places: int = 6, end_bias: float = 0.0) -> Memory:
        tables = torch.randn(pictures, places, V, V, generator=torch.Generator().manual_seed(seed)) * 2
        tables[..., SPECIAL.end] += end_bias
        return Memory(tables)

    def start(self, memory: Memory, beams: int) -> State:
        R = len(memory.tables_BLVV) * beams
        return State(torch.zeros(R, dtype=torch.long), torch.zeros(R, V))

    def step(self, tokens_R, memory, state, trace=False):
        pictures_R = torch.arange(len(tokens_R)) // (len(tokens_R) // len(memory.tables_BLVV))
        rows_RV = memory.tables_BLVV[pictures_R, state.places_R, tokens_R]
        return rows_RV + 0.5 * state.last_RV.roll(1, dims=1), State(state.places_R + 1, rows_RV), None

    def decode(self, tokens_BT, lengths_B, memory, trace=False):
        state, logits = self.start(memory, 1), []
        for tokens_B in tokens_BT.unbind(1):
            step, state, _ = self.step(tokens_B, memory, state)
            logits.append(step)
        return Decoded(torch.stack(logits, 1))


def log_probability(memory: Memory, picture: int, tokens: tuple[int, ...]) -> float:
    one = Memory(memory.tables_BLVV[picture : picture + 1])
    inputs_1T = torch.tensor([[SPECIAL.start, *tokens[:-1]]])
    scores_TV = Table().decode(inputs_1T, torch.tensor([len(tokens)]), one).logits_BTV[0].log_softmax(1)
    return sum(scores_TV[place, token].item() for place, token in enumerate(tokens))


def all_captions(longest: int) -> list[tuple[int, ...]]:
    """Every caption that ends within `longest` tokens, and every one cut there."""
    ended = [
        (*words, SPECIAL.end) for count in range(longest) for words in itertools.product(WORDS, repeat=count)
    ]
    return ended + list(itertools.product(WORDS, repeat=longest))


def caption(found, picture=0, rank=0) -> tuple[int, ...]:
    return tuple(found.tokens_BKT[picture, rank, : found.lengths_BK[picture, rank]].tolist())


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_equals_brute_force(seed, length_penalty):
    memory = Table().encode(seed)
    found = beam_search(
        Table(),
        memory,
        SPECIAL,
        beams=40,
        max_length=3,
        options=BeamOptions(n_best=5, length_penalty=length_penalty),
    )
    for picture in range(2):
        score = {
            tokens: log_probability(memory, picture, tokens) / len(tokens) ** length_penalty
            for tokens in all_captions(3)
        }
        best = sorted(score, key=score.get, reverse=True)[:5]
        assert [caption(found, picture, rank) for rank in range(5)] == best
        for rank, tokens in enumerate(best):
            assert found.log_probabilities_BK[picture, rank].item() == pytest.approx(
                log_probability(memory, picture, tokens), abs=1e-4
            )
            assert found.finished_BK[picture, rank].item() == (tokens[-1] == SPECIAL.end)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_whose_finished_retire_equals_brute_force_among_those_that_end(seed):
    memory = Table().encode(seed)
    found = beam_search(
        Table(), memory, SPECIAL, beams=40, max_length=3, options=BeamOptions(finished="retire")
    )
    for picture in range(2):
        ended = [tokens for tokens in all_captions(3) if tokens[-1] == SPECIAL.end]
        assert caption(found, picture) == max(
            ended, key=lambda tokens: log_probability(memory, picture, tokens)
        )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    finished=st.sampled_from(["keep", "retire"]),
    ngram=st.integers(0, 2),
    unknown=st.booleans(),
)
def test_a_beam_of_one_is_greedy(seed, finished, ngram, unknown):
    memory = Table().encode(seed, pictures=3)
    one = greedy(Table(), memory, SPECIAL, 6, no_repeat_ngram=ngram, forbid_unknown=unknown)
    beam = beam_search(
        Table(),
        memory,
        SPECIAL,
        1,
        6,
        BeamOptions(finished=finished, no_repeat_ngram=ngram, forbid_unknown=unknown),
    )
    for found, expected in zip(beam, one, strict=True):
        assert_close(found, expected)


def test_greedy_step_by_step_grows_to_greedy():
    memory = Table().encode(5, pictures=1, end_bias=-2.0)
    steps = list(greedy_steps(Table(), memory, SPECIAL, 6, no_repeat_ngram=2))
    whole = greedy(Table(), memory, SPECIAL, 6, no_repeat_ngram=2)
    for found, expected in zip(steps[-1], whole, strict=True):
        assert_close(found, expected)
    for length, step in enumerate(steps):
        assert step.tokens_BKT[0, 0].tolist() == whole.tokens_BKT[0, 0, :length].tolist()
    assert len(steps) > 3, "the caption is long enough to show something"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), finished=st.sampled_from(["keep", "retire"]), beams=st.integers(2, 4))
def test_pictures_of_a_batch_do_not_touch_each_other(seed, finished, beams):
    memory = Table().encode(seed, pictures=3)
    together = beam_search(Table(), memory, SPECIAL, beams, 6, BeamOptions(n_best=2, finished=finished))
    for picture in range(3):
        alone = beam_search(
            Table(),
            Memory(memory.tables_BLVV[picture : picture + 1]),
            SPECIAL,
            beams,
            6,
            BeamOptions(n_best=2, finished=finished),
        )
        assert [caption(alone, 0, rank) for rank in range(2)] == [
            caption(together, picture, rank) for rank in range(2)
        ]
        assert_close(alone.log_probabilities_BK[0], together.log_probabilities_BK[picture])


def literal_retiring_search(memory: Memory, beams: int, longest: int) -> list[tuple[float, tuple[int, ...]]]:
    """The course's rule for one picture: what ends is set aside and the beam narrows by one, until none is
    left.
    """
    alive, done = [((), 0.0)], []
    for _ in range(longest):
        longer = [
            ((*tokens, word), log_probability(memory, 0, (*tokens, word)))
            for tokens, _ in alive
            for word in range(V)
        ]
        longer = sorted((item for item in longer if item[0][-1] not in (0, 1, 3)), key=lambda item: -item[1])[
            :beams
        ]
        done += [item for item in longer if item[0][-1] == SPECIAL.end]
        alive = [item for item in longer if item[0][-1] != SPECIAL.end]
        beams = len(alive)
        if not alive:
            break
    return sorted(done, key=lambda item: -item[1])


@pytest.mark.parametrize("seed", range(8))
def test_retiring_beams_narrow_the_search(seed):
    memory = Table().encode(seed, pictures=1, end_bias=1.5)
    expected = literal_retiring_search(memory, beams=3, longest=6)
    found = beam_search(Table(), memory, SPECIAL, 3, 6, BeamOptions(n_best=3, finished="retire"))
    count = int(found.finished_BK.sum())
    assert count == len(expected) > 0
    for rank in range(count):
        assert caption(found, 0, rank) == expected[rank][0]
        assert found.log_probabilities_BK[0, rank].item() == pytest.approx(expected[rank][1], abs=1e-4)


def test_keeping_and_retiring_differ_where_a_finished_hypothesis_is_pushed_out():
    differ = 0
    for seed in range(20):
        memory = Table().encode(seed, pictures=1, end_bias=1.0)
        kept = beam_search(Table(), memory, SPECIAL, 2, 6, BeamOptions(n_best=2, finished="keep"))
        retired = beam_search(Table(), memory, SPECIAL, 2, 6, BeamOptions(n_best=2, finished="retire"))
        differ += caption(kept, 0, 1) != caption(retired, 0, 1)
    assert 0 < differ < 20


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), beams=st.integers(1, 3), ngram=st.integers(1, 3))
def test_no_ngram_comes_twice(seed, beams, ngram):
    memory = Table().encode(seed, end_bias=-50.0 if ngram > 1 else 0.0)
    found = beam_search(Table(), memory, SPECIAL, beams, 6, BeamOptions(n_best=beams, no_repeat_ngram=ngram))
    for picture, rank in itertools.product(range(2), range(beams)):
        tokens = caption(found, picture, rank)
        grams = [tokens[first : first + ngram] for first in range(len(tokens) - ngram + 1)]
        assert len(grams) == len(set(grams))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), beams=st.integers(1, 3))
def test_no_token_follows_itself(seed, beams):
    memory = Table().encode(seed, end_bias=-2.0)
    memory.tables_BLVV[:, :, range(V), range(V)] += 4.0  # left alone, it stutters
    options = BeamOptions(n_best=beams, no_stutter=True)
    found = beam_search(Table(), memory, SPECIAL, beams, 6, options)
    for picture, rank in itertools.product(range(2), range(beams)):
        tokens = caption(found, picture, rank)
        assert all(one != other for one, other in itertools.pairwise(tokens))
    *_, last = greedy_steps(Table(), memory, SPECIAL, 6, no_stutter=True)
    one = beam_search(Table(), memory, SPECIAL, 1, 6, BeamOptions(no_stutter=True))
    assert caption(last) == caption(one)


def test_a_repeat_is_avoided_only_where_it_is_forbidden():
    memory = Memory(torch.zeros(1, 6, V, V))
    memory.tables_BLVV[..., 4] = 5.0
    assert caption(greedy(Table(), memory, SPECIAL, 4)) == (4, 4, 4, 4)
    found = caption(greedy(Table(), memory, SPECIAL, 4, no_repeat_ngram=2))
    assert found[:2] == (4, 4) and found[2] != 4


def test_what_is_no_word_appears_only_where_it_is_allowed():
    memory = Memory(torch.zeros(1, 6, V, V))
    memory.tables_BLVV[..., SPECIAL.unknown] = 9.0
    assert SPECIAL.unknown not in caption(beam_search(Table(), memory, SPECIAL, 2, 3))
    assert caption(beam_search(Table(), memory, SPECIAL, 2, 3, BeamOptions(forbid_unknown=False))) == (
        3,
        3,
        3,
    )
    assert caption(greedy(Table(), memory, SPECIAL, 3, forbid_unknown=False)) == (3, 3, 3)


def test_more_beams_than_captions():
    found = beam_search(
        Table(), Table().encode(0), SPECIAL, beams=9, max_length=1, options=BeamOptions(n_best=9)
    )
    assert found.lengths_BK.tolist() == [[1] * 4 + [0] * 5] * 2
    assert (found.log_probabilities_BK[:, 4:] == -math.inf).all()
    assert (found.tokens_BKT[:, 4:] == SPECIAL.pad).all() and not found.finished_BK[:, 4:].any()


def test_token_log_probabilities_add_up_and_stop_at_the_end():
    memory = Table().encode(3, end_bias=1.0)
    for found in (
        greedy(Table(), memory, SPECIAL, 6),
        beam_search(Table(), memory, SPECIAL, 3, 6, BeamOptions(n_best=3)),
    ):
        assert_close(found.token_log_probabilities_BKT.sum(2), found.log_probabilities_BK)
        beyond_BKT = torch.arange(found.tokens_BKT.shape[2]) >= found.lengths_BK[..., None]
        assert (found.tokens_BKT[beyond_BKT] == SPECIAL.pad).all()
        assert (found.token_log_probabilities_BKT[beyond_BKT] == 0).all()


def test_samples_follow_the_distribution():
    memory = Table().encode(5, pictures=1)
    found = sample(
        Table(),
        memory,
        SPECIAL,
        4000,
        1,
        SamplingOptions(forbid_unknown=False),
        generator=torch.Generator().manual_seed(0),
    )
    shares = torch.bincount(found.tokens_BKT.flatten(), minlength=V) / 4000
    assert_close(shares, memory.tables_BLVV[0, 0, SPECIAL.start].softmax(0), atol=0.03, rtol=0)
    assert_close(
        found.log_probabilities_BK.exp(),
        memory.tables_BLVV[0, 0, SPECIAL.start].softmax(0)[found.tokens_BKT[..., 0]],
    )


def test_sampling_is_repeatable_and_samples_differ():
    memory = Table().encode(5)
    first, again = (
        sample(Table(), memory, SPECIAL, 8, 6, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first.tokens_BKT, again.tokens_BKT)
    assert len({caption(first, 0, rank) for rank in range(8)}) > 1


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_sampling_is_greedy(settings):
    memory = Table().encode(6)
    assert torch.equal(
        sample(Table(), memory, SPECIAL, 1, 6, SamplingOptions(**settings)).tokens_BKT,
        greedy(Table(), memory, SPECIAL, 6).tokens_BKT,
    )


@pytest.mark.parametrize(
    ("settings", "allowed"), [({"top_k": 2}, {4, 5}), ({"top_p": 0.75}, {4, 5}), ({"top_p": 0.35}, {4})]
)
def test_the_tail_is_never_drawn(settings, allowed):
    memory = Memory(torch.full((1, 6, V, V), -99.0))
    memory.tables_BLVV[..., 4:7] = torch.tensor([0.4, 0.35, 0.25]).log()
    found = sample(
        Table(),
        memory,
        SPECIAL,
        200,
        1,
        SamplingOptions(**settings),
        generator=torch.Generator().manual_seed(0),
    )
    assert set(found.tokens_BKT.flatten().tolist()) == allowed


def test_several_captions_of_a_picture_are_explained_through_a_repeated_memory():
    memory = Table().encode(0)
    assert torch.equal(repeat_images(memory, 2).tables_BLVV, memory.tables_BLVV[[0, 0, 1, 1]])
    assert (
        explain_tokens(
            Table(), memory, SPECIAL, torch.tensor([[4, 2], [5, 2]]), torch.tensor([2, 2])
        ).attention_BTN
        is None
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda memory: beam_search(Table(), memory, SPECIAL, 2, 3, BeamOptions(n_best=3)),
            "a beam search of 2 beams cannot return 3 hypotheses",
        ),
        (
            lambda memory: beam_search(Table(), memory, SPECIAL, 2, 3, BeamOptions(length_penalty=-1)),
            "the length penalty is -1; it must be 0",
        ),
        (
            lambda memory: sample(Table(), memory, SPECIAL, 2, 3, SamplingOptions(temperature=0)),
            r"needs temperature > 0, .* found 0, 0 and 1.0",
        ),
        (lambda memory: sample(Table(), memory, SPECIAL, 2, 3, SamplingOptions(top_p=0)), "0 < top_p <= 1"),
    ],
)
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(Table().encode(0))
