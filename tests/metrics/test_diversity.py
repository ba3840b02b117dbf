import pytest

from patchword.errors import DataError
from patchword.metrics.diversity import diversity

CAPTIONS = {"1": "a dog on a dog on a".split(), "2": "a cat".split(), "3": "a a cat".split(), "4": []}


def test_hand_counted_values() -> None:
    scores = diversity(CAPTIONS, training=[["a", "cat"], ["a", "dog"]])
    assert scores["distinct_1"].value == pytest.approx(4 / 12)
    assert scores["distinct_2"].value == pytest.approx(5 / 9)
    assert scores["vocabulary"].value == 4
    assert scores["length"].value == pytest.approx(3)
    assert scores["repetition"].per_item == {"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.0}
    assert scores["dangling"].per_item == {"1": 1.0, "2": 0.0, "3": 0.0, "4": 0.0}
    assert scores["unseen"].value == pytest.approx(3 / 4)


def test_without_training_captions_nothing_is_said_about_them() -> None:
    assert "unseen" not in diversity(CAPTIONS)


def test_no_captions_is_an_error() -> None:
    with pytest.raises(DataError, match="no caption whose variety"):
        diversity({})
