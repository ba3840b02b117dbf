"""Tan and Bansal: the hinge by hand, what it ignores, and the exact nearest pictures."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.models.pretraining.vokenizer import (
    TokenBatch,
    Vokenizer,
    VokenizerConfig,
    VokenLanguageModel,
    VokenLanguageModelConfig,
    nearest_pictures,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Vokenizer(VokenizerConfig(width=4, hidden=8), 6, 5).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    words_BL = torch.tensor(
        [[False, True, True, False], [False, True, False, False], [False, True, True, True]]
    )
    return torch.randn(3, 4, 6, generator=generator), words_BL, torch.randn(3, 5, generator=generator)


def test_the_hinge_is_that_of_the_pair_half_a_batch_away(model, batch):
    states, words, pictures = batch
    f, g = model.tokens(states), model.pictures(pictures)
    expected, count = 0.0, 0
    for b in range(3):
        other = (b - 1) % 3  # half of three pairs, rounded down
        for l in range(4):
            if words[b, l]:
                own = f[b, l] @ g[b]
                expected += F.relu(0.5 - own + f[b, l] @ g[other])
                if words[other, l]:
                    expected += F.relu(0.5 - own + f[other, l] @ g[b])
                count += 1
    torch.testing.assert_close(model.loss(*batch), expected / count)


def test_the_hardest_negatives_are_the_worst_of_the_batch(model, batch):
    model.config = model.config.model_copy(update={"hardest_negatives": True})
    states, words, pictures = batch
    f, g = model.tokens(states), model.pictures(pictures)
    expected, count = 0.0, 0
    for b in range(3):
        others = [c for c in range(3) if c != b]
        for l in range(4):
            if words[b, l]:
                own = f[b, l] @ g[b]
                expected += F.relu(0.5 - own + max(f[b, l] @ g[c] for c in others))
                there = [f[c, l] @ g[b] for c in others if words[c, l]]
                expected += F.relu(0.5 - own + max(there)) if there else 0.0
                count += 1
    torch.testing.assert_close(model.loss(*batch), expected / count)
    model.loss(*batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("hardest", [False, True])
def test_padding_and_special_tokens_change_nothing(model, batch, hardest):
    model.config = model.config.model_copy(update={"hardest_negatives": hardest})
    states, words, pictures = batch
    other = torch.where(words[..., None], states, torch.full_like(states, 9.0))
    longer = F.pad(other, (0, 0, 0, 3)), F.pad(words, (0, 3)), pictures
    torch.testing.assert_close(model.loss(*longer), model.loss(*batch))


@pytest.mark.parametrize("hardest", [False, True])
def test_kept_margins_cost_nothing_and_one_pair_has_no_loss(model, batch, hardest):
    states, words, pictures = batch
    model.config = model.config.model_copy(update={"margin": -2.0, "hardest_negatives": hardest})
    assert model.loss(*batch) == 0
    model.config = model.config.model_copy(update={"margin": 0.5})
    assert model.loss(states[:1], words[:1], pictures[:1]) == 0


@given(size=st.integers(1, 12), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_a_bank_in_parts_is_the_whole_bank(size, seed):
    generator = torch.Generator().manual_seed(seed)
    words, bank = torch.randn(5, 3, generator=generator), torch.randn(10, 3, generator=generator)
    bank[7] = bank[2]  # equal pictures: the first one wins, in parts as well
    whole, parts = nearest_pictures(words, [bank]), nearest_pictures(words, bank.split(size))
    assert whole.pictures_N.tolist() == (words @ bank.t()).argmax(1).tolist() == parts.pictures_N.tolist()
    assert 7 not in whole.pictures_N.tolist()
    torch.testing.assert_close(parts.relevance_N, whole.relevance_N)
    torch.testing.assert_close(parts.preference_N, whole.preference_N)


def test_preference_is_in_standard_deviations_above_the_mean():
    words, bank = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.2, 0.0], [0.4, 0.0], [0.9, 0.0]])
    found = nearest_pictures(words, [bank])
    scores = bank[:, 0]
    torch.testing.assert_close(found.preference_N[0], (0.9 - scores.mean()) / scores.std(unbiased=False))
    assert found.preference_N[1] == 0 and found.pictures_N.tolist() == [2, 0]


def language_model(weight):
    from patchword.towers.bert import BertTower
    from patchword.towers.settings import BertTowerConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    architecture = {**sizes, "vocab_size": 12, "max_position_embeddings": 8}
    torch.manual_seed(0)
    text = BertTower(BertTowerConfig(architecture=architecture, trainable_from=0))
    return VokenLanguageModel(VokenLanguageModelConfig(voken_weight=weight), text, 12, 5, mask=9).eval()


IDS = torch.tensor([[10, 1, 2, 11], [10, 3, 11, 0]])
HIDDEN = torch.tensor([[False, True, False, False], [False, False, False, False]])
VOKENS = torch.tensor([[-1, 4, 2, -1], [-1, 0, -1, -1]])


def test_hidden_words_are_named_from_their_context_and_vokens_of_all_words():
    model = language_model(1.0)
    batch = TokenBatch(IDS, IDS != 0, HIDDEN, VOKENS)
    losses = model.loss(batch)
    seen = IDS.clone()
    seen[0, 1] = 9
    tokens = model(seen, IDS != 0)
    torch.testing.assert_close(
        losses["words"], F.cross_entropy(model.words(tokens[0, 1:2]), torch.tensor([1]))
    )
    places = [(0, 1), (0, 2), (1, 1)]
    logits = torch.stack([model.vokens(tokens[b, l]) for b, l in places])
    torch.testing.assert_close(losses["vokens"], F.cross_entropy(logits, torch.tensor([4, 2, 0])))
    other = model.loss(batch._replace(ids_BL=torch.where(HIDDEN, 5, IDS)))
    torch.testing.assert_close(other["vokens"], losses["vokens"])  # what is hidden is not seen


def test_without_weight_it_is_masked_language_modelling():
    model = language_model(0.0)
    assert model.vokens is None and set(model.loss(TokenBatch(IDS, IDS != 0, HIDDEN, VOKENS))) == {"words"}
    with_vokens = language_model(1.0)
    assert torch.equal(
        model.loss(TokenBatch(IDS, IDS != 0, HIDDEN, VOKENS))["words"],
        with_vokens.loss(TokenBatch(IDS, IDS != 0, HIDDEN, VOKENS))["words"],
    )
