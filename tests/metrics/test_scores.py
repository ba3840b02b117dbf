import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.errors import ConfigError, DataError
from patchword.metrics import score_captions, score_tokens

KITS = Path(__file__).parents[1] / "data" / "metrics"
FAST = ("bleu", "rouge", "cider", "cider-plain")

WORDS = st.lists(st.sampled_from("a man dog runs on the beach with red ball".split()), max_size=9)
SETS = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4), WORDS), min_size=1, max_size=6)


def kit(name: str) -> dict:
    return json.loads((KITS / name).read_text(encoding="utf-8"))


def values(pairs: list[tuple[list[list[str]], list[str]]]) -> dict[str, list[float]]:
    references = {str(place): refs for place, (refs, _) in enumerate(pairs)}
    predictions = {str(place): words for place, (_, words) in enumerate(pairs)}
    scores = score_tokens(references, predictions, FAST).scores
    return {name: [score.value, *score.per_item.values()] for name, score in scores.items()}


@pytest.mark.parametrize("name", ["captions.json", "awkward.json"])
def test_corpus_and_image_values_equal_pycocoevalcap(name: str) -> None:
    data = kit(name)
    scores = score_captions(data["references"], data["predictions"])
    assert list(scores) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    for metric, score in scores.items():
        assert abs(score.value - data["corpus"][metric]) < 1e-12, metric
        assert np.abs(np.array([*score.per_item.values()]) - data["per_image"][metric]).max() < 1e-12, metric


def test_hand_worked_values() -> None:
    scores = score_tokens(
        {"1": [["a", "dog", "runs"]], "2": [["the", "red", "ball"], ["a", "ball"]]},
        {"1": ["a", "dog", "sits"], "2": ["the", "ball"]},
        FAST,
    ).scores
    assert scores["Bleu_1"].value == pytest.approx(4 / 5, abs=1e-9)
    # Two common words of three on both sides; and 2/2 of the prediction, best recall 2/3.
    assert scores["ROUGE_L"].per_item["1"] == pytest.approx(2 / 3)
    assert scores["ROUGE_L"].per_item["2"] == pytest.approx((1 + 1.44) * (2 / 3) / (2 / 3 + 1.44))


def test_a_caption_equal_to_all_references_has_the_known_maximum() -> None:
    caption = "a man rides a wave".split()
    other = "two dogs play with one ball".split()
    scores = score_tokens({"1": [caption] * 3, "2": [other] * 2}, {"1": caption, "2": other}, FAST).scores
    assert scores["CIDEr"].per_item == pytest.approx({"1": 10.0, "2": 10.0})
    assert scores["CIDEr_plain"].value == pytest.approx(10.0)
    assert scores["ROUGE_L"].value == pytest.approx(1.0)
    assert scores["Bleu_4"].value == pytest.approx(1.0, abs=1e-8)


def test_one_image_alone_has_cider_zero() -> None:
    assert values([([["a", "dog"]], ["a", "dog"])])["CIDEr"] == [0.0, 0.0]


def test_empty_captions_behave_as_in_the_reference() -> None:
    scores = score_captions({"1": ["A dog."], "2": [""]}, {"1": "", "2": ""})
    assert scores["ROUGE_L"].per_item == {"1": 0.0, "2": 1.0}
    assert scores["CIDEr"].value == 0.0
    assert scores["Bleu_4"].value < 1e-3


def test_bleu_corpus_value_sums_counts_and_takes_the_shorter_of_two_close_references() -> None:
    scores = score_tokens({"1": [["x"] * 3, ["y"] * 5]}, {"1": ["x", "x", "x", "z"]}, ("bleu",)).scores
    # Of two references one word away the shorter counts: no brevity penalty.
    assert scores["Bleu_1"].value == pytest.approx(3 / 4)


@given(SETS, st.randoms())
@settings(max_examples=40, deadline=None)
def test_order_of_images_and_of_references_changes_nothing(pairs: list, random) -> None:
    usual = values(pairs)
    order = list(range(len(pairs)))
    random.shuffle(order)
    shuffled = values(
        [(random.sample(pairs[place][0], len(pairs[place][0])), pairs[place][1]) for place in order]
    )
    for name, found in usual.items():
        assert shuffled[name][0] == pytest.approx(found[0], abs=1e-12)
        assert shuffled[name][1:] == pytest.approx([found[1 + place] for place in order], abs=1e-12)


@given(SETS)
@settings(max_examples=30, deadline=None)
def test_cider_equals_its_definition(pairs: list) -> None:
    for found, (references, prediction) in zip(values(pairs)["CIDEr"][1:], pairs, strict=True):
        assert found == pytest.approx(
            cider_by_definition(references, prediction, [refs for refs, _ in pairs]), abs=1e-9
        )


def cider_by_definition(
    references: list[list[str]], prediction: list[str], documents: list[list[list[str]]]
) -> float:
    def vector(words: list[str], n: int) -> dict[tuple[str, ...], float]:
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        held = [{tuple(r[i : i + n]) for r in refs for i in range(len(r) - n + 1)} for refs in documents]
        df = {gram: max(1, sum(gram in grams_of_image for grams_of_image in held)) for gram in grams}
        return {gram: grams.count(gram) * (math.log(len(documents)) - math.log(df[gram])) for gram in grams}

    total = 0.0
    for reference in references:
        for n in (1, 2, 3, 4):
            own, other = vector(prediction, n), vector(reference, n)
            norm = math.sqrt(sum(v * v for v in own.values())) * math.sqrt(sum(v * v for v in other.values()))
            dot = sum(min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in own.items())
            bigrams = max(0, len(prediction) - 1) - max(0, len(reference) - 1)
            total += (dot / norm if norm else dot) * math.exp(-(bigrams**2) / 72)
    return 10 * total / 4 / len(references)


def test_very_large_vocabularies_do_not_overflow() -> None:
    random = np.random.default_rng(0)
    captions = [[f"w{number}" for number in random.integers(10**6, size=12)] for _ in range(2000)]
    scores = score_tokens(
        {str(i): [words] for i, words in enumerate(captions)},
        {str(i): words for i, words in enumerate(captions)},
        FAST,
    )
    assert scores.scores["CIDEr"].value == pytest.approx(10.0)


def test_different_images_are_refused_by_name() -> None:
    with pytest.raises(
        DataError, match=r"1 image \(b\) without a prediction, 1 image \(c\) without references"
    ):
        score_captions({"a": ["x"], "b": ["y"]}, {"a": "x", "c": "z"})
    with pytest.raises(DataError, match="there is nothing to score"):
        score_captions({}, {})
    with pytest.raises(DataError, match=r"1 image \(a\) without any reference"):
        score_captions({"a": []}, {"a": "x"})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="metric 'blue' does not exist; choose from bleu"):
        score_captions({"a": ["x"]}, {"a": "x"}, metrics=("blue",))
    with pytest.raises(ConfigError, match="tokenizer 'moses' does not exist"):
        score_captions({"a": ["x"]}, {"a": "x"}, tokenizer="moses")


def test_other_tokenizers() -> None:
    references, predictions = (
        {"1": ["\u4e00\u53ea\u72d7"], "2": ["\u732b"]},
        {"1": "\u4e00\u53ea \u72d7", "2": "\u732b"},
    )
    assert score_captions(references, predictions, "char", ("bleu",))["Bleu_1"].value == pytest.approx(1.0)
    assert score_captions({"1": ["Dog."]}, {"1": "dog"}, "none", ("bleu",))["Bleu_1"].value < 1e-6


def test_importing_the_metrics_imports_no_torch() -> None:
    code = "import sys; from patchword.metrics import score; import patchword.metrics.cider; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
