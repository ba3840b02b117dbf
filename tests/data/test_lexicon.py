"""The drawn lexicon: what is known of it is true of its pictures and its text."""

import numpy as np
import pytest

from patchword.data.scenes.lexicon import TAXA, lexicon
from patchword.data.scenes.world import COLOURS, SHAPES, SIZES


@pytest.fixture(scope="module")
def world():
    return lexicon(nouns=40, seed=3)


def test_it_follows_from_its_seed_and_words_are_different(world):
    assert lexicon(nouns=40, seed=3) == world != lexicon(nouns=40, seed=4)
    words = (
        [noun.word for noun in world.nouns]
        + [v for verbs in world.verbs for v in verbs]
        + [w for w, _ in world.abstract]
    )
    assert len(set(words)) == len(words)
    assert np.bincount([noun.taxon for noun in world.nouns]).tolist() == [40 // TAXA] * TAXA


def test_gold_similarities_are_those_of_the_nouns(world):
    one, other = world.nouns[0], world.nouns[1]
    same = [one.colour == other.colour, one.shape == other.shape, one.size == other.size]
    assert world.visual()[0, 1] == sum(same) / 3 and world.semantic()[0, 1] == (one.taxon == other.taxon)
    assert np.array_equal(world.mixed(), (world.visual() + world.semantic()) / 2)
    assert (world.visual().diagonal() == 1).all() and np.array_equal(world.visual(), world.visual().T)


def test_exemplars_show_the_colour_of_their_noun(world):
    pictures = world.exemplars(6, 16)
    assert pictures.shape == (40, 6, 16, 16, 3) and pictures.dtype == np.uint8
    for noun, own in zip(world.nouns, pictures, strict=True):
        if noun.shape in ("circle", "square", "diamond"):
            middle = own[:, 7:9, 7:9].reshape(-1, 3).mean(0)
            nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - middle).sum())
            assert nearest == noun.colour


def test_adjectives_are_as_rare_as_asked_and_true(world):
    looks = {*COLOURS, *SHAPES, *SIZES}
    nouns = {noun.word: noun for noun in world.nouns}
    for share in (0.05, 0.5):
        told, said = 0, 0
        for line in world.sentences(2000, share):
            words = line.split()
            for before, word in zip(words, words[1:], strict=False):
                if word in nouns:
                    told += 1
                    said += before in looks
                    assert before not in looks or before in nouns[word][2:]
        assert abs(said / told - share) < 0.02


def test_sentences_hold_nouns_and_verbs_of_one_taxon(world):
    taxa = {noun.word: noun.taxon for noun in world.nouns}
    verbs = {verb: taxon for taxon, row in enumerate(world.verbs) for verb in row}
    lines = [line.split() for line in world.sentences(300)]
    for words in lines:
        assert len({(taxa | verbs)[word] for word in words if word in taxa or word in verbs}) <= 1
    assert 0.05 < np.mean([len(words) == 4 for words in lines]) < 0.3
