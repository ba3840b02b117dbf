"""Prompts, zero-shot labels, linear probes and shifted queries through the command line."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.data.scenes import draw, make_scenes
from patchword.errors import DataError
from patchword.search.find import Shift
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.probe import accuracy, fit_probe, probe
from patchword.tasks.retrieve.zero_shot import class_vectors
from patchword.text.templates import ClassNames, read_classes, read_templates, templates


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    scenes = make_scenes(24)
    rows = [["image", "text", "label", "split"]]
    for number, (scene, pixels) in enumerate(zip(scenes, draw(scenes, 32), strict=True)):
        label = "warm" if scene.things[0].colour in ("red", "orange", "yellow", "pink") else "cold"
        (folder / "by" / label).mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "by" / label):
            Image.fromarray(pixels).save(place / f"{scene.name}.png")
        rows.append([f"{scene.name}.png", "", label, "val" if number % 3 == 0 else "train"])
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_eighty_templates_of_one_place_each():
    found = templates()
    assert len(found) == len(set(found)) == 80
    assert all("dog" in template.format("dog") for template in found)


def test_class_files(tmp_path):
    lines, table = tmp_path / "c.txt", tmp_path / "c.json"
    lines.write_text("dog\nTshirts\tt-shirt, tee\n\n")
    table.write_text(json.dumps({"dog": "dog", "Tshirts": ["t-shirt", "tee"]}))
    expected = (ClassNames("dog", ("dog",)), ClassNames("Tshirts", ("t-shirt", "tee")))
    assert read_classes(lines) == read_classes(table) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("dog\n", "names 1 classes"), ("a\nb\na\n", "stands twice"), ("a\nb\t,\n", "has no name")],
)
def test_wrong_class_files(text, message, tmp_path):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "c.txt")
    (tmp_path / "t.txt").write_text("a photo\n")
    with pytest.raises(DataError, match="exactly one place"):
        read_templates(tmp_path / "t.txt")


def test_a_class_is_the_normalised_mean_of_unit_vectors(towers):
    """Not the vector of the mean prompt, and every name counts in every template."""
    model = load_two_towers(towers, "cpu")
    classes, prompts = (
        [ClassNames("x", ("dog", "cat")), ClassNames("y", ("ball",))],
        ("a photo of a {}.", "{}"),
    )
    found = class_vectors(model, classes, prompts)
    texts = ["a photo of a dog.", "dog", "a photo of a cat.", "cat"]
    units = np.stack([model.embed_texts([text])[0] for text in texts])
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-5)
    mean = units.mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_zero_shot_from_a_table_and_from_folders(towers, table, patchword, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"warm": ["red ball"], "cold": ["blue ball"]}))
    (tmp_path / "prompts.txt").write_text("a {}.\nthe {}\n")
    short = (
        "--classes",
        tmp_path / "classes.json",
        "--templates",
        tmp_path / "prompts.txt",
        "--device",
        "cpu",
    )
    status, out, err = patchword(
        "zero-shot", towers, *short, "--data", table / "table.csv", "--images", table,
        "--out", tmp_path / "scores.json",
    )  # fmt: skip
    assert status == 0 and "8 pictures, 2 prompts" in out, err
    scores = json.loads((tmp_path / "scores.json").read_text())
    right = sum(round(count * share) for count, share in scores["of_class"].values())
    assert scores["top_1"] == pytest.approx(right / 8) and scores["top_5"] == 1
    (table / "by" / "warm" / "broken.png").write_bytes(b"no picture")
    status, out, err = patchword("zero-shot", towers, *short, "--data", table / "by")
    (table / "by" / "warm" / "broken.png").unlink()
    assert status == 1 and "24 pictures" in out and "broken.png" in err
    (tmp_path / "classes.json").write_text(json.dumps({"warm": ["red ball"], "hot": ["blue ball"]}))
    status, _, err = patchword("zero-shot", towers, *short, "--data", table / "by")
    assert status == 2 and "the first is 'cold'" in err


def test_a_probe_finds_a_line_and_its_loss_is_at_its_minimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 4, generator=generator)
    classes = (features @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).long() + (features[:, 3] > 1.2).long()
    weights = fit_probe(features, classes, 3, 1e-2)
    weights.requires_grad_()
    inputs = torch.cat((features.double(), torch.ones(300, 1, dtype=torch.float64)), 1)
    loss = torch.nn.functional.cross_entropy(inputs @ weights.T, classes)
    (loss + 0.5e-2 * weights[:, :-1].square().sum()).backward()
    assert weights.grad.abs().max() < 1e-5
    assert accuracy(weights.detach(), features, classes) > 0.75
    found = probe((features[:200], classes[:200]), (features[200:], classes[200:]), 3)
    assert found.accuracy > 0.7 and found.rows == 200 and len(found.chosen_on) == 7


def test_probe_linear_reads_colour_from_a_frozen_tower(towers, table, patchword, tmp_path):
    status, out, err = patchword(
        "probe-linear",
        "two-towers",
        "--data",
        table / "table.csv",
        "--images",
        table,
        "--out",
        tmp_path / "p.json",
    )
    assert status == 0 and out.startswith("accuracy "), err
    assert json.loads((tmp_path / "p.json").read_text())["evaluated"] == 8
    status, _, err = patchword(
        "probe-linear", towers, "--data", table / "table.csv", "--images", table, "--split", "test"
    )
    assert status == 2 and "no labelled picture of split 'test'" in err


class Letters:
    """Vectors of words by hand."""

    identity = "letters"
    known = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 1.0, 0.0)}

    def embed_texts(self, texts):
        return np.array([self.known[text] for text in texts], dtype=np.float32)


def test_a_shifted_query_by_hand():
    query = np.array([0.8, 0.0, 0.6], dtype=np.float32)
    moved = Shift(("blue",), ("red",)).of(query, Letters())
    expected = np.array([-0.2, 1.0, 0.6])
    np.testing.assert_allclose(moved, expected / np.linalg.norm(expected), rtol=1e-6)
    assert Shift().of(query, Letters()) is query
    with pytest.raises(DataError, match="leave nothing of the query"):
        Shift((), ("red",)).of(np.array([1.0, 0.0, 0.0], dtype=np.float32), Letters())


def test_search_takes_plus_and_minus(towers, table, patchword, tmp_path):
    pytest.importorskip("faiss", reason="searching needs patchword[search]")
    photo = next(table.glob("*.png"))
    assert patchword("index", table / "by", "--out", tmp_path / "i", "--model", towers)[0] == 0
    plain = patchword("search", tmp_path / "i", "--like", photo, "-k", "3")
    moved = patchword(
        "search", tmp_path / "i", "--like", photo, "-k", "3", "--plus", "blue", "--minus", "red"
    )
    assert plain[0] == moved[0] == 0 and plain[1] != moved[1] and len(moved[1].splitlines()) == 3
    status, _, err = patchword("search", tmp_path / "i", "dog", "--plus", "red", "--rerank", "laps")
    assert status == 2 and "choose one" in err


def test_kind_4_what_is_not_labelled_is_counted_by_reason(towers, table, patchword, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_bytes("\ufeffwarm\tred ball\ncold\tblue ball\n".encode())  # as a spreadsheet saves it
    for label, colour in (("warm", "red"), ("cold", "blue")):
        (tmp_path / "by" / label).mkdir(parents=True)
        Image.new("RGB", (20, 20), colour).save(tmp_path / "by" / label / "a.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "by" / "loose.png")
    (tmp_path / "by" / "cold" / "notes.txt").write_text("mine")
    call = ("zero-shot", towers, "--classes", classes, "--data")
    status, said, err = patchword(*call, tmp_path / "by")
    assert status == 0 and "2 pictures" in said
    assert "left out 2" in err and "no picture: 1" in err and "picture in no folder of a class: 1" in err
    (tmp_path / "t.csv").write_text("image,label\nloose.png,cold\n,cold\nloose.png,\n")
    status, _, err = patchword(*call, tmp_path / "t.csv", "--images", tmp_path / "by")
    assert status == 0 and "row without a picture: 1" in err and "row without a label: 1" in err
    status, _, err = patchword(*call, tmp_path / "gone")
    assert status == 2 and "gone does not exist" in err


def test_kind_5_class_names_are_no_markup(towers, patchword, tmp_path):
    (tmp_path / "t.csv").write_text("image,label\na.png,[/red]\na.png,:cat:\n")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_text("[/red]\tred ball\n:cat:\tblue ball\n")
    call = ("zero-shot", towers, "--classes", tmp_path / "classes.txt", "--data", tmp_path / "t.csv")
    status, said, _ = patchword(*call, "--images", tmp_path)
    assert status == 0 and "[/red]" in said and ":cat:" in said


def test_kind_11_a_probe_of_one_label_is_refused(towers, patchword, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    rows = "".join(f"a.png,red,{split}\n" for split in ("train",) * 6 + ("val",))
    (tmp_path / "t.csv").write_text("image,label,split\n" + rows)
    status, _, err = patchword("probe-linear", towers, "--data", tmp_path / "t.csv", "--images", tmp_path)
    assert status == 2 and "all training rows have the same label" in err
