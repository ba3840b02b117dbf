import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchword.text.ptb import shifting_captions, tokenize

KITS = Path(__file__).parents[1] / "data" / "metrics"


def tokens(*captions: str) -> list[str]:
    return [" ".join(words) for words in tokenize(captions)]


def test_hand_written_texts_equal_the_java_tokenizer() -> None:
    cases = json.loads((KITS / "tokens.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) > 150
    for text, expected in cases:
        assert tokenize([text, "x"])[0] == expected, text


def test_every_code_point_that_is_no_letter_equals_the_java_tokenizer() -> None:
    table = json.loads((KITS / "unicode.json").read_text(encoding="utf-8"))
    for char, (kind, beside_letters) in table.items():
        alone = tokenize([char])[0]
        inside = tokenize([f"a{char}b"])[0]
        assert (len(inside) > 1) == (beside_letters == "split"), hex(ord(char))
        if kind == "self":
            assert alone == [char], hex(ord(char))
        elif kind == "lower":
            assert alone == [char.lower()], hex(ord(char))
        elif kind == "dropped":
            assert alone == [], hex(ord(char))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A black-and-white photo of a bird's-eye view.", "a black-and-white photo of a bird 's eye view"),
        ("He doesn't know; they CAN'T.", "he does n't know they ca n't"),
        ("A street (busy) [two] {big}", "a street -lrb- busy -rrb- -lsb- two -rsb- -lcb- big -rcb-"),
        ("Wow!!! Really? Yes!", "wow !!! really yes"),
        ("Mr. Smith on Main St. at 5 p.m.", "mr. smith on main st. at 5 p.m."),
        ("It costs $5 or £10, 50% off", "it costs $ 5 or # 10 50 % off"),
        ("sits.The next", "sits.the next"),
        ("A dog \U0001f600 plays\U0001f436with", "a dog plays with"),
        ("gonna cannot", "gon na can not"),
        ("", ""),
        ("...", ""),
    ],
)
def test_rules_that_captions_meet(caption: str, expected: str) -> None:
    assert tokens(caption) == [expected]


def test_seventeen_punctuation_tokens_go_and_other_signs_stay() -> None:
    assert tokens("'' ' `` ` . ? ! , : - -- ... ;") == [""]
    assert tokens("-LRB- -RRB- -LCB- -RCB-") == ["-lrb- -rrb- -lcb- -rcb-"]
    assert tokens("& / * + = # % @ _ ~ ^ |") == ["& / * + = # % @ _ ~ ^ |"]


@pytest.mark.parametrize(
    ("caption", "following", "expected"),
    [
        ("a sign with the letter P.", "A dog", "a sign with the letter p"),
        ("a sign with the letter P.", "a dog", "a sign with the letter p."),
        ("a new piece of art.", "2 men", "a new piece of art."),
        ("a new piece of art.", "men", "a new piece of art"),
        ("he is no.", "5 dogs", "he is no."),
    ],
)
def test_the_next_caption_can_decide_about_the_last_dot(caption: str, following: str, expected: str) -> None:
    assert tokens(caption, following)[0] == expected


def test_fractions_and_telephone_numbers_are_one_token() -> None:
    assert tokenize(["22 3/4 street", "call (555) 555-1212 now"]) == [
        ["22\u00a03/4", "street"],
        ["call", "-lrb-555-rrb-\u00a0555-1212", "now"],
    ]


@pytest.mark.parametrize("char", ["\r", "\v", "\f", "\u2028", "\u2029"])
def test_line_breaking_characters_shift_nothing(char: str) -> None:
    captions = [f"a red{char}bus", "a dog", "a cat"]
    assert tokens(*captions) == ["a red bus", "a dog", "a cat"]
    assert shifting_captions(captions) == [0]


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_has_tokens_without_spaces_in_lower_case(captions: list[str]) -> None:
    result = tokenize(captions)
    assert len(result) == len(captions)
    for words in result:
        for word in words:
            assert word and " " not in word
            assert not any(unicodedata.category(char) == "Cs" for char in word)


@given(
    st.lists(
        st.sampled_from(
            "a man dogs running, near the beach! t-shirt Mr. it's can't \u00e9t\u00e9 3.5".split()
        ),
        max_size=12,
    )
)
def test_memory_changes_nothing(words: list[str]) -> None:
    caption = " ".join(words)
    assert tokenize([caption]) == tokenize([caption, caption])[:1] == tokenize([caption, "x"])[:1]
