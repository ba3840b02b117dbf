from patchword.text.concepts import caption_words

CAPTIONS = [
    "A brown dog runs through the grass .",
    "The dog is running on grass with a red ball",
    "A man in a red shirt sits on the bench",
    "Two children are playing in a brown house and the man runs",
    "a woman in a red shirt is running past a brown building",
    "a dog sits near the red building",
]


def test_nouns_and_adjectives_are_taken_and_verbs_left():
    words = caption_words(CAPTIONS, least=1)
    assert {"dog", "grass", "red", "brown", "man", "shirt", "bench", "children", "ball"} <= set(words)
    assert not {"runs", "running", "sits", "playing", "the", "is", "through"} & set(words)


def test_the_most_frequent_come_first_and_rare_ones_not_at_all():
    words = caption_words(CAPTIONS, least=3)
    assert words[0] == "red"
    assert "bench" not in words
    assert caption_words([]) == []
