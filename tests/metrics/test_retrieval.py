import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.errors import DataError
from patchword.metrics.retrieval import retrieval, retrieval_ranks

KIT = Path(__file__).parents[1] / "data" / "metrics" / "retrieval.json"


def seeded_scores(images: int) -> np.ndarray:
    """The recipe that stands in the kit."""
    random = np.random.RandomState(0)
    image_NE = random.randn(images, 64)
    caption_CE = np.repeat(image_NE, 5, axis=0) * 0.35 + random.randn(5 * images, 64)
    image_NE /= np.linalg.norm(image_NE, axis=1, keepdims=True)
    caption_CE /= np.linalg.norm(caption_CE, axis=1, keepdims=True)
    return image_NE @ caption_CE.T


@pytest.fixture(scope="module")
def five_thousand() -> np.ndarray:
    return seeded_scores(5000)


@pytest.mark.parametrize("case", ["n1000", "n5000", "coco_1k_5fold_mean_of_n5000"])
def test_equals_the_reference(case, five_thousand):
    scores = seeded_scores(1000) if case == "n1000" else five_thousand
    ours = retrieval(scores, fold_size=1000 if "fold" in case else None)
    expected = json.loads(KIT.read_text())[case]
    for way in ("i2t", "t2i"):
        names = [f"{way}_{name}" for name in ("R@1", "R@5", "R@10", "medR", "meanR")]
        assert [ours[name].value for name in names] == pytest.approx(expected[way], abs=1e-12)
    assert ours["rSum"].value == pytest.approx(expected["rsum"], abs=1e-11)


def test_hand_worked_ranks():
    scores = np.array([[0.9, 0.1, 0.8, 0.7], [0.95, 0.2, 0.3, 0.1]])
    ranks = retrieval_ranks(scores, np.array([0, 0, 1, 1]))
    assert ranks.image_to_text.tolist() == [
        0,
        1,
    ]  # image 1: caption 0 (0.95) stands before its best, caption 2 (0.3)
    assert ranks.text_to_image.tolist() == [1, 1, 1, 1]
    found = retrieval(scores, np.array([0, 0, 1, 1]))
    assert (
        found["i2t_R@1"].value == 50.0 and found["t2i_R@1"].value == 0.0 and found["t2i_R@5"].value == 100.0
    )
    assert (
        found["i2t_medR"].value == 1.0 and found["i2t_meanR"].value == 1.5 and found["t2i_medR"].value == 2.0
    )
    assert found["rSum"].value == 50.0 + 100 + 100 + 0 + 100 + 100


def test_equal_scores_give_chance_not_perfection():
    found = retrieval(np.zeros((4, 20)))
    assert found["i2t_R@1"].value == 25.0 and found["t2i_R@1"].value == 25.0


def by_sorting(scores, owners):
    """The loops of the published evaluations, ties towards the lower index."""
    images = np.array(
        [min(np.flatnonzero(owners[np.argsort(-row, kind="stable")] == i)) for i, row in enumerate(scores)]
    )
    texts = np.array(
        [
            np.flatnonzero(np.argsort(-scores[:, c], kind="stable") == owners[c])[0]
            for c in range(scores.shape[1])
        ]
    )
    return images, texts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 12), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_counting_equals_sorting_with_ties_and_any_caption_order(images, more, levels, seed):
    random = np.random.default_rng(seed)
    owners = random.permutation(np.concatenate([np.arange(images), random.integers(0, images, more)]))
    scores = random.integers(0, levels, (images, len(owners))).astype(np.float32)
    ranks = retrieval_ranks(scores, owners)
    expected = by_sorting(scores, owners)
    np.testing.assert_array_equal(ranks.image_to_text, expected[0])
    np.testing.assert_array_equal(ranks.text_to_image, expected[1])


def test_folds_of_shuffled_captions_equal_folds_in_order():
    scores, owners = seeded_scores(40), np.repeat(np.arange(40), 5)
    order = np.random.default_rng(3).permutation(200)
    assert retrieval(scores[:, order], owners[order], fold_size=10) == retrieval(scores, fold_size=10)
    halves = [retrieval(scores[:20, :100])["i2t_medR"].value, retrieval(scores[20:, 100:])["i2t_medR"].value]
    assert retrieval(scores, fold_size=20)["i2t_medR"].value == np.mean(halves)


@pytest.mark.parametrize(
    "scores, owners, fold, message",
    [
        (np.zeros(3), None, None, r"shape \(3,\); expected \(images, captions\)"),
        (np.zeros((2, 3)), None, None, "3 captions do not divide among 2 images"),
        (
            np.zeros((2, 2)),
            np.array([0, 2]),
            None,
            "caption 1 belongs to image row 2, but the scores have rows 0 to 1",
        ),
        (np.zeros((2, 2)), np.array([1, 1]), None, r"1 image has no caption \(first: row 0\)"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), None, "expected 2 integers"),
        (np.array([[0.1, np.nan], [np.inf, 0.2]]), None, None, "image 0 and caption 1 is NaN"),
        (np.zeros((3, 3)), None, 2, "3 images do not divide into folds of 2"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, owners, fold, message):
    with pytest.raises(DataError, match=message):
        retrieval(scores, owners, fold_size=fold)


def test_infinite_scores_are_ranked():
    assert retrieval(np.array([[np.inf, -np.inf], [-np.inf, np.inf]]))["rSum"].value == 600.0
