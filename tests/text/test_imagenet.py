import re

import pytest

from patchword.text.imagenet import common_words, imagenet_classes

KNOWN = {
    0: "tench",
    282: "tiger cat",
    285: "Egyptian cat",
    657: "missile",
    670: "motor scooter",
    812: "space shuttle",
}
KNOWN |= {872: "tripod", 967: "espresso", 968: "cup", 985: "daisy"}


def test_the_classes_stand_in_the_order_of_the_classifiers_outputs():
    classes = imagenet_classes()
    assert len(classes) == 1000 == len({one.name for one in classes})
    assert {number: classes[number].name for number in KNOWN} == KNOWN


@pytest.mark.parametrize(
    "word, numbers",
    [
        ("cat", range(281, 286)),
        ("bear", range(294, 298)),
        ("snake", range(52, 69)),
        ("butterfly", range(321, 327)),
    ],
)
def test_what_captions_do_not_tell_apart_has_one_word(word, numbers):
    assert common_words()[word] == tuple(numbers)


def test_every_breed_of_dogs_is_a_dog():
    assert set(range(151, 269)) <= set(common_words()["dog"])


def test_every_class_has_one_plain_word():
    words = common_words()
    assert sorted(number for numbers in words.values() for number in numbers) == list(range(1000))
    assert all(re.fullmatch(r"[a-z-]+( [a-z]+)?", word) for word in words)
