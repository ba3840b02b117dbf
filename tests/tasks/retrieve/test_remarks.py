"""What a person is told of a text that a model does not read whole."""

import numpy as np
import pytest

import patchword
from patchword.errors import ConfigError, DataError, ModelError
from patchword.tasks.align.model import load_alignment
from patchword.tasks.retrieve.load import load_two_towers


@pytest.mark.parametrize(
    "load", [lambda: load_two_towers("laps", "cpu"), lambda: load_alignment("laps", "cpu")]
)
def test_unknown_words_and_cut_texts_are_said(load):
    model = load()
    assert model.remarks("two dogs in snow") == []
    assert model.remarks("a xylophonist and a dog") == ["the model does not know: xylophonist"]
    (said,) = model.remarks("a dog in snow " * 40)
    assert said.startswith("the text has 160 words and the model reads ") and said.endswith(" are left out")


def test_kind_10_one_text_is_not_read_letter_by_letter_and_no_text_is_said(towers):
    from patchword.tasks.caption.options import DecodingOptions

    model = load_two_towers(towers, "cpu")
    picture = np.zeros((8, 8, 3), np.uint8)
    for texts in ("red ball", b"red ball", None, 3, {"red": 1}):
        with pytest.raises(DataError, match="expected a list of texts, found"):
            model.embed_texts(texts)
        with pytest.raises(DataError, match="expected a list of texts, found"):
            model.label([picture], texts)
    for text in (None, 3, b"red", ["red"]):
        with pytest.raises(DataError, match="expected a text, found"):
            model.embed_texts(["red", text])
        with pytest.raises(DataError, match="expected a text, found"):
            model.label([picture], ["red", text])
    assert len(model.embed_texts(np.array(["red", "blue"]))) == len(model.embed_texts(("red", "blue"))) == 2
    with pytest.raises(ConfigError, match=r"give words in brackets, \[word\]"):
        DecodingOptions(mention="dog")
    for name in (None, 3):
        with pytest.raises(ModelError, match="expected the name or the folder of a model"):
            patchword.load(name)
