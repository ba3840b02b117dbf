"""GLUE, SWAG and SQuAD as they are published, and what is said of files that are not."""

import json

import pytest

from patchword.data.formats.sentence_tasks import (
    Continuation,
    SentenceRow,
    SpanQuestion,
    read_glue,
    read_squad,
    read_swag,
)
from patchword.errors import DataError


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "data.tsv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("sentence\tlabel\nit 's \"fun \t1\n", SentenceRow("it 's \"fun", None, "1")),
        (
            "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n",
            SentenceRow("A.", "B.", "not_entailment"),
        ),
        (
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
            "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t5.000\n",
            SentenceRow("A plane.", "An air plane.", "5.000"),
        ),
        (
            "index\tquestion\tsentence\tlabel\n0\tWhat?\tThis.\tentailment\n",
            SentenceRow("What?", "This.", "entailment"),
        ),
        ("index\tsentence\n0\tno label here\n", SentenceRow("no label here", None, None)),
        ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA\tB\n", SentenceRow("A", "B", "1")),
    ],
    ids=["SST-2", "RTE", "STS-B", "QNLI", "test part", "MRPC"],
)
def test_glue(file, text, row):
    assert read_glue(file(text)) == [row]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("sentence\tlabel\n", "a header and no rows"),
        ("a\tb\n1\t2\n", "found the columns a, b; expected one of sentence"),
        ("sentence\tlabel\nfine\t1\nno label\n", "line 3: 1 cells where the header has 2"),
    ],
)
def test_what_is_no_glue_is_said(file, text, message):
    with pytest.raises(DataError, match=message):
        read_glue(file(text))


SWAG = {
    "sent1": "He opens the door.",
    "sent2": "He",
    **{f"ending{n}": f"goes {n}." for n in range(4)},
    "label": 2,
}
READ = Continuation("He opens the door. He", ("goes 0.", "goes 1.", "goes 2.", "goes 3."), 2)


def test_swag_as_lines_list_and_csv(file):
    lines = json.dumps(SWAG) + "\n\n" + json.dumps({**SWAG, "label": -1}) + "\n"
    assert read_swag(file(lines)) == [READ, READ._replace(label=None)]
    assert read_swag(file(json.dumps([SWAG]))) == [READ]
    table = ",video-id,startphrase,ending0,ending1,ending2,ending3,label\n"
    assert read_swag(file(table + '0,x,"He opens the door. He",goes 0.,goes 1.,goes 2.,goes 3.,2\n')) == [
        READ
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ending3": ""}, "line 1: expected startphrase"), ({"label": 7}, "label is 7, expected 0 to 3")],
)
def test_what_is_no_swag_is_said(file, change, message):
    with pytest.raises(DataError, match=message):
        read_swag(file(json.dumps({**SWAG, **change})))
    with pytest.raises(DataError, match="has no rows"):
        read_swag(file("startphrase,ending0\n"))


def squad(start=4, text="red", **more):
    asked = {
        "id": "q1",
        "question": "What colour?",
        "answers": [{"answer_start": start, "text": text}],
        **more,
    }
    return json.dumps({"data": [{"paragraphs": [{"context": "The red dog.", "qas": [asked]}]}]})


def test_squad(file):
    found = SpanQuestion("q1", "The red dog.", "What colour?", ((4, 7),))
    assert read_squad(file(squad())) == [found]
    assert read_squad(file(squad(is_impossible=True))) == [found._replace(answers=())]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (squad(start=5), "question q1: the answer 'red' does not stand at character 5"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "entry 0 lacks 'context'"),
        ("[]", "expected an object with a list `data`"),
        ('{"data": []}', "has no questions"),
    ],
)
def test_what_is_no_squad_is_said(file, text, message):
    with pytest.raises(DataError, match=message):
        read_squad(file(text))
