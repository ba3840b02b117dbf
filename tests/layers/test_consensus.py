"""What people say of pictures like a given one: tf-idf by hand, and a map that tells pictures apart."""

import math

import pytest
import torch

from patchword.layers.consensus import Consensus

RED, BLUE, DOG, RUNS = 1, 2, 3, 4


def test_the_weights_of_a_caption_by_hand():
    """Two pictures, three captions; "dog" is in both and weighs nothing, n-grams of one n have length one."""
    captions = [[[RED, DOG], [RED, RED]], [[BLUE, DOG]]]
    found = Consensus.fit(torch.eye(2), captions, least=1, ridge=1.0)
    kept = {tuple(t for t in row if t >= 0) for row in found.ngrams_G4.tolist()}
    assert kept == {(RED,), (BLUE,), (DOG,), (RED, DOG), (RED, RED), (BLUE, DOG)}
    weights = {
        tuple(t for t in found.ngrams_G4[place].tolist() if t >= 0): value
        for place, value in found.weighed([RED, DOG, RED]).items()
    }
    assert weights[(RED,)] == pytest.approx(1.0)  # twice log 2, alone in its length
    assert weights[(DOG,)] == 0.0
    # (red, dog) has rarity log 2; (dog, red) is not known and has that of the rarest, here also log 2.
    assert float(found.rarest) == pytest.approx(math.log(2))
    assert weights[(RED, DOG)] == pytest.approx(1 / math.sqrt(2))
    assert set(weights) == {(RED,), (DOG,), (RED, DOG)}


def test_a_rare_ngram_and_an_unknown_word_are_not_predicted_and_still_count_in_the_length():
    captions = [[[RED, DOG]], [[RED, DOG]], [[RED, -1]], [[BLUE, DOG]]]
    found = Consensus.fit(torch.randn(4, 3), captions, least=2, ridge=1.0)
    kept = {tuple(t for t in row if t >= 0) for row in found.ngrams_G4.tolist()}
    assert kept == {(RED,), (DOG,), (RED, DOG)}
    alone, beside = found.weighed([RED]), found.weighed([RED, BLUE])
    (place,) = alone
    assert 0 < beside[place] < alone[place]


def test_captions_of_like_pictures_agree_more():
    """The third feature decides between red and blue; of a picture that was not trained on as well."""
    torch.manual_seed(0)
    means_BC = torch.randn(200, 6)
    captions = [[[RED if row[2] > 0 else BLUE, DOG, RUNS]] * 2 for row in means_BC]
    found = Consensus.fit(means_BC, captions, least=3, ridge=10.0)
    others_BC = torch.randn(50, 6)
    others_BC = others_BC[others_BC[:, 2].abs() > 0.3]
    for row, (red, blue) in zip(
        others_BC,
        found.agreement(others_BC, [[[RED, DOG, RUNS], [BLUE, DOG, RUNS]]] * len(others_BC)),
        strict=True,
    ):
        assert (red > blue) == bool(row[2] > 0)


def test_a_saved_one_says_the_same():
    means_BC = torch.randn(20, 4)
    captions = [[[RED, DOG], [BLUE]] if row[0] > 0 else [[BLUE, DOG]] for row in means_BC]
    found = Consensus.fit(means_BC, captions, least=1, ridge=1.0)
    again = Consensus(4, len(found.ngrams_G4))
    again.load_state_dict(found.state_dict())
    asked = [[[RED, DOG], [BLUE, DOG], []]] * 20
    assert again.agreement(means_BC, asked) == found.agreement(means_BC, asked)
    assert all(row[2] == 0 for row in found.agreement(means_BC, asked))
