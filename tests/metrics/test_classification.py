import numpy as np
import pytest

from patchword.errors import DataError
from patchword.metrics.classification import (
    class_table,
    classification,
    confusion_matrix,
    several_labels,
    several_table,
)

TRUTH = ["cat", "cat", "cat", "dog", "dog", "owl"]
GUESS = ["cat", "cat", "dog", "dog", "owl", "dog"]


def test_hand_worked_numbers():
    found = classification(TRUTH, GUESS, ["cat", "dog", "owl", "yak"])
    assert found["accuracy"].value == found["micro_F1"].value == 0.5
    assert found["macro_F1"].per_item == pytest.approx(
        {"cat": 0.8, "dog": 0.4, "owl": 0.0}
    )  # yak occurs nowhere
    assert found["macro_F1"].value == pytest.approx(0.4)


def test_matrix_and_table():
    counts = confusion_matrix(TRUTH, GUESS, ["cat", "dog", "owl"])
    np.testing.assert_array_equal(counts, [[2, 1, 0], [0, 1, 1], [0, 1, 0]])
    rows = class_table(counts, ["cat", "dog", "owl"])
    assert (rows[0].precision, rows[0].recall, rows[0].count) == (1.0, pytest.approx(2 / 3), 3)
    assert (rows[2].precision, rows[2].recall, rows[2].f1) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "truth, guess, labels, message",
    [
        (["a"], [], None, "1 true labels and 0 predictions"),
        ([], [], None, "0 true labels"),
        (["a"], ["b"], ["a"], "item 0 has the label 'b', which is not one of the 1 labels"),
    ],
)
def test_what_cannot_be_counted(truth, guess, labels, message):
    with pytest.raises(DataError, match=message):
        classification(truth, guess, labels)


def test_several_labels_by_hand():
    """Right pairs: red at 0, round at 2, red at 2: 3 of 5 true and 4 guessed ones, so micro F1 = 2 * 3 / (5 +
    4).
    """
    truth = [("red",), ("round", "red"), ("red", "round"), ()]
    guessed = [("red",), ("soft",), ("round", "red"), ()]
    found = several_labels(truth, guessed, ["red", "round", "soft", "never"])
    assert found["micro_F1"].value == pytest.approx(6 / 9)
    assert found["exact"].value == pytest.approx(3 / 4)
    # red: 2 right, 3 true, 2 guessed; round: 1, 2, 1; soft: 0, 0, 1; never does not occur
    assert found["macro_F1"].per_item == pytest.approx({"red": 4 / 5, "round": 2 / 3, "soft": 0.0})
    assert found["macro_F1"].value == pytest.approx((4 / 5 + 2 / 3) / 3)
    red = several_table(truth, guessed, ["red", "round", "soft"])[0]
    assert (red.precision, red.recall, red.count) == (1.0, pytest.approx(2 / 3), 3)


def test_several_labels_refuse_what_they_do_not_know():
    with pytest.raises(DataError, match="item 1 has the label 'odd'"):
        several_labels([("a",), ("odd",)], [(), ()], ["a"])
    with pytest.raises(DataError, match="1 true sets of labels and 0 predictions"):
        several_labels([("a",)], [], ["a"])
