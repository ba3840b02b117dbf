"""What a person is told of a text that a model does not read whole."""

import pytest

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
