"""What holds for every set of captions, whatever the words."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patchword.metrics import score_tokens
from patchword.metrics.cider import CiderReward
from patchword.metrics.frequencies import DocumentFrequencies

FAST = ("bleu", "rouge", "cider")
WORDS = st.lists(st.sampled_from("a man dog runs on the beach with red ball".split()), max_size=9)
SETS = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4), WORDS), min_size=1, max_size=6)
quick = settings(max_examples=30, deadline=None)


def scores(pairs):
    """Scores of (references, prediction) pairs; image ids are places in the list."""
    references = {str(place): captions for place, (captions, _) in enumerate(pairs)}
    return score_tokens(
        references, {str(place): words for place, (_, words) in enumerate(pairs)}, FAST
    ).scores


@given(SETS)
@quick
def test_empty_captions_and_all_others_score_as_in_pycocoevalcap(pairs):
    pytest.importorskip("pycocoevalcap")
    assume(
        any(words for captions, _ in pairs for words in captions)
    )  # its CIDEr fails where no reference has a word
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {
        str(place): [" ".join(words) for words in captions] for place, (captions, _) in enumerate(pairs)
    }
    predictions = {str(place): [" ".join(words)] for place, (_, words) in enumerate(pairs)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleu_items = Bleu(4).compute_score(references, predictions)
        rouge, rouge_items = Rouge().compute_score(references, predictions)
        cider, cider_items = Cider().compute_score(references, predictions)
    expected = {
        f"Bleu_{n}": (value, items) for n, value, items in zip(range(1, 5), bleu, bleu_items, strict=True)
    }
    expected |= {"ROUGE_L": (rouge, rouge_items), "CIDEr": (cider, cider_items)}
    for name, score in scores(pairs).items():
        assert score.value == pytest.approx(expected[name][0], abs=1e-12), name
        assert list(score.per_item.values()) == pytest.approx(list(expected[name][1]), abs=1e-12), name


@given(SETS, SETS)
@quick
def test_an_image_scores_the_same_in_any_company(pairs, others):
    alone, together = scores(pairs), scores(pairs + others)
    for name in ("Bleu_1", "Bleu_4", "ROUGE_L"):  # CIDEr's document frequencies are those of the set
        found = [together[name].per_item[str(place)] for place in range(len(pairs))]
        assert found == pytest.approx([*alone[name].per_item.values()], abs=1e-12)


@given(
    st.lists(WORDS.filter(lambda words: len(words) >= 4), min_size=2, max_size=6, unique_by=tuple),
    st.integers(1, 4),
)
@settings(max_examples=12, deadline=None)
def test_a_caption_equal_to_all_its_references_cannot_be_beaten(captions, copies):
    found = scores([([words] * copies, words) for words in captions])
    assert found["ROUGE_L"].value == pytest.approx(1.0)
    assert found["Bleu_4"].value == pytest.approx(1.0, abs=1e-8)
    best = found["CIDEr"].per_item
    for place, words in enumerate(captions):
        # 10 with n-grams of every order that not all images hold; less where an order has none, never beaten
        # by another caption.
        assert best[str(place)] <= 10 + 1e-9
        others = scores(
            [([own] * copies, captions[0] if at == place else own) for at, own in enumerate(captions)]
        )
        assert others["CIDEr"].per_item[str(place)] <= best[str(place)] + 1e-9, words


@given(
    st.lists(WORDS.filter(bool), min_size=2, max_size=5),
    st.lists(st.tuples(st.integers(0, 1), WORDS), min_size=1, max_size=8),
)
@quick
def test_the_reward_of_a_sample_does_not_depend_on_its_batch(references, samples):
    groups = [references[:1], references[1:]]
    reward = CiderReward(groups, frequencies=DocumentFrequencies.of(groups))
    images, captions = [image for image, _ in samples], [words for _, words in samples]
    together = reward.reward(captions, images)
    assert together == pytest.approx(
        np.concatenate([reward.reward([words], [image]) for image, words in samples]), abs=1e-12
    )
    assert reward.reward(captions[::-1], images[::-1])[::-1] == pytest.approx(together, abs=1e-12)
