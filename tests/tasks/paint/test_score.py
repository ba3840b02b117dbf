"""`score-images` and `probe` as a user types them, the reader of scenes, and what they refuse."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from patchword.cli import app
from patchword.data.records import CaptionRecord
from patchword.data.scenes import describe, draw, make_scenes
from patchword.errors import DataError, ModelError
from patchword.tasks.paint import probe
from patchword.tasks.paint.extractors import Extractor
from patchword.tasks.paint.marks import marked_png
from patchword.tasks.paint.oracle import WEIGHTS, load_oracle, share_true
from patchword.tasks.paint.score import SHEET, ScoreOptions, read_set, score_images

needs_reader = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"no reader of scenes yet: python tools/train_scene_reader.py {WEIGHTS}"
)


def type_in(*words: object) -> int:
    return app([str(word) for word in words], standalone_mode=False) or 0


def folder_of(place, pixels, captions=None, kind="png"):
    """Pictures as files, with their captions as marks where there are some."""
    place.mkdir(parents=True)
    for number, one in enumerate(pixels):
        name = place / f"{number:03d}.{kind}"
        if captions is None:
            Image.fromarray(one).save(name)
        else:
            name.write_bytes(marked_png(one, {"prompt": captions[number], "model": "none", "seed": number}))
    return place


@pytest.fixture(scope="module")
def scenes():
    made = make_scenes(48, 1, "test", seed=3)
    return made, draw(made, 24), [describe(scene, 1)[0].text for scene in made]


@needs_reader
def test_the_reader_reads_renders_of_every_level_and_size(scenes):
    oracle = load_oracle()
    made, pixels, captions = scenes
    truth = oracle.truth(list(pixels), captions)
    assert np.mean(truth) > 0.93
    others = [captions[(n + 7) % len(captions)] for n in range(len(captions))]
    assert np.mean(oracle.truth(list(pixels), others)) < 0.4
    pairs = make_scenes(40, 2, "test", seed=4)
    said = [describe(scene, 1)[0].text for scene in pairs]
    assert np.mean(oracle.truth(list(draw(pairs, 32)), said)) > 0.8
    small = oracle.read(list(draw(made, 16))).scenes
    assert (
        np.mean(
            [a.things[0].colour == b.things[0].colour for a, b in zip(small, made, strict=True) if a.things]
        )
        > 0.9
    )


def test_truth_is_that_of_the_grammar():
    scene = make_scenes(1, 1, "test", seed=3)[0]
    thing = scene.things[0]
    assert share_true(scene, f"a {thing.colour} {thing.shape}") == 1.0
    assert share_true(scene, f"a {thing.colour} {thing.shape} and no {thing.shape}") == 0.5
    assert math.isnan(share_true(scene, "a lighthouse at dusk"))


@needs_reader
def test_pictures_are_scored_against_others_and_against_their_prompts(scenes, tmp_path, capsys):
    _, pixels, captions = scenes
    good = folder_of(tmp_path / "good", pixels[:24], captions[:24])
    wrong = folder_of(tmp_path / "wrong", pixels[:24], captions[24:])
    real = folder_of(tmp_path / "real", pixels[24:])
    found = {}
    for name, made in (("good", good), ("wrong", wrong)):
        assert type_in("score-images", made, real, "--features", "scenes", "--json") == 0
        out = capsys.readouterr()
        found[name] = json.loads(out.out)["scores"]
        assert "the covariance has no full rank" in out.err
    assert found["good"]["pictures in which all hold"]["value"] > 0.85
    assert found["wrong"]["pictures in which all hold"]["value"] < 0.5
    assert (
        found["good"]["Frechet distance (scene reader)"] == found["wrong"]["Frechet distance (scene reader)"]
    )
    assert not [name for name in found["good"] if "FID" in name or "Inception" in name]
    kernel = found["good"]["KID (scene reader)"]  # of the whole sets: there are no subsets, and no spread
    assert kernel.get("interval") is None
    low, high = found["wrong"]["statements that hold"]["interval"]
    assert low < found["wrong"]["statements that hold"]["value"] < high


def test_two_towers_make_features_and_judge_texts(scenes, tmp_path, capsys):
    _, pixels, captions = scenes
    made = folder_of(tmp_path / "made", pixels[:12])
    real = folder_of(tmp_path / "real", pixels[12:24])
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{n:03d}.png,{captions[n]}\n" for n in range(12)))
    words = ("score-images", made, real, "--features", "two-towers", "--towers", "two-towers")
    assert type_in(*words, "--captions", table) == 0
    out = capsys.readouterr().out
    assert out.startswith("12 generated, 12 real pictures; features of two-towers")
    assert "CLIPScore" in out and "R-precision (1 of 12)" in out and "coverage (k = 3)" in out
    table.write_text("image,caption\n000.png,a star\n")
    with pytest.raises(DataError, match="has no caption of 001.png: add it"):
        type_in(*words, "--captions", table)


def test_mixed_sizes_and_formats_are_refused(scenes, tmp_path):
    _, pixels, _ = scenes
    small = folder_of(tmp_path / "small", pixels[:6])
    large = folder_of(tmp_path / "large", [np.kron(one, np.ones((2, 2, 1), np.uint8)) for one in pixels[:6]])
    jpeg = folder_of(tmp_path / "jpeg", pixels[:6], kind="jpg")
    words = ("score-images", "--features", "two-towers")
    with pytest.raises(DataError, match="24 x 24 and .* of 48 x 48: --resize SIDE brings both to one size"):
        type_in(*words, small, large)
    with pytest.raises(DataError, match="hold JPEG and PNG: traces of compression would be measured"):
        type_in(*words, small, jpeg)
    Image.fromarray(pixels[7][:12]).save(small / "odd.png")
    with pytest.raises(DataError, match="holds pictures of 2 sizes, such as 000.png"):
        type_in(*words, small, large)
    assert type_in(*words, small, large, "--resize", 24) == 0


class Red:
    """A painter that paints red circles only."""

    identity, usual_steps = "none", 1

    def __init__(self):
        scenes = [
            s
            for s in make_scenes(2000, 1)
            if s.things[0][:2] == ("circle", "red") and s.things[0].size == "large"
        ]
        self.pixels = draw(scenes[:8], 32)

    def paint(self, prompt, seeds, steps=None, watch=None):
        watch()
        return self.pixels[[seed % len(self.pixels) for seed in seeds]]


@needs_reader
def test_a_probe_finds_what_a_painter_always_adds():
    found = {(one.prompt, one.what): one for one in probe.probe_scenes(Red(), load_oracle(), 1, 16)}
    colour = found["a thing", "colour"]
    assert colour.shares[0].value == "red" and colour.shares[0].painted > 0.9 and colour.shares[0].differs
    assert 0.1 < colour.shares[0].prior < 0.15 and colour.distance > 0.8
    assert sum(share.prior for share in colour.shares) == pytest.approx(1)


def test_a_probe_of_labels_counts_words_of_the_training():
    records = [CaptionRecord(n, str(n), text) for n, text in enumerate([("a man", "two men"), ("a woman",)])]
    choose = lambda pictures, labels: np.tile([0.9, 0.1], (len(pictures), 1))  # noqa: E731
    found = probe.probe_labels(
        [np.zeros((4, 4, 3), np.uint8)] * 10, "a doctor", ["man", "woman"], choose, records
    )
    assert [(one.value, one.painted, one.prior) for one in found.shares] == [
        ("man", 1.0, 0.5),
        ("woman", 0.0, 0.5),
    ]
    assert found.distance == 0.5 and found.shares[0].differs
    with pytest.raises(DataError, match="give --label at least twice"):
        probe.probe_labels([], "a doctor", ["man"], choose, None)


def test_wilsons_interval_by_hand():
    low, high = probe.wilson(8, 10)
    assert (low, high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert probe.wilson(0, 0) == (0.0, 1.0)


def test_a_reader_that_is_not_there_is_told(tmp_path):
    with pytest.raises(
        ModelError, match="there is no reader of scenes at .*: make it with `python tools/train"
    ):
        load_oracle(tmp_path / "reader.safetensors")


def test_kind_1_sides_are_those_of_upright_pictures(tmp_path, stored_turned, turned_photos):
    """Photographs that a camera stored on their side are of one size with those that it stored upright."""
    one = read_set(turned_photos, None)
    assert (one.side, len(one.files), one.left_out) == ((96, 72), 9, [])


def test_kind_4_only_sheets_of_our_own_are_left_out_and_everything_is_counted(scenes, tmp_path):
    _, pixels, captions = scenes
    folder = folder_of(tmp_path / "mixed", pixels[:2], captions)
    for name in ("sheet.png", "words-1.png", "words-2.png"):
        (folder / name).write_bytes(marked_png(pixels[3], {"prompt": "a star"}))
    for name in ("words-of-mine.png", "words-3.png", "_sheet.png"):
        Image.fromarray(pixels[4]).save(folder / name)  # a person's, without a mark
    (folder / "notes.txt").write_text("mine")
    found = read_set(folder, None)
    assert sorted(path.name for path in found.files if path.name[0] in "w_") == [
        "_sheet.png", "words-3.png", "words-of-mine.png"
    ]  # fmt: skip
    assert len(found.files) + len(found.left_out) == len(list(folder.iterdir()))
    assert sorted(one.reason for one in found.left_out) == ["no picture"] + [SHEET] * 3


def test_kind_13_a_photograph_with_a_second_picture_behind_it_is_a_jpeg(scenes, tmp_path):
    """Phones write such files (MPO) among plain ones, and Pillow calls them another kind."""
    _, pixels, _ = scenes
    folder = folder_of(tmp_path / "phone", pixels[:1], kind="jpg")
    first, second = (Image.fromarray(one) for one in pixels[1:3])
    first.save(folder / "two.jpg", "MPO", save_all=True, append_images=[second])
    assert read_set(folder, None).kinds == {"JPEG"}


def test_kind_6_what_is_no_folder_is_called_so(tmp_path, scenes):
    (tmp_path / "a.png").write_bytes(b"")
    for place in (tmp_path / "gone", tmp_path / "a.png"):
        with pytest.raises(DataError, match="is no folder: name one of pictures"):
            read_set(place, None)


def test_kind_12_more_neighbours_than_pictures_are_refused_before_the_work(scenes, tmp_path):
    _, pixels, _ = scenes
    made = folder_of(tmp_path / "made", pixels[:3])
    nothing = Extractor("none", lambda pictures: pytest.fail("pictures were read"))
    with pytest.raises(DataError, match="3 generated pictures have no 3 neighbours: give more than 3"):
        score_images(made, made, nothing, ScoreOptions(neighbours=3))
