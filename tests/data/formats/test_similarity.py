"""Files of judged pairs, as they are published and as people make them."""

import pytest

from patchword.data.formats.similarity import JudgedPair, find_set, is_concrete, read_concreteness, read_pairs
from patchword.errors import DataError

PAIRS = [JudgedPair("dog", "cat", 7.4), JudgedPair("sun", "sunlight", 50.0)]


def written(tmp_path, text):
    path = tmp_path / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "   "])
@pytest.mark.parametrize("header", ["", "Word 1{0}Word 2{0}Human (mean)\n", "# a remark\n"])
def test_separators_and_headers(tmp_path, separator, header):
    if header.startswith("Word") and not separator.strip(" "):
        header = "word1{0}word2{0}score\n"
    lines = (
        separator.join(["Dog", "cat", "7.4"]) + "\r\n\n" + separator.join(["sun", "sunlight", "50"]) + "\n"
    )
    assert read_pairs(written(tmp_path, header.format(separator) + lines)) == PAIRS


def test_simlex_as_it_is_published(tmp_path):
    header = "word1\tword2\tPOS\tSimLex999\tconc(w1)\tconc(w2)\tconcQ\tAssoc(USF)\tSimAssoc333\tSD(SimLex)\n"
    found = read_pairs(written(tmp_path, header + "old\tnew\tA\t1.58\t2.72\t2.81\t2\t7.25\t1\t0.41\n"))
    assert found == [JudgedPair("old", "new", 1.58, (2.72, 2.81))]


def test_the_lemma_form_of_men_loses_its_parts_of_speech(tmp_path):
    assert read_pairs(written(tmp_path, "sun-n sunlight-n 50.0\nrun-v dog-n 3\n"))[1] == JudgedPair(
        "run", "dog", 3.0
    )
    assert read_pairs(written(tmp_path, "t-shirt jeans 9\nx-n y 3\n"))[0].first == "t-shirt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no pairs"),
        ("dog cat\n", "is no pair with a score"),
        ("dog\tcat\t7\nsun\tlight\tbright\nx\ty\t1\n", "line 2: expected two words and a number"),
        ("dog\tcat\t7\nsun\t\t3\nx\ty\t1\n", "line 2: expected two words"),
        ("dog\tcat\tnan\ndog\tcat\t1\ndog\tcat\tinf\n", "line 3|line 1"),
        ("one\ttwo\tscore\n", "a header and no pairs"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path, text))


def test_sets_are_found_by_their_published_names(tmp_path):
    path = tmp_path / "EN-MEN-TR-3k.txt"
    path.write_text("a\tb\t1\n")
    assert find_set("men", tmp_path) == path and find_set(str(path), None) == path
    with pytest.raises(DataError, match="simlex were not found, .* has none of EN-SIMLEX-999.txt"):
        find_set("simlex", tmp_path)
    with pytest.raises(DataError, match="no --folder is given"):
        find_set("men", None)
    with pytest.raises(DataError, match="no file other.txt, and no set"):
        find_set("other.txt", tmp_path)


def test_concreteness_of_brysbaert_and_of_two_columns(tmp_path):
    brysbaert = "Word\tBigram\tConc.M\tConc.SD\nDog\t0\t4.85\t0.5\nidea\t0\t1.61\t1\n"
    assert read_concreteness(written(tmp_path, brysbaert)) == {"dog": 4.85, "idea": 1.61}
    scores = read_concreteness(written(tmp_path, "dog,4.85\nidea,1.61\n"))
    judged = [
        JudgedPair("dog", "dog", 1),
        JudgedPair("idea", "idea", 1),
        JudgedPair("dog", "idea", 1),
        JudgedPair("dog", "x", 1),
    ]
    assert [is_concrete(pair, scores, 3.0) for pair in judged] == [True, False, None, None]
    with pytest.raises(DataError, match="line 2"):
        read_concreteness(written(tmp_path, "dog,4.85\nidea\n"))
