"""Tokens by where they stand, and from one splitting to another."""

from patchword.text.spans import overlapping, spans
from patchword.text.words import Vocabulary

TEXT = "The dog's ball, a T-shirt!"


def test_words_are_found_in_the_text():
    vocabulary = Vocabulary.build([TEXT], 1)
    found = spans(vocabulary, TEXT, 99)
    assert [TEXT[begin:end] for begin, end in found] == ["The", "dog", "'s", "ball", "a", "T-shirt"]
    assert spans(vocabulary, TEXT, 2) == found[:2]


def test_a_word_that_was_changed_is_empty_and_the_next_is_found():
    vocabulary = Vocabulary.build(["x"], 1)
    text = "Re\u0301e dog"  # the accent is put on its letter before words are split
    assert [text[begin:end] for begin, end in spans(vocabulary, text, 9)] == ["", "dog"]


def test_characters_of_scripts_without_spaces():
    vocabulary = Vocabulary.build(["\u732b"], 1, "characters")
    assert spans(vocabulary, "\u732b\u3001\u72ac2", 9) == [(0, 1), (2, 3), (3, 4)]


def test_tokens_go_to_those_with_which_they_share_most_characters():
    assert overlapping([(0, 3), (4, 10), (12, 13), (20, 25)], [(0, 2), (2, 6), (6, 11), (12, 13)]) == [
        0,
        2,
        3,
        -1,
    ]
    assert overlapping([(0, 4)], [(0, 2), (2, 4)]) == [0]
    assert overlapping([(0, 4), (5, 5)], []) == [-1, -1] and overlapping([], [(0, 1)]) == []
