"""Predictions and references in the layouts that other programs write, through `patchword score` and
`evaluate`."""

import csv
import json

import pytest

WANTED = {"7": ["a dog runs", "a brown dog"], "8": ["a cat sits", "a cat on a mat"]}
SAID = {"7": "a dog is running", "8": "a cat sits on a mat"}


def coco(folder, names=("one.jpg", "two.jpg")):
    """References whose pictures have the ids 7 and 8 and these file names."""
    images = [{"id": int(image), "file_name": name} for image, name in zip(WANTED, names, strict=True)]
    rows = [
        {"image_id": int(image), "caption": text, "id": k}
        for k, (image, texts) in enumerate(WANTED.items())
        for text in texts
    ]
    path = folder / "captions_val.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path


def as_results(path, names):
    path.write_text(json.dumps([{"image_id": name, "caption": SAID[image]} for image, name in names.items()]))


def as_object(path, names):
    path.write_text(json.dumps({name: SAID[image] for image, name in names.items()}))


def as_object_of_lists(path, names):
    path.write_text(json.dumps({name: [{"caption": SAID[image]}] for image, name in names.items()}))


def as_wrapped_list(path, names):
    path.write_text(
        json.dumps({"annotations": [{"id": name, "caption": SAID[image]} for image, name in names.items()]})
    )


def as_lines(path, names):
    path.write_text(
        "".join(
            json.dumps({"image_id": name, "caption": SAID[image]}) + "\n" for image, name in names.items()
        )
    )


def as_csv(path, names):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("image", "caption", "score"), *((name, SAID[image], "-1.5") for image, name in names.items())]
        )


def as_tabs(path, names):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows(
            [("filepath", "title"), *((name, SAID[image]) for image, name in names.items())]
        )


LAYOUTS = {
    "results.json": as_results,
    "object.json": as_object,
    "lists.json": as_object_of_lists,
    "wrapped.json": as_wrapped_list,
    "lines.jsonl": as_lines,
    "table.csv": as_csv,
    "tabs.tsv": as_tabs,
}


def scores(patchword, predictions, references, tmp_path, *options):
    out = tmp_path / f"scores-{predictions.name}.json"
    status, said, err = patchword(
        "score", predictions, references, "--metrics", "bleu,cider", "--out", out, "--overwrite", *options
    )
    assert status == 0, err
    return json.loads(out.read_text())["corpus"], said


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_predictions_gives_the_same_scores(patchword, tmp_path, name):
    references = coco(tmp_path)
    as_results(tmp_path / "plain.json", {"7": 7, "8": 8})
    expected, _ = scores(patchword, tmp_path / "plain.json", references, tmp_path)
    LAYOUTS[name](tmp_path / name, {"7": "7", "8": "8"})
    assert scores(patchword, tmp_path / name, references, tmp_path)[0] == expected


@pytest.mark.parametrize(
    ("files", "typed"),
    [
        (("one.jpg", "two.jpg"), ("photos/one.jpg", "photos/two.jpg")),
        (("one.jpg", "two.jpg"), ("C:\\photos\\one.jpg", "C:\\photos\\two.jpg")),
        (("a/x.jpg", "b/x.jpg"), ("val/a/x.jpg", "val/b/x.jpg")),
        (("nowhere.jpg", "else.jpg"), ("shots/7.png", "shots/8.png")),
        (("p.jpg", "q.jpg"), ("COCO_val2014_000000000007.jpg", "COCO_val2014_000000000008.jpg")),
        (("one.jpg", "two.jpg"), ("one", "two")),
    ],
)
def test_captions_named_by_their_picture_meet_their_references(patchword, tmp_path, files, typed):
    references = coco(tmp_path, files)
    as_results(tmp_path / "plain.json", {"7": 7, "8": 8})
    expected, _ = scores(patchword, tmp_path / "plain.json", references, tmp_path)
    as_csv(tmp_path / "named.csv", dict(zip(WANTED, typed, strict=True)))
    found, said = scores(patchword, tmp_path / "named.csv", references, tmp_path)
    assert found == expected and "2 captions belong to the references by the name of their picture" in said


def test_what_caption_writes_can_be_scored(patchword, photos, tmp_path):
    (photos / "broken.jpg").unlink()
    table = tmp_path / "references.csv"
    table.write_text("image,caption\nred.png,a red square\nbl\u00e5.png,a blue square\n", encoding="utf-8")
    assert patchword("caption", photos, "--out", tmp_path / "said.csv", "--device", "cpu")[0] == 0
    status, said, err = patchword("score", tmp_path / "said.csv", table, "--metrics", "bleu")
    assert status == 0 and "2 images" in said, err


def test_a_name_that_fits_two_pictures_is_refused(patchword, tmp_path):
    references = coco(tmp_path, ("a/x.jpg", "b/x.jpg"))
    as_csv(tmp_path / "named.csv", {"7": "x.jpg", "8": "b/x.jpg"})
    status, _, err = patchword("score", tmp_path / "named.csv", references, "--metrics", "bleu")
    assert status == 2 and "fits several images of the references (7, 8)" in err
    as_csv(tmp_path / "named.csv", {"7": "a/x.jpg", "8": "other/a/x.jpg"})
    status, _, err = patchword("score", tmp_path / "named.csv", references, "--metrics", "bleu")
    assert status == 2 and "two captions of image 7" in err


@pytest.mark.parametrize(
    "content",
    [WANTED, [{"image_id": image, "caption": text} for image, texts in WANTED.items() for text in texts]],
    ids=["object", "rows"],
)
def test_references_by_image_id_are_read_too(patchword, tmp_path, content):
    as_results(tmp_path / "plain.json", {"7": 7, "8": 8})
    expected, _ = scores(patchword, tmp_path / "plain.json", coco(tmp_path), tmp_path)
    (tmp_path / "wanted.json").write_text(json.dumps(content))
    assert scores(patchword, tmp_path / "plain.json", tmp_path / "wanted.json", tmp_path)[0] == expected


def test_one_image_alone_says_why_its_cider_is_nothing(patchword, tmp_path):
    (tmp_path / "wanted.json").write_text(json.dumps({"7": WANTED["7"]}))
    (tmp_path / "said.json").write_text(json.dumps({"7": SAID["7"]}))
    found, said = scores(patchword, tmp_path / "said.json", tmp_path / "wanted.json", tmp_path)
    assert found["CIDEr"] == 0 and "CIDEr of one image alone is 0 by definition" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "photo;words\n1;x\n", "line 1: expected a list of an image_id and a caption"),
        ("a.csv", "image,caption\n7,a dog\n7,a cat\n", r"1 ids stand more than once \(7\)"),
        ("a.jsonl", '{"image_id": 7}\n', "line 1: expected an image_id and a caption"),
        ("a.json", '{"7": ["a dog", "a cat"]}', "entry '7': expected a list of"),
        ("a.json", '"a dog"', "found a text"),
    ],
)
def test_malformed_predictions_say_what_was_expected(patchword, tmp_path, name, content, message):
    import re

    (tmp_path / name).write_text(content)
    status, _, err = patchword("score", tmp_path / name, coco(tmp_path))
    assert status == 2 and re.search(message, err)


def annotations(folder, people=10):
    """Two questions of VQA with this many answers each: all red; half two, half 3."""
    said = {1: ["red"] * people, 2: ["two"] * (people // 2) + ["3"] * (people - people // 2)}
    entries = [
        {
            "question_id": number,
            "image_id": 9,
            "question_type": "what",
            "answer_type": "other",
            "answers": [{"answer": text, "answer_id": k} for k, text in enumerate(texts)],
        }
        for number, texts in said.items()
    ]
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": entries}))
    questions = [{"question_id": number, "image_id": 9, "question": "what is it?"} for number in said]
    asked = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    asked.write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    return folder / "v2_mscoco_val2014_annotations.json", asked


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.json", json.dumps([{"question_id": 1, "answer": "Red."}, {"question_id": 2, "answer": "2"}])),
        ("r.json", json.dumps({"1": "Red.", "2": 2})),
        ("r.jsonl", '{"question_id": 1, "text": "Red."}\n{"question_id": 2, "text": "two"}\n'),
        ("r.csv", "question_id,answer\n1,Red.\n2,two\n"),
    ],
    ids=["results", "object", "lines", "csv"],
)
def test_answers_of_another_model_are_scored_as_vqa_scores_them(patchword, tmp_path, name, content):
    """All ten say red: 1. Five of ten say two: min(4/3, 1) and min(5/3, 1) are 1 as well."""
    given, asked = annotations(tmp_path)
    (tmp_path / name).write_text(content)
    for place in (given, asked):
        status, said, err = patchword("score", tmp_path / name, place, "--out", tmp_path / "scores.json")
        assert status == 0 and "VQA accuracy" in said and "expects 10" not in said, err
        assert json.loads((tmp_path / "scores.json").read_text())["all"]["VQA_accuracy"] == 1
        (tmp_path / "scores.json").unlink()
    status, said, err = patchword("evaluate", tmp_path / name, "--data", asked, "--split", "val")
    assert status == 0 and "100.00" in said, err


def test_with_few_annotators_the_ceiling_is_said(patchword, tmp_path):
    given, _ = annotations(tmp_path, people=2)
    (tmp_path / "r.json").write_text(json.dumps({"1": "red", "2": "two"}))
    status, said, _ = patchword("score", tmp_path / "r.json", given)
    assert status == 0 and "2 answers per question" in said and "exact match" in said


def test_questions_of_one_side_stop_it_unless_allowed(patchword, tmp_path):
    given, asked = annotations(tmp_path)
    (tmp_path / "r.json").write_text(json.dumps({"1": "red", "5": "two"}))
    status, _, err = patchword("score", tmp_path / "r.json", given)
    assert status == 2 and "1 question without an answer (2)" in err
    status, said, _ = patchword("score", tmp_path / "r.json", given, "--allow-missing")
    assert status == 0 and "INCOMPLETE: 2 questions" in said
    status, _, err = patchword("evaluate", tmp_path / "r.json", "--data", asked)
    assert status == 2 and "1 answer to questions that are not in the data (5)" in err
    status, _, err = patchword("score", tmp_path / "r.json", given, "--metrics", "cider")
    assert status == 2 and "--metrics is for captions" in err
    status, _, err = patchword("evaluate", "easy-vqa", "--data", asked)
    assert status == 2 and "--images is missing" in err
