"""Constrained beam search against brute force on a tiny vocabulary."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode import SPECIAL, WORDS, Memory, Table, all_captions, caption, log_probability

from patchword.constrained import constrained_beam_search, constraints_met
from patchword.decode import BeamOptions
from patchword.errors import ConfigError

LONGEST = 4
WIDE = 200


def search(memory, constraints, beams=WIDE, length=LONGEST):
    return constrained_beam_search(Table(), memory, SPECIAL, constraints, beams, length)


def best_by_brute_force(memory, constraints):
    everything = 2 ** len(constraints) - 1
    ended = [tokens for tokens in all_captions(LONGEST) if tokens[-1] == SPECIAL.end]
    meeting = [tokens for tokens in ended if constraints_met(tokens, constraints) == everything]
    return max(meeting, key=lambda tokens: log_probability(memory, 0, tokens))


@given(
    seed=st.integers(0, 10_000),
    constraints=st.lists(
        st.lists(
            st.lists(st.sampled_from(list(WORDS)), min_size=1, max_size=2).map(tuple), min_size=1, max_size=2
        ).map(tuple),
        min_size=1,
        max_size=2,
    ),
)
@settings(max_examples=25, deadline=None)
def test_a_wide_search_is_brute_force(seed, constraints):
    memory = Table().encode(seed, pictures=1)
    try:
        expected = best_by_brute_force(memory, constraints)
    except ValueError:  # no caption of this length meets all of them, so what is found does not either
        met = constraints_met(caption(search(memory, constraints)), constraints)
        assert met != 2 ** len(constraints) - 1 or not search(memory, constraints).finished_BK.item()
        return
    found = search(memory, constraints)
    assert caption(found) == expected
    assert found.finished_BK.item()
    assert found.log_probabilities_BK.item() == pytest.approx(log_probability(memory, 0, expected), abs=1e-4)


@pytest.mark.parametrize("word", WORDS)
def test_an_unlikely_word_is_said_by_a_narrow_search(word):
    memory = Table().encode(3, pictures=1, end_bias=2.0)
    memory = Memory(memory.tables_BLVV.clone())
    memory.tables_BLVV[..., word] -= 20
    assert word in caption(search(memory, [((word,),)], beams=1, length=6))


def test_a_phrase_of_two_tokens_is_said_in_order():
    memory = Table().encode(5, pictures=1)
    first, second = list(WORDS)[:2]
    tokens = caption(search(memory, [((first, second),)], beams=2, length=6))
    assert (first, second) in list(zip(tokens, tokens[1:], strict=False))


@pytest.mark.parametrize("least", [2, 3])
def test_no_caption_is_shorter_than_it_may_be_and_it_is_the_best_of_those(least):
    constraints = [((WORDS[0],),)]
    longer = 0
    for seed in range(8):
        memory = Table().encode(seed, pictures=1, end_bias=3.0)
        long_enough = [
            tokens
            for tokens in all_captions(LONGEST)
            if tokens[-1] == SPECIAL.end and len(tokens) > least and WORDS[0] in tokens
        ]
        found = constrained_beam_search(
            Table(), memory, SPECIAL, constraints, WIDE, LONGEST, BeamOptions(min_length=least)
        )
        assert caption(found) == max(long_enough, key=lambda tokens: log_probability(memory, 0, tokens))
        longer += len(caption(search(memory, constraints))) < len(caption(found))
    assert longer, "without it the end comes sooner"


def test_what_cannot_be_said_in_time_is_said_as_far_as_possible():
    memory = Table().encode(7, pictures=1)
    three = [((word,),) for word in WORDS]
    found = search(memory, three, beams=3, length=2)
    assert constraints_met(caption(found), three).bit_count() == 2
    assert not found.finished_BK.item()


def test_no_sequence_is_said_twice():
    memory = Table().encode(11, pictures=1, places=9)
    found = constrained_beam_search(Table(), memory, SPECIAL, [((4,),)], 3, 9, BeamOptions(no_repeat_ngram=1))
    words = [token for token in caption(found) if token != SPECIAL.end]
    assert len(set(words)) == len(words)


def test_no_word_follows_itself():
    memory = Table().encode(11, pictures=1, places=9)
    memory.tables_BLVV[:, :, range(7), range(7)] += 4.0
    doubled = [
        any(one == other != SPECIAL.end for one, other in itertools.pairwise(caption(found)))
        for found in (
            constrained_beam_search(
                Table(), memory, SPECIAL, [((4,),)], 3, 9, BeamOptions(no_stutter=no_stutter)
            )
            for no_stutter in (False, True)
        )
    ]
    assert doubled == [True, False]


@pytest.mark.parametrize("constraints", [[], [()], [((),)], [((4,),)] * 5])
def test_constraints_out_of_range_are_refused(constraints):
    with pytest.raises(ConfigError, match="takes 1 to 4 constraints"):
        search(Table().encode(0, pictures=1), constraints)
