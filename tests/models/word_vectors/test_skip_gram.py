"""Lazaridou, Pham and Baroni: the loss by hand, and what pictures do and do not touch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from patchword.data.corpus import END, Corpus
from patchword.errors import ConfigError
from patchword.models.word_vectors.skip_gram import SkipGram, SkipGramConfig
from patchword.tasks.words.batches import SkipGramRows

WORDS = 12


@pytest.fixture
def corpus():
    random = np.random.default_rng(0)
    ids = np.concatenate([np.r_[random.integers(0, WORDS, 7), END] for _ in range(20)]).astype(np.int32)
    return Corpus(tuple(map(str, range(WORDS))), np.bincount(ids[ids >= 0], minlength=WORDS), ids, len(ids))


@pytest.fixture
def pictures():
    pictures_WP = torch.randn(WORDS, 6, generator=torch.Generator().manual_seed(1))
    pictures_WP[8:] = 0
    return pictures_WP


def built(variant, pictures, **changes):
    config = SkipGramConfig(
        variant=variant, width=6, window=2, block=4, shared_negatives=3, subsample=0, **changes
    )
    torch.manual_seed(5)
    model = SkipGram(config, WORDS, None if variant == "text" else pictures)
    torch.nn.init.normal_(model.contexts.weight, std=0.3, generator=torch.Generator().manual_seed(6))
    return model


def batches(corpus, config, pictures, count=4):
    rows = SkipGramRows(corpus, config, pictures, 64, seed=3)
    plan = [entries for epoch in range(2) for entries in rows.plan(0, epoch)][:count]
    return [
        rows.batch(0, entries, torch.Generator().manual_seed(place)) for place, entries in enumerate(plan)
    ]


def test_neighbours_are_those_of_the_line_within_the_drawn_window(corpus):
    config = SkipGramConfig(window=2, block=4, shared_negatives=3, subsample=0)
    rows = SkipGramRows(corpus, config, None, len(corpus.ids_P), seed=3)
    batch = rows.batch(0, [0], torch.Generator().manual_seed(0))
    assert batch.target_count == (corpus.ids_P >= 0).sum()
    lines = np.cumsum(corpus.ids_P == END)[corpus.ids_P >= 0]
    words = corpus.ids_P[corpus.ids_P >= 0]
    near, around = batch.near_BLN.numpy(), batch.around_BN.numpy()
    for place, word in enumerate(words):
        b, l = divmod(place, 4)
        assert batch.centres_BL[b, l] == word
        found = np.flatnonzero(near[b, l]) - 2 - l
        reach = max(abs(found), default=0)
        within = [
            d
            for d in range(-reach, reach + 1)
            if d and 0 <= place + d < len(words) and lines[place + d] == lines[place]
        ]
        assert list(found) == within and reach <= 2
        assert [around[b, l + 2 + d] for d in within] == [words[place + d] for d in within]


def test_the_linguistic_loss_is_the_sum_over_pairs(corpus, pictures):
    model = built("text", pictures)
    batch = batches(corpus, model.config, None, 1)[0]
    u, o = model.words.weight.double(), model.contexts.weight.double()
    expected = 0.0
    for b, l, n in batch.near_BLN.nonzero().tolist():
        centre, context = batch.centres_BL[b, l], batch.around_BN[b, n]
        expected -= F.logsigmoid(u[centre] @ o[context])
        for negative in batch.negatives_BS[b]:
            expected -= 5 / 3 * F.logsigmoid(-(u[centre] @ o[negative]))
    assert batch.near_BLN.any()
    torch.testing.assert_close(
        model.linguistic_loss(model.words(batch.centres_BL), batch).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_the_visual_loss_is_the_hinge_over_words_with_pictures(corpus, pictures):
    model = built("B", pictures)
    batch = batches(corpus, model.config, pictures, 1)[0]
    seen = F.normalize(model.map(model.words.weight), dim=1).double()
    own = F.normalize(pictures, dim=1).double()
    expected = 0.0
    for word in batch.centres_BL[batch.real_BL].tolist():
        for other in batch.visual_negatives_R.tolist() if word < 8 else ():
            if other != word:
                expected += F.relu(0.5 - seen[word] @ own[word] + seen[word] @ own[other])
    torch.testing.assert_close(
        model.visual_loss(model.words(batch.centres_BL), batch).double(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("variant", ["A", "B"])
def test_words_without_pictures_get_no_visual_gradient(corpus, pictures, variant):
    model = built(variant, pictures)
    batch = batches(corpus, model.config, pictures, 1)[0]
    assert set(batch.visual_negatives_R.tolist()) <= set(range(8))
    model.visual_loss(model.words(batch.centres_BL), batch).backward()
    gradient = model.words.weight.grad.to_dense()
    assert gradient[8:].abs().max() == 0 and gradient[:8].abs().max() > 0
    assert model.contexts.weight.grad is None and model.pictures_WP.grad is None


def trained(model, parts):
    optimiser = torch.optim.Adagrad([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for batch in parts:
        torch.stack(list(model(batch).values())).sum().backward()
        with torch.sparse.check_sparse_tensor_invariants(False):
            optimiser.step()
        optimiser.zero_grad()
    return model


@pytest.mark.parametrize("variant", ["A", "B"])
def test_without_visual_weight_it_is_skip_gram_bit_for_bit(corpus, pictures, variant):
    plain = trained(built("text", pictures), batches(corpus, built("text", pictures).config, None))
    joint = built(variant, pictures, visual_weight=0.0)
    joint = trained(joint, batches(corpus, joint.config, pictures))
    seen = built(variant, pictures, visual_weight=1.0)
    seen = trained(seen, batches(corpus, seen.config, pictures))
    assert torch.equal(plain.words.weight, joint.words.weight)
    assert torch.equal(plain.contexts.weight, joint.contexts.weight)
    assert not torch.equal(plain.words.weight[:8], seen.words.weight[:8])


def test_the_only_picture_of_a_word_is_no_negative_of_it(corpus, pictures):
    pictures = pictures.index_fill(0, torch.arange(1, WORDS), 0.0)
    model = built("A", pictures)
    batch = batches(corpus, model.config, pictures, 1)[0]
    assert set(batch.visual_negatives_R.tolist()) == {0} and 0 in batch.centres_BL
    assert model.visual_loss(model.words(batch.centres_BL), batch) == 0


def test_frequent_words_are_dropped_as_mikolov_says():
    counts = np.array([900, 90, 10])
    corpus = Corpus(("a", "b", "c"), counts, np.repeat(np.arange(3), counts).astype(np.int32), 1000)
    rows = SkipGramRows(corpus, SkipGramConfig(subsample=0.01, block=4), None, 1000, seed=0)
    np.testing.assert_allclose(
        rows.kept_W, [(0.01 / 0.9) ** 0.5 + 0.01 / 0.9, (0.01 / 0.09) ** 0.5 + 0.01 / 0.09, 1.0]
    )


def test_variant_a_needs_words_and_pictures_of_one_width(pictures):
    with pytest.raises(ConfigError, match="pictures.width"):
        SkipGram(SkipGramConfig(variant="A", width=7), WORDS, pictures)
    with pytest.raises(ConfigError, match="needs pictures"):
        SkipGram(SkipGramConfig(variant="B"), WORDS, None)
