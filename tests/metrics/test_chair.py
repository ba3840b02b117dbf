import pytest

from patchword.errors import DataError
from patchword.metrics.chair import chair, mentioned_objects

SYNONYMS = {"dog": "dog", "puppy": "dog", "hot dog": "hot dog", "hot dogs": "hot dog", "table": "table"}


def test_longest_phrase_first():
    assert mentioned_objects("a puppy eats hot dogs on a table".split(), SYNONYMS) == [
        "dog",
        "hot dog",
        "table",
    ]


def test_hand_worked_numbers():
    predictions = {1: "a puppy on a table".split(), 2: "a hot dog".split(), 3: "nothing here".split()}
    found = chair(predictions, {1: {"dog"}, 2: {"hot dog"}, 3: set()}, SYNONYMS)
    assert found["CHAIRs"].value == pytest.approx(1 / 3) and found["CHAIRi"].value == pytest.approx(1 / 3)
    assert found["CHAIRi"].per_item == {1: 0.5, 2: 0.0, 3: 0.0}


def test_errors():
    with pytest.raises(DataError, match="image 5 has no object annotations"):
        chair({5: ["dog"]}, {}, SYNONYMS)
    with pytest.raises(DataError, match="no predictions"):
        chair({}, {}, SYNONYMS)
