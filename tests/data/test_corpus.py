"""Corpora on disk: counts, ids and pairs, whatever the size of the parts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.data.corpus import END, count_pairs, count_words, encode_corpus, text_lines
from patchword.errors import ConfigError, DataError

LINES = ["The dog and the cat.", "A dog runs", "", "rare!"]


def test_words_are_ranked_by_count_then_name():
    counted = count_words(LINES)
    assert counted.words[:3] == ("dog", "the", "a") and counted.counts_W[:3].tolist() == [2, 2, 1]
    assert counted.total == 9 and counted.dropped == 0


def test_too_many_distinct_words_cost_the_rarest_and_are_counted():
    counted = count_words(["x " * 30 + "y"] + [f"w{n}" for n in range(50)], most=10)
    assert counted.words[0] == "x" and counted.counts_W[0] == 30
    assert counted.total == 81 and counted.dropped + counted.counts_W.sum() == 81 and counted.dropped > 40


def test_kind_2_a_folder_of_texts_is_not_replaced_by_ids(tmp_path):
    """A run whose `out` is where a person keeps a folder `corpus`."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "novel.txt").write_text("the only copy")
    with pytest.raises(ConfigError, match="holds other files than a corpus"):
        encode_corpus(lambda: LINES, tmp_path / "corpus", minimum_count=2)
    assert (tmp_path / "corpus" / "novel.txt").read_text() == "the only copy"


def test_ids_stand_in_a_file_and_are_used_again(tmp_path):
    calls = []

    def lines():
        calls.append(1)
        return LINES

    corpus = encode_corpus(lines, tmp_path / "corpus", minimum_count=2, key="one")
    assert corpus.words == ("dog", "the")
    assert corpus.ids_P.tolist() == [1, 0, 1, END, 0, END]
    again = encode_corpus(lines, tmp_path / "corpus", minimum_count=2, key="one")
    assert again.words == corpus.words and again.ids_P.tolist() == corpus.ids_P.tolist() and len(calls) == 2
    other = encode_corpus(lines, tmp_path / "corpus", minimum_count=1, key="other")
    assert len(other.words) == 7 and len(calls) == 4


@pytest.mark.parametrize("lines", [[], ["", "  ", "!!!"]])
def test_an_empty_corpus_is_said(tmp_path, lines):
    with pytest.raises(DataError, match="found 0 words"):
        encode_corpus(lambda: lines, tmp_path / "corpus")


def test_a_corpus_of_rare_words_is_said_with_numbers(tmp_path):
    with pytest.raises(DataError, match="9 words, 7 different ones, and 0 occur 5 times or more"):
        encode_corpus(lambda: LINES, tmp_path / "corpus")


def test_text_files_are_streamed_and_named_where_they_are_bad(tmp_path):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("\ufeffone\ntwo\r\n", encoding="utf-8")
    bad.write_bytes(b"fine\n\xff\xfe")
    assert [line.split() for line in text_lines([good])] == [["one"], ["two"]]
    with pytest.raises(DataError, match="bad.txt.*0xff is not UTF-8"):
        list(text_lines([bad]))
    with pytest.raises(DataError, match="none.txt: cannot be read"):
        list(text_lines([tmp_path / "none.txt"]))


def brute(ids, window, contexts):
    found = Counter()
    lines, line = [], []
    for word in ids:
        if word == END:
            lines.append(line)
            line = []
        else:
            line.append(word)
    for words in [*lines, line]:
        for i, word in enumerate(words):
            for j in range(max(0, i - window), min(len(words), i + window + 1)):
                if i != j and words[j] < contexts:
                    found[word, words[j]] += 1
    return found


@given(
    ids=st.lists(st.integers(END, 5), max_size=60),
    window=st.integers(1, 4),
    contexts=st.integers(1, 6),
    part=st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_pairs_counted_in_parts_are_those_of_the_whole(ids, window, contexts, part):
    found = count_pairs(np.array(ids, np.int32), window, contexts, part)
    listed = dict(
        zip(
            zip(found.rows_E.tolist(), found.columns_E.tolist(), strict=True),
            found.counts_E.tolist(),
            strict=True,
        )
    )
    assert listed == brute(ids, window, contexts)


def test_kind_6_a_file_of_the_first_line_on_another_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("a dog".encode("utf-16"))
    with pytest.raises(DataError, match="a.txt: byte 0xff is not UTF-8"):
        list(text_lines([tmp_path / "a.txt"]))
