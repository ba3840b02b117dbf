"""`patchword explain-check` as a person types it, on drawn scenes and on boxes made from them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.checkpoints.facts import ModelFacts
from patchword.composed import CaptionModel
from patchword.data.pictures import Preprocessing
from patchword.data.scenes import boxes, describe, draw, make_scenes, masks
from patchword.models.captioners.show_attend_tell import ShowAttendTellConfig
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.options import DecodingSettings
from patchword.text.words import Vocabulary
from patchword.towers.settings import ConvolutionalConfig


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """The folder of a captioner with random weights that knows the words of scenes."""
    told = [one.text for scene in make_scenes(40, 1, "train") for one in describe(scene, 5)]
    vocabulary = Vocabulary.build(told, minimum_count=1)
    torch.manual_seed(0)
    settings = ModelSettings(
        tower=ConvolutionalConfig(stem=8, widths=(8, 16), blocks=(0, 0), size=16),
        captioner=ShowAttendTellConfig(word_width=16, width=24, attention_width=16),
        preprocessing=Preprocessing(size=16),
        decoding=DecodingSettings(),
        vocabulary_size=vocabulary.size,
    )
    model = CaptionModel.build(settings.tower, settings.captioner, vocabulary.size)
    folder = tmp_path_factory.mktemp("models") / "random"
    CaptioningModel(model, settings, vocabulary, ModelFacts(name="random"), torch.device("cpu")).save(folder)
    return folder


def test_scenes_with_exact_masks(patchword, captioner, tmp_path, parse):
    page = tmp_path / "page.html"
    status, printed, _ = patchword(
        "explain-check", captioner, "--scenes", 4, "--level", 1, "--out", page, "--device", "cpu"
    )
    assert status == 0
    for name in ("attention", "grad_cam", "occlusion", "centre", "random", "uniform", "best by pointing"):
        assert name in printed
    assert parse(page.read_text(encoding="utf-8")).images


@pytest.fixture
def annotated(tmp_path):
    """Three drawn pictures as PNG files, with COCO's two files about them."""
    scenes = make_scenes(3, 1, "val")
    images, instances, told = [], [], []
    for number, (scene, pixels_SSC, own_KSS) in enumerate(
        zip(scenes, draw(scenes, 32), masks(scenes, 32), strict=True)
    ):
        Image.fromarray(pixels_SSC).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 32, "height": 32})
        left, top, right, bottom = boxes(own_KSS[None])[0, 0].tolist()
        instances.append(
            {"image_id": number, "category_id": 1, "bbox": [left, top, right - left, bottom - top]}
        )
        told += [
            {"id": len(told) + row, "image_id": number, "caption": one.text}
            for row, one in enumerate(describe(scene, 3))
        ]
    content = {"images": images, "annotations": instances, "categories": [{"id": 1, "name": "shape"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": told}))
    (tmp_path / "names.txt").write_text(
        "shape, circle, disc, square, triangle, cross, plus, ring, diamond, star, half, dome\n"
    )
    return tmp_path


def test_boxes_captions_and_own_synonyms(patchword, captioner, annotated):
    common = (
        "--data",
        annotated / "instances.json",
        "--images",
        annotated,
        "--synonyms",
        annotated / "names.txt",
    )
    status, printed, _ = patchword(
        "explain-check", captioner, *common, "--captions", annotated / "captions.json", "--no-curves",
        "--json", "--device", "cpu",
    )  # fmt: skip
    found = json.loads(printed)
    assert status == 0 and found["pictures"] == 3 and found["words"]["reference"] > 0
    assert "deletion" not in found["all"]["attention"]
    low, high = found["all"]["centre"]["pointing"]["interval"]
    assert 0 <= low <= found["all"]["centre"]["pointing"]["value"] <= high <= 1


def test_the_page_shows_what_the_model_saw(patchword, captioner, annotated, middle_only, tmp_path):
    cut, page = middle_only(captioner), tmp_path / "page.html"
    for number in range(3):
        Image.open(cut.picture).resize((32, 32), Image.Resampling.NEAREST).save(annotated / f"{number}.png")
    status, _, err = patchword(
        "explain-check", cut.folder, "--data", annotated / "instances.json", "--images", annotated,
        "--captions", annotated / "captions.json", "--synonyms", annotated / "names.txt", "--no-curves",
        "--out", page, "--device", "cpu",
    )  # fmt: skip
    shown = cut.shown(page)
    assert status == 0 and shown and max(shown) < 0.15, err


def test_a_picture_that_cannot_be_read_is_named_and_the_rest_is_measured(patchword, captioner, annotated):
    (annotated / "1.png").write_bytes(b"no picture")
    status, printed, errors = patchword(
        "explain-check", captioner, "--data", annotated / "instances.json", "--images", annotated,
        "--captions", annotated / "captions.json", "--synonyms", annotated / "names.txt", "--no-curves",
        "--json",
        "--device", "cpu",
    )  # fmt: skip
    assert status == 1 and "1.png" in errors
    assert json.loads(printed)["pictures"] == 2


def test_data_or_scenes_must_be_given(patchword, captioner):
    status, _, errors = patchword("explain-check", captioner)
    assert status == 2 and "--scenes" in errors
    assert np.count_nonzero([line.startswith("patchword:") for line in errors.splitlines()]) == 1


def test_kind_6_captions_belong_to_pictures_by_id_or_by_file(patchword, captioner, annotated, tmp_path):
    images = json.loads((annotated / "captions.json").read_text())["images"]
    rows = "".join(f"{one['file_name']},a red square\n" for one in images)
    (tmp_path / "own.csv").write_text("image,caption\n" + rows)
    (tmp_path / "other.csv").write_text("image,caption\nelsewhere.png,a red square\n")
    call = ("explain-check", captioner, "--data", annotated / "instances.json", "--images", annotated,
            "--synonyms", annotated / "names.txt", "--no-curves", "--device", "cpu", "--captions")  # fmt: skip
    assert patchword(*call, tmp_path / "own.csv")[0] == 0
    status, _, err = patchword(*call, tmp_path / "other.csv")
    assert status == 2 and "for instance elsewhere.png, and " in err and " of id " in err


def test_kind_11_data_and_scenes_exclude_each_other(patchword, tmp_path):
    for more in (("--images", tmp_path), ("--captions", tmp_path / "c.json"), ("--data", tmp_path)):
        status, _, err = patchword("explain-check", "none", "--scenes", 1, *more)
        assert status == 2 and f"given: {more[0]}" in err.replace("--scenes, ", "")
