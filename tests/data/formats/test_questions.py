"""Questions as the literature and people write them, into records and batches."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.data.captions import PixelInputs
from patchword.data.formats.check import examine
from patchword.data.formats.questions import normal_answer, read_questions
from patchword.data.formats.readers import split_records
from patchword.data.pictures import Preprocessing
from patchword.data.question_only import CommonestAnswer
from patchword.data.questions import QuestionData, answer_scores, answerable
from patchword.data.store import pixel_store
from patchword.errors import DataError
from patchword.metrics.answers import vqa_accuracy
from patchword.text.words import Vocabulary

EASY = [
    ["what color is the shape?", "red", 0],
    ["is there a circle?", "no", 0],
    ["what shape is it?", "circle", 7],
]


def easy(folder, content=EASY, answers=("red", "no", "circle")):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.json").write_text(json.dumps(content))
    if answers:
        (folder / "answers.txt").write_text("\n".join(answers) + "\n")
    return folder


def vqa(folder, subtype="train2014", said=None, **changes):
    """Two questions about COCO's picture 9 with the names that VQA v2 gives its files."""
    said = {90: ["Net"] * 7 + ["the net", "two", "a"], 91: ["yes"] * 10} if said is None else said
    asked = [
        {"image_id": 9, "question": "What is this?", "question_id": 90},
        {"image_id": 9, "question": "Is it red?", "question_id": 91},
    ]
    questions = {"data_subtype": subtype, "questions": asked, **changes}
    (folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json").write_text(json.dumps(questions))
    entries = [
        {
            "question_id": number,
            "image_id": 9,
            "question_type": "what is",
            "answers": [{"answer": text, "answer_id": 1} for text in texts],
        }
        for number, texts in said.items()
    ]
    if said:
        (folder / f"v2_mscoco_{subtype}_annotations.json").write_text(
            json.dumps({"annotations": entries, "data_subtype": subtype})
        )
    return folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json"


def test_easy_vqa_as_a_folder_as_a_file_and_with_its_own_splits(tmp_path):
    records = read_questions(easy(tmp_path / "one"))
    assert records == read_questions(tmp_path / "one" / "questions.json")
    first = records[0]
    assert (first.question_id, first.image_id, first.file, first.answers, first.kind, first.split) == (
        0, 0, "0.png", ("red",), "what color", None,
    )  # fmt: skip
    assert [record.kind for record in records] == ["what color", "yes/no", "what shape"]
    for split in ("train", "test"):
        easy(tmp_path / "both" / split)
    both = read_questions(tmp_path / "both")
    assert [record.split for record in both] == ["train"] * 3 + ["test"] * 3 and both[
        3
    ].file == "test/images/0.png"
    assert len({record.question_id for record in both}) == 6


def test_vqa_joins_questions_with_their_ten_answers(tmp_path):
    file = vqa(tmp_path)
    first, second = read_questions(file)
    assert (
        first.file == "train2014/COCO_train2014_000000000009.jpg"
        and first.split == "train"
        and first.kind == "what is"
    )
    assert first.answers == ("net",) * 8 + ("2", "a") and first.answer == "net" and second.answer == "yes"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "v2_mscoco_train2014_annotations.json").rename(elsewhere / "mine.json")
    assert read_questions(file, elsewhere / "mine.json") == [first, second]


def test_vqa_test_questions_need_no_answers_and_a_folder_holds_all_splits(tmp_path):
    vqa(tmp_path)
    test = read_questions(vqa(tmp_path, "test-dev2015", said={}))
    assert (
        test[0].answers == ()
        and test[0].file == "test2015/COCO_test2015_000000000009.jpg"
        and test[0].split == "test"
    )
    with pytest.raises(DataError, match="the id is also that of 'What is this\\?'"):
        read_questions(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_tables(tmp_path, kind):
    rows = [("a.jpg", "Is it, or not?", "yes", "train"), ("b.jpg", "What colour?", "light blue", "val")]
    objects = [dict(zip(("image", "question", "answer", "split"), row, strict=True)) for row in rows]
    file = tmp_path / f"mine.{kind}"
    if kind == "csv":
        file.write_text(
            '\ufeffimage,question,answer,split\na.jpg,"Is it, or not?",yes,train\nb.jpg,What colour?,light blue,val\n'
        )
    else:
        file.write_text("\n".join(map(json.dumps, objects)) if kind == "jsonl" else json.dumps(objects))
    found = [(record.file, record.question, record.answer, record.split) for record in read_questions(file)]
    assert found == rows
    assert [record.question for record in split_records(read_questions(file), "val")] == ["What colour?"]


@pytest.mark.parametrize(
    "content, message",
    [
        ([["what?", "red"]], r"entry 0: expected \[question, answer, image number\], found"),
        ([["what?", "red", True]], "entry 0: expected"),
        ([["what?", "pink", 0]], "entry 0: the answer 'pink' is not one of the 3 in answers.txt"),
        ([["  ", "red", 0]], "entry 0: the question is empty"),
        ([[5, "red", 0]], "entry 0: a question must be a text, found 5"),
        ([], "no usable question was found"),
        ({"images": []}, "found an object with images. Expected easy-VQA"),
    ],
)
def test_faults_of_easy_vqa(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_questions(easy(tmp_path, content))


def test_faults_of_vqa_and_tables(tmp_path):
    with pytest.raises(
        DataError, match="no annotations file v2_mscoco_val2014_annotations.json beside it: name one"
    ):
        read_questions(vqa(tmp_path, "val2014", said={}))
    with pytest.raises(DataError, match=r"questions\[1\]: no annotation answers question 91"):
        read_questions(vqa(tmp_path, "val2014", said={90: ["yes"]}))
    with pytest.raises(DataError, match="1 annotations answer questions that are not in this file \\(92\\)"):
        read_questions(vqa(tmp_path, "val2014", said={90: ["yes"], 91: ["no"], 92: ["no"]}))
    with pytest.raises(DataError, match="data_subtype must say which pictures are meant"):
        read_questions(vqa(tmp_path, "val2014", data_subtype="../../etc"))
    (tmp_path / "mine.csv").write_text("image,caption\na.jpg,x\n")
    with pytest.raises(
        DataError, match="line 1: expected a header with the columns image, question and answer"
    ):
        read_questions(tmp_path / "mine.csv")
    (tmp_path / "mine.csv").write_text("image,question,answer\na.jpg,what?,\n")
    with pytest.raises(DataError, match="line 2: the answer is empty"):
        read_questions(tmp_path / "mine.csv")
    with pytest.raises(DataError, match="nothing.json: does not exist"):
        read_questions(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "said, compared",
    [
        ("Two", "2"),
        ("The  Cat.", "cat"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a", "a"),
        ("black/white", "black white"),
        ("none", "0"),
    ],
)
def test_answers_are_compared_as_vqa_does(said, compared):
    assert normal_answer(said) == compared


@pytest.mark.parametrize("people", [["a"] * 10, ["a"] * 3 + ["b"] * 6 + ["c"], ["a", "b", "b"], ["a"]])
def test_scores_to_learn_are_what_each_answer_would_earn(people):
    for text, score in answer_scores(people).items():
        assert score == pytest.approx(vqa_accuracy({1: people}, {1: text})["VQA_accuracy"].value)


def test_a_list_that_earns_nothing_makes_no_question_answerable(tmp_path):
    first, second = read_questions(vqa(tmp_path))
    assert answerable(first, {"net"}) and answerable(first, {"2"}) and not answerable(first, {"yes"})
    assert answerable(second, {"yes"})


def test_the_commonest_answer_falls_back_from_words_to_kind_to_all():
    guess = CommonestAnswer(
        [
            ("Is it?", "yes/no", "no"),
            ("is it?", "yes/no", "no"),
            ("was it?", "yes/no", "yes"),
            ("who?", "who", "x"),
        ]
    )
    assert [guess.answer("is it?", "yes/no"), guess.answer("was it?", "yes/no")] == ["no", "yes"]
    assert guess.answer("will it?", "yes/no") == "no" and guess.answer("where?", "where") == "no"
    assert CommonestAnswer([]).answer("who?", "who") == ""


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "images").mkdir()
    for number, colour in ((0, "red"), (7, "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "images" / f"{number}.png")
    preprocessing = Preprocessing(size=16)
    return PixelInputs(
        pixel_store(tmp_path / "images", ["0.png", "7.png"], preprocessing, tmp_path / "cache"),
        preprocessing,
        None,
    )


def test_a_batch_holds_each_picture_once(tmp_path, inputs):
    records = read_questions(easy(tmp_path / "easy"))
    vocabulary = Vocabulary.build([record.question for record in records], 1)
    data = QuestionData.build(records, vocabulary, ("no", "circle", "red"), "answer", inputs, 4)
    plan = data.plan(2, 10, np.random.default_rng(0))
    batch = data.batch(plan[0], None)
    assert (
        batch.inputs.pixels_B3HW.shape == (2, 3, 16, 16)
        and batch.picture_count == 2
        and batch.target_count == 3
    )
    by_id = dict(zip(batch.question_ids, batch.answers.tolist(), strict=True))
    assert by_id == {0: 2, 1: 0, 2: 1}
    owners = [batch.image_ids[b] for b in batch.picture_of_row_R.tolist()]
    assert dict(zip(batch.question_ids, owners, strict=True)) == {0: 0, 1: 0, 2: 7}
    assert (
        batch.lengths_R.tolist() == [5] * 3 and (batch.questions_RL[:, 0] == vocabulary.special.start).all()
    )
    soft = QuestionData.build(records, vocabulary, ("no", "circle", "red"), "scores", inputs, 4).batch(
        plan[0], None
    )
    assert torch.equal(soft.answers.argmax(1), batch.answers) and soft.answers.sum().item() == 3


def test_what_no_batch_may_hold_is_said_with_the_image(tmp_path, inputs):
    records = read_questions(easy(tmp_path / "easy"))
    vocabulary = Vocabulary.build([record.question for record in records], 1)
    with pytest.raises(DataError, match="image 7: no answer to 'what shape is it\\?' is among the 2 answers"):
        QuestionData.build(records, vocabulary, ("no", "red"), "answer", inputs, 4)
    odd = read_questions(easy(tmp_path / "odd", [["???", "red", 0]]))
    with pytest.raises(DataError, match="image 0: '\\?\\?\\?' has no word; take question 0 out"):
        QuestionData.build(odd, vocabulary, ("red",), "answer", inputs, 4)


def test_check_lists_everything_that_is_wrong_with_questions(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / "a.png")
    (tmp_path / "mine.csv").write_text(
        "image,question,answer,split\na.png,what "
        "colour?,red,train\na.png,???,red,train\nb.png,what?,pink,val\nb.png,,red,val\n"
    )
    report = examine(tmp_path / "mine.csv")
    found = {finding.kind: finding for finding in report.findings}
    assert {kind for kind, finding in found.items() if finding.stops} == {
        "no-words",
        "empty-question",
        "missing",
    }
    assert (
        "1 question of val has only answers that no training question has (pink)"
        in found["unknown-answer"].message
    )
    assert report.to_text().startswith(
        f"{tmp_path / 'mine.csv'}: 2 pictures with 3 questions; splits: train 1, val 1"
    )
    healthy = easy(tmp_path / "easy")
    (healthy / "images").mkdir()
    for number in (0, 7):
        Image.new("RGB", (40, 40), ("red", "blue")[number % 2]).save(healthy / "images" / f"{number}.png")
    assert not examine(healthy).stops and examine(healthy).texts == "questions"
    (tmp_path / "one.csv").write_text("image,question,answer\na.png,what colour?,red\na.png,which?,red\n")
    assert "one-answer" in {finding.kind for finding in examine(tmp_path / "one.csv").findings}
