"""VQA accuracy, its ceiling and exact match, of answers in the form of VQA's own evaluation."""

import pytest

from patchword.errors import DataError
from patchword.metrics.answers import annotators_remark, best_accuracy, exact_match, vqa_accuracy


@pytest.mark.parametrize("matching, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_annotators(matching, expected):
    answers = {7: ["yes"] * matching + ["no"] * (10 - matching)}
    assert vqa_accuracy(answers, {7: " Yes "})["VQA_accuracy"].value == pytest.approx(expected)


def test_vqa_accuracy_of_one_answer_and_errors():
    found = vqa_accuracy({1: ["red"], 2: ["blue"]}, {1: "red", 2: "red"})["VQA_accuracy"]
    assert found == (0.5, {1: 1.0, 2: 0.0})
    with pytest.raises(DataError, match="question 1 has no answer"):
        vqa_accuracy({1: []}, {1: "x"})
    with pytest.raises(DataError, match="1 ids on one side only: 2"):
        vqa_accuracy({1: ["a"]}, {1: "a", 2: "b"})


def test_both_sides_are_compared_in_the_form_of_the_evaluation():
    given = {1: ["2"] * 9 + ["two"], 2: ["t-shirt"] * 10, 3: ["the dog"] * 10}
    said = {1: "Two", 2: "T-Shirt!", 3: "dog."}
    assert vqa_accuracy(given, said)["VQA_accuracy"].per_item == {1: 1.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize("people", [2, 3])
def test_with_two_or_three_annotators_a_perfect_answer_cannot_reach_one(people):
    given = {1: ["red"] * people}
    assert vqa_accuracy(given, {1: "red"})["VQA_accuracy"].value == pytest.approx((people - 1) / 3)
    assert best_accuracy(given) == vqa_accuracy(given, {1: "red"})["VQA_accuracy"].value
    assert exact_match(given, {1: "Red"})["exact_match"].value == 1
    remark = annotators_remark(given)
    assert (
        remark.startswith(f"{people} answers per question") and f"{100 * best_accuracy(given):.2f}" in remark
    )


def test_where_all_have_ten_annotators_or_one_nothing_is_remarked():
    assert annotators_remark({1: ["red"] * 10, 2: ["a"] * 10}) is None
    assert annotators_remark({1: ["red"], 2: ["blue"]}) is None
    assert annotators_remark({1: ["red"] * 10, 2: ["a"] * 4}).startswith("4 to 10 answers")


def test_exact_match_takes_any_of_equally_frequent_answers():
    given = {1: ["red", "red", "blue", "blue", "green"]}
    values = [exact_match(given, {1: text})["exact_match"].value for text in ("red", "blue", "green")]
    assert values == [1, 1, 0]
