"""The form in which VQA's evaluation compares answers, against what its public code gives."""

import pytest

from patchword.text.answers import vqa_answer

PUBLIC = [
    (".5", ".5"),
    ("3.5 ft.", "3.5 ft"),
    ("5.", "5"),
    ("...", ""),
    ("U.S.A.", "usa"),
    ("10:30 a.m.", "10:30 am"),
    ("t-shirt", "t shirt"),
    ("t-shirt - red", "tshirt red"),
    ("x-ray , 1,000", "xray 1000"),
    ("$1,000.50", "$1000.50"),
    ("1,2 or - 3", "12 or 3"),
    ("red, white and blue", "red white and blue"),
    ("red,white", "red white"),
    ("a/b", "b"),
    ("(left)", "left"),
    ("black & white", "black & white"),
    ("What's up?", "what's up"),
    ("girl's", "girl's"),
    ("girls'", "girls'"),
    ("yes!", "yes"),
    ("Two dogs", "2 dogs"),
    ("none", "0"),
    ("eleven", "eleven"),
    ("one-two", "1 2"),
    ("the", ""),
    ("An apple on a table", "apple on table"),
    ("dont know", "don't know"),
    ("lets go", "lets go"),
    ("shes here", "shes here"),
    ("hes", "he's"),
    ("id've", "id've"),
    ("couldntve", "couldntve"),
    ("couldn'tve", "couldn't've"),
    ("yall'd've", "y'all'd've"),
    ("ow's'at", "'ow's'at"),
    ("somebody'd", "somebodyd"),
    ("twas", "'twas"),
    ("new\nline\tand tab", "new line and tab"),
    ("  red  ", "red"),
    ("", ""),
]
"""What processPunctuation and processDigitArticle of GT-Vision-Lab/VQA (c4e6a0e) give for each."""


@pytest.mark.parametrize(("said", "compared"), PUBLIC)
def test_an_answer_is_compared_as_the_public_code_compares_it(said, compared):
    assert vqa_answer(said) == compared


@pytest.mark.parametrize(("said", "compared"), PUBLIC)
def test_a_compared_form_stays_as_it_is(said, compared):
    assert vqa_answer(compared) == compared


def test_the_public_code_takes_no_more_than_32_full_stops_out():
    assert vqa_answer("x. " * 40).count(".") == 40 - 32
