"""`patchword template` on COCO instances and on a model's concepts, and its row in a comparison."""

import json
from pathlib import Path

import matplotlib
import pytest


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "instances.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": 7, "file_name": "a.jpg", "width": 100, "height": 100},
                    {"id": 8, "file_name": "b.jpg", "width": 100, "height": 100},
                ],
                "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dining table"}],
                "annotations": [
                    {"image_id": 7, "category_id": 1, "bbox": [30, 20, 20, 35]},
                    {"image_id": 7, "category_id": 2, "bbox": [0, 50, 100, 50]},
                    {"image_id": 8, "category_id": 1, "bbox": [0, 0, 10, 10]},
                    {"image_id": 8, "category_id": 1, "bbox": [50, 0, 10, 10]},
                ],
            }
        )
    )
    rows = [
        {"image": "a.jpg", "caption": "a cup on a table", "split": "val"},
        {"image": "b.jpg", "caption": "two cups", "split": "val"},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_instances_become_captions_and_a_row_of_a_comparison(coco, patchword):
    out = coco / "run"
    arguments = "--data", coco / "captions.jsonl", "--instances", coco / "instances.json", "--out", out
    status, said, _ = patchword("template", *arguments)
    assert status == 0 and "2 captions" in said
    rows = json.loads((out / "predictions" / "val.json").read_text())
    assert [row["caption"] for row in rows] == ["a cup on a dining table", "two cups"]
    status, _, err = patchword("template", *arguments)
    assert status == 2 and "exists already" in err
    status, page, _ = patchword(
        "compare", out, "--data", coco / "captions.jsonl", "--out", coco / "comparison"
    )
    assert status == 0 and "| run |" in (coco / "comparison" / "table.md").read_text()


def test_a_picture_that_the_instances_lack_is_named(coco, patchword):
    with open(coco / "captions.jsonl", "a") as file:
        file.write("\n" + json.dumps({"image": "c.jpg", "caption": "a dog", "split": "val"}))
    status, said, err = patchword(
        "template",
        "--data",
        coco / "captions.jsonl",
        "--instances",
        coco / "instances.json",
        "--out",
        coco / "r",
    )
    assert status == 1 and "2 captions" in said and "has no picture c.jpg" in err


def test_concepts_of_a_photograph_become_a_caption(tmp_path, patchword):
    images = Path(matplotlib.get_data_path()) / "sample_data"
    (tmp_path / "captions.csv").write_text("image,caption,split\ngrace_hopper.jpg,a woman,val\n")
    status, _, err = patchword(
        "template", "--data", tmp_path / "captions.csv", "--images", images, "--out", tmp_path / "r"
    )
    assert status == 0, err
    (row,) = json.loads((tmp_path / "r" / "predictions" / "val.json").read_text())
    assert "uniform" in row["caption"] or "suit" in row["caption"], row
    status, _, err = patchword("template", "--data", tmp_path / "captions.csv", "--out", tmp_path / "s")
    assert status == 2 and "--images is missing" in err


def test_captions_of_the_training_split_say_what_goes_together(tmp_path, patchword):
    from patchword.models.captioners.template import Sight
    from patchword.tasks.caption.template import agreement_of

    rows = ["image,caption,split", *(f"{n}.jpg,a dog with a ball,train" for n in range(4))]
    rows += [f"{n}.jpg,a cat,train" for n in range(4, 8)]
    (tmp_path / "captions.csv").write_text("\n".join([*rows, "grace_hopper.jpg,a woman,val\n"]))
    seen = [Sight("dog", 0.6), Sight("cat", 0.5), Sight("ball", 0.4)]
    names = [one.name for one in agreement_of(tmp_path / "captions.csv", 2.0).choose(seen, 2)]
    assert names == ["dog", "ball"]
    assert agreement_of(tmp_path / "captions.csv", 0.0).choose(seen, 2) == seen[:2]
    images = Path(matplotlib.get_data_path()) / "sample_data"
    arguments = "--data", tmp_path / "captions.csv", "--images", images, "--smooth", 0.5
    status, _, err = patchword("template", *arguments, "--out", tmp_path / "r")
    assert status == 0, err
