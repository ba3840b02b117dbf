"""When a caption is marked unsure, and which words it must then say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchword
from patchword.tasks.caption.calibrate import UNSURE_SHARE, fit_doubt
from patchword.tasks.caption.doubt import (
    is_far,
    is_unsure,
    least_probability,
    signs,
    trust,
)
from patchword.tasks.caption.options import ConceptSettings, DoubtSettings
from patchword.tasks.caption.result import Caption, Concept, PictureConcepts

DOUBT = DoubtSettings(
    bias=3.0, distance=-1.0, log_probability=2.0, unsaid=-1.0, limit=0.5, far=1.5, likely=0.2
)
CONCEPTS = ConceptSettings(slope=1.0, intercept=0.0, doubt=DOUBT)


def told(log_probability=-3.0, text="a dog runs"):
    return Caption(text, log_probability, tuple(text.split()))


def test_the_signs_are_distance_mean_log_probability_and_the_likeliest_unsaid_concept():
    seen = PictureConcepts((Concept("dog", 0.9), Concept("ball", 0.4), Concept("cat", 0.1)), 0.7)
    assert signs(told(-2.0), seen) == (0.7, -0.5, 0.4)
    assert signs(told(), PictureConcepts((), 0.7))[2] == 0


def test_trust_is_the_logistic_function_of_the_signs_by_hand():
    seen = PictureConcepts((Concept("ball", 0.4),), 0.7)
    assert trust(told(-2.0), seen, DOUBT) == pytest.approx(1 / (1 + math.exp(-(3 - 0.7 - 1.0 - 0.4))))


@pytest.mark.parametrize(
    ("distance", "log_probability", "unsure", "far", "least"),
    [
        (0.5, -2.0, False, False, 0.6),  # like the training pictures, and a likely caption
        (0.5, -9.0, True, False, 0.6),  # like them, and a caption that the captioner itself doubts
        (1.2, -2.0, False, False, 0.2),  # unlike most of them: the eyes are believed sooner
        (1.6, -2.0, True, True, 0.2),  # unlike all of them
    ],
)
def test_what_is_made_of_distance_and_log_probability(distance, log_probability, unsure, far, least):
    seen = PictureConcepts((), distance)
    caption = told(log_probability)
    assert is_unsure(caption, seen, DOUBT) is unsure
    assert is_far(seen, DOUBT) is far
    assert least_probability(seen, CONCEPTS) == least


def test_without_a_fit_the_distance_alone_decides():
    settings = ConceptSettings(slope=1.0, intercept=0.0)
    for distance, strange in ((0.9, False), (1.1, True)):
        seen = PictureConcepts((), distance)
        assert is_unsure(told(-90.0), seen, None) is strange and is_far(seen, None) is strange
        assert least_probability(seen, settings) == settings.confident


def test_the_fit_finds_what_agreement_hangs_on_and_marks_the_given_share():
    generator = torch.Generator().manual_seed(0)
    levels = (-6 * torch.rand(400, generator=generator)).tolist()
    seen = [PictureConcepts((), one) for one in torch.rand(400, generator=generator).tolist()]
    captions = [told(level) for level in levels]
    agree = [level > -3 for level in levels]
    doubt = fit_doubt(captions, seen, agree)
    assert (
        doubt.log_probability > 5 and abs(doubt.distance) < 0.5 and doubt.unsaid == pytest.approx(0, abs=1e-6)
    )
    marked = [is_unsure(*pair, doubt) for pair in zip(captions, seen, strict=True)]
    assert sum(marked) == pytest.approx(400 * UNSURE_SHARE, abs=1)
    assert doubt.far == 1.0, "no held-out picture is beyond the limit"
    assert not any(said for said, right in zip(marked, agree, strict=True) if right), "the worst are marked"


@pytest.mark.parametrize("agree", [True, False])
def test_captions_that_are_all_alike_teach_nothing(agree):
    assert fit_doubt([told()] * 4, [PictureConcepts((), 0.5)] * 4, [agree] * 4) is None


@given(st.floats(-1e6, 0), st.floats(0, 1e6), st.floats(0, 1))
def test_trust_is_a_probability_for_any_picture(log_probability, distance, unsaid):
    seen = PictureConcepts((Concept("ball", unsaid),), distance)
    assert 0 <= trust(told(log_probability), seen, DOUBT) <= 1


def test_a_caption_that_is_streamed_ends_with_what_a_whole_one_says():
    """Words come as they are found; the doubt, the guess and the concepts are the same in the end."""
    from skimage import data

    model = patchword.load("flickr8k", "cpu")
    guesses = 0
    for picture in (data.page(), data.coins(), data.chelsea()):
        whole = model.caption(picture, beams=1, trace=False)
        words, said = model.stream(picture), []
        while True:
            try:
                said.append(next(words))
            except StopIteration as ended:
                caption = ended.value
                break
        assert said and (caption.text, caption.unsure) == (whole.text, whole.unsure)
        guesses += tuple(said) != caption.tokens
    assert guesses  # of one of them at least the caption is no longer what was streamed
