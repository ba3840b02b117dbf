"""What is said of concepts: which words a text names, hosts for unknown words, calibration, guesses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.errors import DataError
from patchword.tasks.caption.concepts import (
    calibrated,
    concepts_of,
    fit_calibration,
    likeliest,
    word_probabilities,
)
from patchword.tasks.caption.doubt import forms, guess, names, phrase_of, said, sayable
from patchword.tasks.caption.options import ConceptSettings, DoubtSettings
from patchword.tasks.caption.result import Concept
from patchword.text.imagenet import common_words, imagenet_classes
from patchword.text.words import Vocabulary

VOCABULARY = Vocabulary.build(["a dog drinks a coffee", "two dogs on a hot beach"], minimum_count=1)
SETTINGS = ConceptSettings(slope=1.0, intercept=0.0, hosts={"espresso": "coffee", "owl": "dog"})


@pytest.mark.parametrize(
    ("word", "plural"),
    [("dog", "dogs"), ("bus", "buses"), ("bench", "benches"), ("puppy", "puppies"), ("toy", "toys")],
)
def test_plurals_are_spelt_as_in_english(word, plural):
    assert forms(word) == (word, plural)


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("Two dogs run.", "dog", True),
        ("A man is skiing", "skii", True),
        ("a man on skis", "ski", True),
        ("a doghouse", "dog", False),
        ("a hot dog stand", "hot dog", True),
        ("a dog is hot", "hot dog", False),
        ("a bicyclist", "bicycle", True),
        ("", "dog", False),
    ],
)
def test_a_text_names_a_word_its_plural_and_what_begins_with_it(text, word, expected):
    assert names(text, word) is expected


def test_probabilities_of_a_word_are_summed_over_its_classes():
    logits_BK = torch.full((1, 1000), -1000.0)
    dogs = common_words()["dog"]
    logits_BK[0, list(dogs[:2])] = 0.0
    shares_BW = word_probabilities(logits_BK)
    assert shares_BW[0, list(common_words()).index("dog")].item() == pytest.approx(1.0)
    assert shares_BW.sum().item() == pytest.approx(1.0)
    assert {imagenet_classes()[number].word for number in dogs} == {"dog"}


@given(slope=st.floats(0.5, 2), intercept=st.floats(-1, 1))
@settings(max_examples=10, deadline=None)
def test_calibration_finds_how_the_answers_were_made(slope, intercept):
    """Words are named by chance with a known dependence on the classifier's probability, which the fit
    recovers.
    """
    generator = torch.Generator().manual_seed(0)
    shares_BW = torch.rand(4000, 3, generator=generator).clamp(0.05, 0.95)
    chances_BW = calibrated(shares_BW, slope, intercept, torch.zeros(3))
    named_BW = torch.rand(4000, 3, generator=generator) < chances_BW
    found_slope, found_intercept, offsets_W = fit_calibration(shares_BW, named_BW)
    fitted_BW = calibrated(shares_BW, found_slope, found_intercept, offsets_W)
    assert (fitted_BW - chances_BW).abs().max().item() < 0.06


def test_the_offset_of_a_rare_word_stays_near_zero():
    shares_BW = torch.full((400, 2), 0.5)
    named_BW = torch.zeros(400, 2, dtype=torch.bool)
    named_BW[:200, 0] = True
    shares_BW[2:, 1] = 0.0  # two pictures alone show the second word, and no caption names it
    *_, offsets_W = fit_calibration(shares_BW, named_BW)
    assert abs(offsets_W[1]) < 2


def test_the_silence_of_captions_counts_only_where_words_are_not_open():
    """A word that is seen in every picture and never named: mistrusted, or trusted as the other one is."""
    torch.manual_seed(0)
    shares_BW = torch.full((400, 2), 0.5)
    named_BW = torch.zeros(400, 2, dtype=torch.bool)
    named_BW[:, 0] = torch.rand(400) < 0.5
    chances = {
        only: calibrated(shares_BW[:1], *fit_calibration(shares_BW, named_BW, only_named=only))[0]
        for only in (False, True)
    }
    assert chances[False][1] < 0.25 < 0.4 < chances[False][0]
    assert chances[True][1] == pytest.approx(chances[True][0].item(), abs=0.05) and chances[True][1] > 0.4


def test_without_a_likely_word_there_is_nothing_to_calibrate():
    with pytest.raises(DataError, match="none of the 2 pictures"):
        fit_calibration(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def test_listed_concepts_are_the_likeliest_and_probable():
    logits_BK = torch.zeros(1, 1000)
    logits_BK[0, common_words()["tripod"][0]] = 9.0
    (found,) = concepts_of(logits_BK, SETTINGS)
    share = math.exp(9) / (math.exp(9) + 999)
    assert [one.word for one in found] == ["tripod"]
    assert found[0].probability == pytest.approx(share, abs=1e-4)


def test_a_word_of_the_vocabulary_is_said_itself_in_either_number():
    phrase = phrase_of("Dog", VOCABULARY, {})
    spelt = {tuple(VOCABULARY.tokens(list(tokens))) for tokens in phrase.alternatives}
    assert phrase.host is None and spelt == {("dog",), ("dogs",)}


def test_a_word_beyond_the_vocabulary_takes_its_hosts_place_and_article():
    phrase = phrase_of("espresso", VOCABULARY, SETTINGS.hosts)
    assert phrase.host == "coffee"
    assert said(("a", "dog", "drinks", "a", "coffee"), [phrase]) == ("a", "dog", "drinks", "an", "espresso")
    assert said(("a", "dog"), [phrase]) == ("a", "dog")


def test_a_word_that_cannot_be_said_is_refused_by_name():
    assert not sayable("zebra", VOCABULARY, SETTINGS.hosts) and sayable("owl", VOCABULARY, SETTINGS.hosts)
    with pytest.raises(DataError, match="--mention 'zebra'.*never learnt"):
        phrase_of("zebra", VOCABULARY, SETTINGS.hosts)


@pytest.mark.parametrize(
    ("concepts", "expected"),
    [
        ((), "no caption: this is unlike all training pictures"),
        ((Concept("owl", 0.3),), "perhaps an owl"),
        (
            (Concept("owl", 0.3), Concept("tripod", 0.2), Concept("cup", 0.1)),
            "perhaps an owl or a tripod",
        ),
        ((Concept("owl", 0.9), Concept("tripod", 0.2)), "perhaps an owl"),
    ],
)
def test_a_guess_names_no_more_than_the_concepts(concepts, expected):
    assert guess(concepts, SETTINGS) == expected


def test_with_limits_of_doubt_several_concepts_are_a_sentence():
    doubt = DoubtSettings(bias=0, distance=0, log_probability=0, unsaid=0, limit=0.5)
    with_doubt = SETTINGS.model_copy(update={"doubt": doubt})
    assert guess((Concept("owl", 0.3), Concept("cup", 0.2)), with_doubt) == "this may be an owl or a cup"
    assert guess((Concept("owl", 0.9), Concept("cup", 0.2)), with_doubt) == "perhaps an owl"


def test_a_word_no_likelier_than_in_any_picture_is_not_listed():
    shares_BW = torch.full((1, len(common_words())), 1e-4)
    shares_BW[0, list(common_words()).index("dog")] = 0.2
    for prior, listed in ((0.1, ["dog"]), (0.25, [])):
        settings = SETTINGS.model_copy(update={"priors": {"dog": prior}})
        assert [one.word for one in likeliest(shares_BW, settings)[0]] == listed
