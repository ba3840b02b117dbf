"""Kind 6: the cause that a message names is the true one: encodings and scripts of annotation files."""

import json

import pytest

from patchword.data.formats.check import examine
from patchword.data.formats.readers import read_captions
from patchword.errors import DataError
from patchword.text.words import Vocabulary, written_without_spaces

CHINESE = [
    "\u4e00\u53ea\u72d7\u5728\u8dd1",
    "\u4e00\u4e2a\u5973\u4eba\u5728\u5403\u996d",
    "\u4e24\u53ea\u732b",
]
JAPANESE = ["\u72ac\u304c\u8d70\u3063\u3066\u3044\u308b", "\u732b\u304c\u5bdd\u3066\u3044\u308b"]
RUSSIAN = ["\u0441\u043e\u0431\u0430\u043a\u0430 \u0431\u0435\u0436\u0438\u0442"]
FRENCH = ["un chien court \u00e0 c\u00f4t\u00e9", "une fen\u00eatre ferm\u00e9e"]
KOREAN = ["\uac1c\uac00 \ub2ec\ub9b0\ub2e4"]


def table(path, captions, encoding):
    rows = "".join(f"{number}.jpg,{caption}\n" for number, caption in enumerate(captions))
    path.write_bytes(("image,caption\n" + rows).encode(encoding))
    return path


@pytest.mark.parametrize(
    ("captions", "encoding", "guess"),
    [
        (CHINESE, "gb18030", "it may be GB 18030"),
        (JAPANESE, "shift_jis", "it may be Shift JIS"),
        (RUSSIAN, "cp1251", "it may be Windows-1251"),
        (FRENCH, "cp1252", "it may be Windows-1252"),
        (["a dog runs on grass"], "utf-16-le", "it may be UTF-16-LE without its mark"),
        (["a dog runs on grass"], "utf-16-be", "it may be UTF-16-BE without its mark"),
    ],
)
def test_kind_6_an_encoding_that_is_guessed_is_called_a_guess(tmp_path, captions, encoding, guess):
    with pytest.raises(DataError, match=guess) as refused:
        read_captions(table(tmp_path / "mine.csv", captions, encoding))
    assert "this is a guess" in str(refused.value) and "UTF-8" in str(refused.value)


def test_kind_6_what_is_no_text_is_not_called_a_spreadsheet(tmp_path):
    (tmp_path / "mine.csv").write_bytes(b"\xff\xfe\x00\xd8\x00\x00\x01")
    with pytest.raises(DataError, match="begins as UTF-16 does and is none"):
        read_captions(tmp_path / "mine.csv")
    with pytest.raises(DataError, match="is UTF-16 .often 'Unicode text' of a spreadsheet"):
        read_captions(table(tmp_path / "mine.csv", ["a dog"], "utf-16"))


@pytest.mark.parametrize("captions", [CHINESE, JAPANESE])
def test_kind_6_captions_without_spaces_are_told_to_be_split_by_characters(captions):
    with pytest.raises(DataError, match="data.splitter=characters"):
        Vocabulary.build(captions, minimum_count=2)
    assert Vocabulary.build(captions, minimum_count=2, splitter="characters").words


@pytest.mark.parametrize("captions", [RUSSIAN, FRENCH, KOREAN, ["a dog", "a cat"]])
def test_kind_6_captions_with_spaces_are_not(captions):
    with pytest.raises(DataError, match="lower minimum_count or add captions"):
        Vocabulary.build(captions, minimum_count=3)
    assert not any(map(written_without_spaces, captions))


def test_kind_6_check_points_captions_without_spaces_out(tmp_path):
    found = examine(table(tmp_path / "mine.csv", CHINESE, "utf-8"), tmp_path).findings
    (said,) = [finding for finding in found if finding.kind == "no-spaces"]
    assert "data.splitter=characters" in said.message and not said.stops
    english = examine(table(tmp_path / "mine.csv", ["a dog runs"], "utf-8"), tmp_path).findings
    assert "no-spaces" not in {finding.kind for finding in english}


def test_kind_6_scores_of_such_captions_say_which_tokenizer_they_need(patchword, tmp_path):
    wanted = {str(number): [caption] for number, caption in enumerate(CHINESE)}
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    (tmp_path / "said.json").write_text(json.dumps({number: texts[0] for number, texts in wanted.items()}))
    call = ("score", tmp_path / "said.json", tmp_path / "wanted.json", "--metrics", "bleu")
    assert "score with --tokenizer char" in patchword(*call)[1]
    assert "score with --tokenizer char" not in patchword(*call, "--tokenizer", "char")[1]
