"""Vocabularies: splitting, ids, and the way back."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.errors import DataError, ModelError
from patchword.ids import SpecialIds
from patchword.text.subwords import Subwords, vocabulary_from_json
from patchword.text.words import Vocabulary, join_characters, join_english, split_characters, split_english

CAPTIONS = ["A dog runs.", "The dog's ball", "A cat and a dog"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, in a T-shirt, doesn't run .", ["a", "man", "in", "a", "t-shirt", "doesn't", "run"]),
        ("the dog 's ball", ["the", "dog", "'s", "ball"]),
        ("The dog's ball", ["the", "dog", "'s", "ball"]),
        ("THE DOG\u2019S BALL", ["the", "dog", "'s", "ball"]),
        ("'quoted' words -- and (brackets)", ["quoted", "words", "and", "brackets"]),
        ("two-year-old's 3.5 m", ["two-year-old", "'s", "3", "5", "m"]),
        ("cafe\u0301 at noon", ["café", "at", "noon"]),
        ("under_score", ["under", "score"]),
        ("... !?", []),
    ],
)
def test_english(caption, words):
    assert split_english(caption) == words


def test_english_join_attaches_the_possessive():
    assert join_english(["the", "dog", "'s", "ball"]) == "the dog's ball"


@pytest.mark.parametrize(
    ("caption", "units"),
    [
        ("一只狗，在公园。", ["一", "只", "狗", "在", "公", "园"]),
        ("ＡＢＣ商店 12 号 iPhone", ["abc", "商", "店", "12", "号", "iphone"]),
        ("กำลัง", list(["กํ", "า", "ลั", "ง"])),
        ("🐶!", []),
    ],
)
def test_characters(caption, units):
    assert split_characters(caption) == units


def test_characters_join_keeps_latin_words_apart():
    assert join_characters(["狗", "abc", "12", "号"]) == "狗abc 12号"
    assert split_characters(join_characters(["狗", "abc", "12", "号"])) == ["狗", "abc", "12", "号"]


def test_layout_counts_and_order():
    vocabulary = Vocabulary.build(CAPTIONS, minimum_count=1)
    assert vocabulary.words == (
        "a",
        "dog",
        "'s",
        "and",
        "ball",
        "cat",
        "runs",
        "the",
    )  # by count, then alphabet
    assert vocabulary.size == 12 and vocabulary.special == SpecialIds(pad=0, start=10, end=11, unknown=9)
    assert vocabulary.encode("a dog") == [1, 2]
    frequent = Vocabulary.build(CAPTIONS, minimum_count=2)
    assert frequent.words == ("a", "dog") and frequent.encode("A dog sleeps") == [1, 2, 3]
    assert frequent.special.unknown == 3


def test_build_reads_any_iterable_and_does_not_depend_on_order():
    assert Vocabulary.build(iter(CAPTIONS), 1) == Vocabulary.build(reversed(CAPTIONS), 1)


def test_decode_stops_at_the_end_and_drops_padding_and_start():
    vocabulary = Vocabulary.build(CAPTIONS, minimum_count=1)
    start, end, unknown = vocabulary.special.start, vocabulary.special.end, vocabulary.special.unknown
    ids = [start, *vocabulary.encode("the dog's ball"), unknown, 0, end, 1, 1]
    assert vocabulary.decode(ids) == "the dog's ball <unknown>"
    assert vocabulary.tokens(ids) == ["the", "dog", "'s", "ball", "<unknown>"]
    assert vocabulary.decode([]) == vocabulary.decode([end]) == ""


def test_unknown_words_are_named_once():
    vocabulary = Vocabulary.build(CAPTIONS, minimum_count=1)
    assert vocabulary.unknown_words("the dog's ball") == []
    assert vocabulary.unknown_words("The zebra, a zebra; Xanthippe!") == ["zebra", "xanthippe"]


@pytest.mark.parametrize("number", [-1, 12])
def test_foreign_ids_are_refused(number):
    with pytest.raises(
        DataError,
        match=f"token id {number} is outside the vocabulary of 12: the ids were made with another vocabulary",
    ):
        Vocabulary.build(CAPTIONS, minimum_count=1).decode([number])


def test_json_round_trip():
    vocabulary = Vocabulary.build(["一只狗", "一只猫"], minimum_count=2, splitter="characters")
    again = vocabulary_from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary and again.splitter == "characters" and again.minimum_count == 2
    assert again.decode(again.encode("一只")) == "一只"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs splitter, minimum_count and a list of words, found nothing"),
        (
            {"words": ["a", 3], "splitter": "english", "minimum_count": 1},
            "a list of words, found words, splitter, minimum_count",
        ),
        ({"words": ["a", "b", "a"], "splitter": "english", "minimum_count": 1}, "holds 'a' twice"),
        (
            {"words": ["a"], "splitter": "syllables", "minimum_count": 1},
            "splits by 'syllables', expected one of english, characters",
        ),
        ({"splitter": "subwords"}, "a subword vocabulary needs its tokenizer, found splitter"),
        (
            {"splitter": "subwords", "tokenizer": {"version": "1.0"}},
            "the tokenizer of the subword vocabulary cannot be read",
        ),
    ],
)
def test_broken_vocabularies_are_refused(content, message):
    with pytest.raises(ModelError, match=message):
        vocabulary_from_json(content)


def test_building_from_too_little_or_by_an_unknown_splitter():
    with pytest.raises(
        DataError, match=r"no word occurs 9 times \(the most frequent one 3 times\): lower minimum_count"
    ):
        Vocabulary.build(CAPTIONS, minimum_count=9)
    with pytest.raises(
        DataError, match="captions cannot be split by 'syllables', expected one of english, characters"
    ):
        Vocabulary.build(CAPTIONS, splitter="syllables")


LETTERS = st.sampled_from("abcXYZ012 .,'-\u2019\u00e9\u72d7\u732b")


@settings(max_examples=60, deadline=None)
@given(
    captions=st.lists(st.text(LETTERS, min_size=1, max_size=20), min_size=1, max_size=4),
    splitter=st.sampled_from(["english", "characters"]),
)
def test_what_a_vocabulary_knows_survives_the_round_trip(captions, splitter):
    captions = [*captions, "known"]
    vocabulary = Vocabulary.build(captions, minimum_count=1, splitter=splitter)
    for caption in captions:
        ids = vocabulary.encode(caption)
        assert vocabulary.special.unknown not in ids
        assert vocabulary.encode(vocabulary.decode(ids)) == ids


@pytest.fixture
def clip_files(tmp_path):
    """CLIP's two files with sixteen pieces: a few letters, and merges up to "cat" and "dog"."""
    pieces = [
        "a",
        "c",
        "d",
        "g",
        "o",
        "t",
        "a</w>",
        "t</w>",
        "g</w>",
        "o</w>",
        "ca",
        "do",
        "cat</w>",
        "dog</w>",
        "s</w>",
        "s",
    ]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nd o\nca t</w>\ndo g</w>\n")
    return tmp_path


def test_clip_subwords(clip_files):
    subwords = Subwords.from_folder(clip_files)
    assert subwords.size == 16 + 4 and subwords.special == SpecialIds(pad=0, start=18, end=19, unknown=17)
    assert subwords.encode("A  Cat") == [7, 13]  # the tokenizer's ids plus one
    assert subwords.tokens(subwords.encode("dog cats")) == ["dog</w>", "ca", "t", "s</w>"]
    assert subwords.decode([18, *subwords.encode("a dog cats"), 17, 19, 3]) == "a dog cats"
    with pytest.raises(DataError, match="token id 20 is outside the vocabulary of 20"):
        subwords.decode([20])


def test_subwords_travel_in_one_json(clip_files):
    subwords = Subwords.from_folder(clip_files)
    again = vocabulary_from_json(json.loads(json.dumps(subwords.to_json())))
    assert isinstance(again, Subwords) and again.size == subwords.size and again.words == subwords.words
    assert again.encode("a dog cats") == subwords.encode("a dog cats")


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(
        ModelError,
        match="holds no tokenizer that can be read .* Expected tokenizer.json, or vocab.json and merges.txt",
    ):
        Subwords.from_folder(tmp_path)


def test_text_and_data_need_no_torch():
    modules = (
        "patchword.text.words, patchword.text.subwords, patchword.data.formats.check, patchword.data.scenes"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; assert 'torch' not in sys.modules"], check=True
    )
