"""Captions ranked by consensus: the order, the command, and what a person can still ask for."""

import json

import numpy as np
import pytest
import torch

from patchword import load
from patchword.data.pictures import open_picture
from patchword.decode import Decodings
from patchword.ids import SpecialIds
from patchword.layers.consensus import Consensus
from patchword.tasks.caption.consensus import ranked
from patchword.types import VisualFeatures

SPECIAL = SpecialIds(0, 5, 6, 7)


def hypotheses():
    """Two pictures with three captions each, in the order of their probability."""
    tokens_BKT = torch.tensor([[[1, 6, 0], [2, 6, 0], [1, 2, 6]]] * 2)
    lengths_BK = torch.tensor([[2, 2, 3]] * 2)
    log_probabilities_BK = torch.tensor([[-1.0, -2.0, -3.0]] * 2)
    each_BKT = torch.arange(18, dtype=torch.float32).view(2, 3, 3)
    return Decodings(
        tokens_BKT, lengths_BK, log_probabilities_BK, each_BKT, torch.ones(2, 3, dtype=torch.bool)
    )


def test_agreement_and_probability_decide_together():
    """A bright picture is a 1, a dark one a 2; without weight the search's order stays."""
    means_BC = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(20, 1) + 0.01 * torch.randn(40, 2)
    consensus = Consensus.fit(means_BC, [[[1]], [[2]]] * 20, least=1, ridge=1.0)
    features = VisualFeatures(torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]))
    found = hypotheses()
    same = ranked(consensus, 0.0, features, found, SPECIAL)
    assert all(torch.equal(one, other) for one, other in zip(same, found, strict=True))
    much = ranked(consensus, 1000.0, features, found, SPECIAL)
    assert much.tokens_BKT[0, 0].tolist() == [1, 6, 0] and much.tokens_BKT[1, 0].tolist() == [2, 6, 0]
    # Everything of a hypothesis moves with it.
    assert much.log_probabilities_BK[1, 0] == -2.0
    assert torch.equal(much.token_log_probabilities_BKT[1, 0], found.token_log_probabilities_BKT[1, 1])


@pytest.fixture(scope="module")
def agreed(trained, scenes, run_patchword, tmp_path_factory):
    """The trained model with consensus, and what the command printed."""
    out = tmp_path_factory.mktemp("agreed") / "model"
    data = ("--data", scenes / "dataset.json", "--images", scenes / "images")
    finished = run_patchword(
        "consensus",
        trained / "best",
        *data,
        "--held-out",
        10,
        "--candidates",
        4,
        "--out",
        out,
        "--device",
        "cpu",
    )
    assert finished.returncode == 0, finished.stderr
    return out, finished.stdout


def test_the_command_writes_a_model_that_says_what_it_chose(agreed, scenes):
    out, printed = agreed
    model = load(out)
    settings = model.settings.consensus
    assert settings.candidates == 4 and settings.ngrams == len(model.model.consensus.ngrams_G4) > 0
    assert f"{settings.ngrams:,} n-grams are predicted" in printed
    pictures = [
        scenes / "images" / row["filename"]
        for row in json.loads((scenes / "dataset.json").read_text())["images"][:6]
    ]
    said = model.caption(pictures, n_best=4)
    ids = [[model.vocabulary.encode(one.text) for one in (first, *first.alternatives)] for first in said]
    pixels = model.settings.preprocessing
    features = model.features(np.stack([pixels.apply(open_picture(picture)) for picture in pictures]))
    agreement = model.model.consensus.agreement(features.grid_BNC.mean(1), ids)
    for first, values in zip(said, agreement, strict=True):
        found = [one.log_probability for one in (first, *first.alternatives)]
        scores = [p + settings.weight * a for p, a in zip(found, values, strict=True)]
        assert scores == sorted(scores, reverse=True)


def test_a_number_of_beams_that_a_person_gives_is_the_number_of_candidates(agreed, trained, scenes):
    """One beam is the model's greedy caption, as without consensus."""
    picture = scenes / "images" / json.loads((scenes / "dataset.json").read_text())["images"][0]["filename"]
    with_it, without = load(agreed[0]), load(trained / "best")
    assert with_it.caption(picture, beams=1).text == without.caption(picture, beams=1).text
    assert len(with_it.caption(picture, beams=2, n_best=2).alternatives) == 1
