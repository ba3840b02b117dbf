import json
from pathlib import Path

import numpy as np
import pytest

from patchword.errors import ConfigError, DataError
from patchword.metrics import score_tokens
from patchword.metrics.cider import CiderReward
from patchword.metrics.frequencies import DocumentFrequencies

KITS = Path(__file__).parents[1] / "data" / "metrics"
REFERENCES = [
    [["a", "dog", "runs"], ["the", "dog"]],
    [["a", "red", "ball"]],
    [["two", "men"], ["men", "on", "a", "beach"]],
]


@pytest.fixture(scope="module")
def step() -> tuple[list, list, np.ndarray, np.ndarray]:
    data = json.loads((KITS / "scst.json").read_text(encoding="utf-8"))
    references = [[caption.split()[:-1] for caption in group] for group in data["refs"]]
    candidates = [caption.split()[:-1] for caption in data["res"]]
    return references, candidates, np.repeat(np.arange(50), 5), np.array(data["scores"])


def test_equals_the_public_code_on_a_self_critical_step(step) -> None:
    references, candidates, images, expected = step
    reward = CiderReward(references, frequencies=DocumentFrequencies.load(KITS / "scst_frequencies.npz"))
    assert np.abs(reward.reward(candidates, images) - expected).max() < 1e-12


@pytest.mark.parametrize("convention", ["image", "caption"])
@pytest.mark.parametrize("end_token", [True, False])
def test_a_batch_of_one_equals_a_batch_of_many(step, convention: str, end_token: bool) -> None:
    references, candidates, images, _ = step
    reward = CiderReward(references, convention, end_token)
    whole = reward.reward(candidates[:20], images[:20])
    single = [
        reward.reward([candidate], [image])[0]
        for candidate, image in zip(candidates[:20], images[:20], strict=True)
    ]
    assert np.abs(whole - single).max() < 1e-12
    order = np.random.default_rng(0).permutation(20)
    assert (
        np.abs(reward.reward([candidates[place] for place in order], images[order]) - whole[order]).max()
        < 1e-12
    )


def test_without_ends_the_image_convention_is_the_cider_of_the_set(step) -> None:
    references, candidates, _, _ = step
    predictions = {str(image): candidates[5 * image] for image in range(50)}
    cider = score_tokens(
        {str(image): group for image, group in enumerate(references)}, predictions, ("cider",)
    ).scores["CIDEr"]
    found = CiderReward(references, "image", end_token=False).reward(candidates[::5], range(50))
    assert np.abs(found - [*cider.per_item.values()]).max() < 1e-12
    # In a batch that holds each image once, counting over the batch is the same.
    assert (
        np.abs(
            CiderReward(references, "corpus", end_token=False).reward(candidates[::5], range(50)) - found
        ).max()
        < 1e-12
    )


def test_the_corpus_convention_counts_each_sample_as_a_document(step) -> None:
    references, candidates, images, _ = step
    found = CiderReward(references, "corpus", end_token=False).reward(candidates, images)
    repeated = {str(place): references[image] for place, image in enumerate(images)}
    cider = score_tokens(
        repeated, {str(place): words for place, words in enumerate(candidates)}, ("cider",)
    ).scores["CIDEr"]
    assert np.abs(found - [*cider.per_item.values()]).max() < 1e-12


def test_conventions_differ_and_ends_raise_the_score(step) -> None:
    references, candidates, images, _ = step
    means = {
        (c, e): CiderReward(references, c, e).reward(candidates, images).mean()
        for c in ("image", "caption")
        for e in (True, False)
    }
    assert len(set(means.values())) == 4
    assert means["image", True] > means["image", False]


def test_a_candidate_that_was_cut_off_gets_no_end_token() -> None:
    reward = CiderReward(REFERENCES)
    ended, cut = reward.reward([["a", "dog", "runs"]] * 2, [0, 0], finished=[True, False])
    assert ended > cut


def test_words_and_grams_that_no_reference_holds_count_in_the_norm_only() -> None:
    reward = CiderReward(REFERENCES, end_token=False)
    known, longer = reward.reward([["two", "men"], ["two", "men", "zebra"]], [2, 2])
    assert known > longer > 0
    assert reward.reward([["zebra"], []], [0, 1]).tolist() == [0.0, 0.0]


def test_growing_use_stores_nothing(step) -> None:
    references, candidates, images, _ = step
    frequencies = DocumentFrequencies.of(references)
    before = [len(counts) for counts in frequencies.counts]
    reward = CiderReward(references, frequencies=frequencies)
    first = reward.reward(candidates, images)
    assert [len(counts) for counts in frequencies.counts] == before
    assert (reward.reward(candidates, images) == first).all()


def test_frequencies_survive_the_file(tmp_path: Path) -> None:
    made = DocumentFrequencies.of(REFERENCES, "caption", end_token=False)
    assert made.documents == 5
    made.save(tmp_path / "df.npz")
    read = DocumentFrequencies.load(tmp_path / "df.npz")
    assert (read.documents, read.unit, read.end_token, read.table.words) == (
        5,
        "caption",
        False,
        made.table.words,
    )
    for ours, theirs in zip(made.counts, read.counts, strict=True):
        assert ours.tolist() == theirs.tolist()
    number = made.table.keys[0].tolist().index(made.table.words["dog"])
    assert made.counts[0][number] == 2
    assert DocumentFrequencies.of(REFERENCES).counts[0][number] == 1


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="convention 'batch' does not exist; choose one of image, caption, corpus"
    ):
        CiderReward(REFERENCES, "batch")
    with pytest.raises(
        ConfigError,
        match="counted per image with end_token=True; the reward asks for caption with end_token=True",
    ):
        CiderReward(REFERENCES, "caption", frequencies=DocumentFrequencies.of(REFERENCES))
    with pytest.raises(DataError, match="1 image has no reference, the first is number 1"):
        CiderReward([[["a"]], []])
    with pytest.raises(DataError, match="image indices run from 0 to 2, found 3 to 3"):
        CiderReward(REFERENCES).reward([["a"]], [3])
    with pytest.raises(DataError, match="2 candidates came with 1 image indices"):
        CiderReward(REFERENCES).reward([["a"], ["b"]], [0])
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="is no file of document frequencies"):
        DocumentFrequencies.load(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="a document is one of image, caption, not 'word'"):
        DocumentFrequencies.of(REFERENCES, "word")
    with pytest.raises(DataError, match="need the references of at least one image"):
        DocumentFrequencies.of([])
