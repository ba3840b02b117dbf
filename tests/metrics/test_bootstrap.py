import numpy as np
import pytest

from patchword.errors import DataError
from patchword.metrics import score_tokens
from patchword.metrics.bootstrap import compare, intervals

REFERENCES = {
    str(image): [["a", "dog", "on", "the", "beach"], ["one", "dog", f"w{image}"]] for image in range(60)
}
GOOD = {image: ["a", "dog", "on", "the", "beach"] for image in REFERENCES}
BAD = {image: ["a", "cat", "on", "the", "moon"] for image in REFERENCES}
MIXED = {image: (GOOD if int(image) % 2 else BAD)[image] for image in REFERENCES}


def scored(predictions: dict[str, list[str]]):
    report = score_tokens(REFERENCES, predictions, ("bleu", "rouge", "cider"))
    return report.scores, report.counts


def test_intervals_are_repeatable_and_hold_the_value() -> None:
    scores, counts = scored(MIXED)
    found = intervals(scores, counts, resamples=300)
    assert found == intervals(scores, counts, resamples=300)
    for name in ("Bleu_1", "Bleu_4", "ROUGE_L"):
        low, high = found[name]
        assert low < scores[name].value < high, name


def test_interval_of_a_mean_has_the_width_that_statistics_says() -> None:
    scores, counts = scored(MIXED)
    low, high = intervals(scores, counts, resamples=2000)["ROUGE_L"]
    spread = np.std([*scores["ROUGE_L"].per_item.values()]) / np.sqrt(len(REFERENCES))
    assert (high - low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)


def test_a_clear_gain_has_a_small_p_and_no_gain_has_one() -> None:
    better = compare(scored(BAD), scored(GOOD), resamples=200)
    assert better["Bleu_1"].value > 0 and better["Bleu_1"].p == pytest.approx(2 / 201)
    same = compare(scored(GOOD), scored(GOOD), resamples=200)
    assert same["CIDEr"].value == 0 and same["CIDEr"].p == 1.0


def test_other_images_are_refused() -> None:
    report = score_tokens({"x": [["a"]]}, {"x": ["a"]}, ("rouge",))
    with pytest.raises(DataError, match="not of the same images"):
        compare(scored(GOOD), (report.scores, report.counts))
