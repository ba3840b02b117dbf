"""Maps and their measurement on a captioner of known reasons: a word is as likely as its object is large."""

from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchword.data.pictures import Preprocessing
from patchword.data.scenes.world import SHAPES
from patchword.errors import DataError
from patchword.layers.codebook import Codebook
from patchword.metrics.pointing import mask_region
from patchword.tasks.caption.explanations import (
    Subject,
    check_explanations,
    drawn_subjects,
    shape_synonyms,
    spelled_words,
)
from patchword.tasks.caption.explanations_page import (
    best_method,
    explanations_json,
    explanations_page,
    explanations_text,
)
from patchword.tasks.caption.maps import METHODS, SeenPicture, TextSpace, ToldCaption, with_best_maps
from patchword.tasks.caption.model import Perception
from patchword.tasks.caption.result import Caption
from patchword.text.words import Vocabulary
from patchword.types import Decoded, VisualFeatures

SIDE, GRID = 64, (8, 8)
VOCABULARY = Vocabulary.build(["a " + " ".join(SHAPES)], minimum_count=1)


class Sum(NamedTuple):
    """What the oracle keeps of a picture: how much of each shape is left."""

    amount_BC: Tensor


class Oracle(torch.nn.Module):
    """Channel c of a cell says how much of the shape c it shows; the word of the shape gains by the sum."""

    vocabulary_size = VOCABULARY.size

    def encode(self, features):
        grid_BNC = features.grid_BNC
        if features.mask_BN is not None:
            grid_BNC = grid_BNC * features.mask_BN[..., None]
        return Sum(grid_BNC.sum(dim=1))

    def decode(self, tokens_BT, lengths_B, memory, trace=False):
        gains_CV = torch.zeros(len(SHAPES), self.vocabulary_size)
        for channel, shape in enumerate(SHAPES):
            gains_CV[channel, VOCABULARY.encode(shape)[0]] = 1.0
        logits_BV = memory.amount_BC @ gains_CV
        return Decoded(logits_BV[:, None].expand(-1, tokens_BT.shape[1], -1))


class OracleModel:
    """What `check_explanations` uses of a captioning model, over the masks of the subjects themselves."""

    device, text_space, vocabulary = torch.device("cpu"), None, VOCABULARY
    settings = SimpleNamespace(
        preprocessing=Preprocessing(size=SIDE), decoding=SimpleNamespace(max_length=20)
    )
    model = SimpleNamespace(captioner=Oracle())

    def __init__(self, subjects):
        self.subjects = {np.asarray(one.picture).tobytes(): one for one in subjects}

    def look(self, pixels_BHWC):
        subject = self.subjects[pixels_BHWC[0].tobytes()]
        grid_hwC = np.zeros((*GRID, len(SHAPES)), np.float32)
        for shape, masks_KSS in subject.masks.items():
            grid_hwC[..., SHAPES.index(shape)] = mask_region(masks_KSS, (0, 0, SIDE, SIDE), GRID).covered_hw
        grid_BNC = torch.from_numpy(grid_hwC.reshape(1, -1, len(SHAPES)))
        return Perception(VisualFeatures(grid_BNC, hw=GRID), None, None)

    def caption_features(self, features, trace, seen):
        best = SHAPES[int(features.grid_BNC.sum(dim=1)[0].argmax())]
        return [Caption(f"a {best}", 0.0, ("a", best))]


def one_hot_grid(cell, channel):
    grid_BNC = torch.zeros(1, 4, len(SHAPES))
    grid_BNC[0, cell, channel] = 3.0
    return VisualFeatures(grid_BNC, hw=(2, 2))


@pytest.mark.parametrize("name", ["grad_cam", "gradient_times_input", "occlusion"])
def test_a_method_finds_the_one_cell_that_makes_the_word(name):
    cell, channel = 2, 1
    picture = SeenPicture(Oracle(), VOCABULARY.special, one_hot_grid(cell, channel))
    told = ToldCaption(picture, torch.tensor(VOCABULARY.encode(f"a {SHAPES[channel]}")), [1])
    map_hw = told.map(METHODS[name])[0]
    assert map_hw.ravel().tolist() == [0, 0, 1, 0]


def test_the_plain_gradient_is_even_where_every_cell_would_count_alike():
    picture = SeenPicture(Oracle(), VOCABULARY.special, one_hot_grid(2, 1))
    told = ToldCaption(picture, torch.tensor(VOCABULARY.encode(f"a {SHAPES[1]}")), [1])
    assert told.map(METHODS["gradient"])[0] == pytest.approx(np.full((2, 2), 0.25))


def test_a_captioner_without_attention_has_no_map_of_it():
    told = ToldCaption(
        SeenPicture(Oracle(), VOCABULARY.special, one_hot_grid(0, 0)), torch.tensor(VOCABULARY.encode("a"))
    )
    assert told.map(METHODS["attention"]) is None
    assert told.map(METHODS["attention_gradient"]) is None
    assert told.map(METHODS["concept"]) is None, "there is no codebook"


def test_maps_of_features_from_inference_mode():
    with torch.inference_mode():
        features = one_hot_grid(3, 0)
        picture = SeenPicture(Oracle(), VOCABULARY.special, features)
        told = ToldCaption(picture, torch.tensor(VOCABULARY.encode(f"a {SHAPES[0]}")), [1])
        assert told.map(METHODS["grad_cam"])[0].ravel().tolist() == [0, 0, 0, 1]


def test_the_concept_map_lies_where_the_word_is_nearest():
    codebook = Codebook(["dog", "ball"], torch.eye(2), "a tower")
    features = one_hot_grid(0, 0)._replace(aligned_BNE=torch.tensor([[[1.0, 0], [0, 1], [0, 1], [0, 1]]]))
    told = ToldCaption(
        SeenPicture(Oracle(), VOCABULARY.special, features),
        torch.tensor(VOCABULARY.encode("a a")),
        words_P=["dogs", "runs"],
        space=TextSpace(codebook, None),
    )
    dogs_hw, runs_hw = told.map(METHODS["concept"])
    assert dogs_hw.ravel() == pytest.approx([1, 0, 0, 0])
    assert runs_hw.ravel() == pytest.approx([0.25] * 4), "a word outside the codebook prefers no cell"


DOG, BALL = 1, 2
"""Two classes of a tower that knows three; their names are the axes of the text space."""


@pytest.fixture
def active():
    """A text space and logits of 3 x 3 cells: a dog above on the left, a ball below on the right."""
    classes_NK = torch.zeros(9, 3)
    classes_NK[0, DOG] = classes_NK[8, BALL] = 90.0
    return TextSpace(Codebook(["dog", "ball"], torch.eye(3)[1:], "a tower"), torch.eye(3)), classes_NK


def test_class_activation_lies_where_the_class_of_the_word_is_active(active):
    space, classes_NK = active
    features = VisualFeatures(torch.zeros(1, 9, len(SHAPES)), hw=(3, 3))
    picture = SeenPicture(Oracle(), VOCABULARY.special, features, classes_NK)
    told = ToldCaption(
        picture, torch.tensor(VOCABULARY.encode("a a a")), None, ["dogs", "red ball", "up"], space
    )
    dogs_hw, ball_hw, up_hw = told.map(METHODS["class_activation"])
    assert dogs_hw.argmax() == 0 and ball_hw.argmax() == 8
    assert dogs_hw[0, 0] > 4 * dogs_hw[2, 2]
    assert up_hw.ravel() == pytest.approx([1 / 9] * 9), "a word outside the codebook prefers no cell"


def test_words_for_things_are_shown_by_their_class_and_others_by_attention(active):
    space, classes_NK = active
    attention_Thw = np.full((3, 3, 3), 1 / 9, np.float32)
    caption = Caption("the dog runs", 0.0, ("the", "dog", "runs"), attention_Thw=attention_Thw)
    shown = with_best_maps(caption, space, classes_NK, (3, 3))
    assert shown.map_names == ("attention", "class_activation", "attention")
    assert shown.shown_Thw[1].argmax() == 0 and shown.shown_Thw[1].sum() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(shown.shown_Thw[[0, 2]], attention_Thw[[0, 2]])
    assert shown.attention_Thw is caption.attention_Thw
    without = with_best_maps(Caption("a dog", 0.0, ("a", "dog")), space, classes_NK, (3, 3))
    assert without.map_names == ("none", "class_activation")


def test_a_model_without_classes_shows_its_attention(active):
    space, classes_NK = active
    caption = Caption("a dog", 0.0, ("a", "dog"), attention_Thw=np.full((2, 3, 3), 1 / 9, np.float32))
    for same in (
        with_best_maps(caption, None, classes_NK, (3, 3)),
        with_best_maps(caption, space, None, (3, 3)),
        with_best_maps(caption, TextSpace(space.codebook, None), classes_NK, (3, 3)),
    ):
        assert (
            same is caption and same.shown_Thw is caption.attention_Thw and same.shown_name(0) == "attention"
        )


@pytest.fixture(scope="module")
def found():
    subjects = drawn_subjects(24, level=2, size=SIDE)
    return check_explanations(OracleModel(subjects), subjects, shape_synonyms(), keep_maps=3), subjects


def test_right_maps_point_at_the_masks_and_others_do_not(found):
    rows = found[0].summaries()
    for right in ("grad_cam", "gradient_times_input", "occlusion"):
        assert rows[right]["pointing"].value == 1
        assert rows[right]["mass"].value > 2 * rows["uniform"]["mass"].value
        assert rows[right]["pointing"].value > rows["centre"]["pointing"].value + 0.3
        assert rows[right]["deletion"].value < rows["random"]["deletion"].value
        assert rows[right]["insertion"].value > rows["random"]["insertion"].value
    assert "attention" not in rows
    assert "deletion" not in rows["uniform"], "an even map ranks no cell"


def test_uniform_hits_as_often_as_cells_lie_on_the_objects(found):
    explanations, _ = found
    expected = np.mean([word.hits["uniform"] for word in explanations.words])
    assert explanations.summaries()["uniform"]["pointing"].value == pytest.approx(expected)
    assert 0 < expected < 0.5


def test_intervals_hold_the_values_and_gains_are_differences(found):
    explanations, _ = found
    rows = explanations.summaries()
    for row in rows.values():
        for value, (low, high) in row.values():
            assert low <= value <= high
    gain = explanations.gain("occlusion", "centre")
    assert gain.value == pytest.approx(rows["occlusion"]["pointing"].value - rows["centre"]["pointing"].value)


def test_gains_on_words_that_are_said_and_words_that_are_read_are_apart(found):
    explanations, _ = found
    said, read = (
        explanations.gain("random", "centre", source=source).value for source in ("generated", "reference")
    )
    assert said != read, "the two sources have words of their own"
    counts = [
        sum(word.source == source for word in explanations.words) for source in ("generated", "reference")
    ]
    whole = explanations.gain("random", "centre").value
    assert whole == pytest.approx((said * counts[0] + read * counts[1]) / sum(counts))
    shown = explanations_json(explanations)["pointing_over_centre"]
    for source in ("generated", "reference"):
        gain = explanations.gain("occlusion", "centre", source=source)
        assert shown[source]["occlusion"]["value"] == gain.value
    assert "words of generated captions" in explanations_text(explanations)


def test_the_curves_are_measured_once_for_each_category_of_a_picture(found):
    explanations, subjects = found
    measured = Counter((word.subject, word.category) for word in explanations.words if word.deletion)
    named = {(word.subject, word.category) for word in explanations.words}
    assert set(measured) == named and set(measured.values()) == {1}


def test_the_page_and_json_hold_the_numbers(found, parse):
    explanations, subjects = found
    shown = explanations_json(explanations)
    assert shown["best"] == best_method(explanations)
    assert shown["words"]["generated"] + shown["words"]["reference"] == len(explanations.words)
    page = parse(explanations_page(explanations, subjects, "oracle", Preprocessing(size=SIDE)))
    text = " ".join(page.text)
    assert "grad_cam" in text
    assert explanations.unknown and all(word in text for word in explanations.unknown)
    assert len(page.images) == sum(len(word.maps) for word in explanations.words) > 0


def test_words_without_an_object_are_counted_and_left_out():
    subjects = drawn_subjects(1, level=1, size=SIDE)
    shape = next(iter(subjects[0].masks))
    absent = next(one for one in SHAPES if one != shape)
    with_more = [Subject(**{**subjects[0].__dict__, "references": (f"a {shape} and a {absent}", "a disc")})]
    other = {"disc": shape, **shape_synonyms()} | {"disc": shape}
    explanations = check_explanations(OracleModel(with_more), with_more, other)
    assert {word.category for word in explanations.words} == {shape}
    assert explanations.unknown == Counter({"disc": 1}), "the model has no such word"


def test_a_picture_of_another_shape_than_its_boxes_is_named_and_left_out():
    subjects = drawn_subjects(2, level=1, size=SIDE)
    wrong = Subject("wide.png", Image.new("RGB", (2 * SIDE, SIDE)), (SIDE, SIDE), masks=subjects[0].masks)
    explanations = check_explanations(OracleModel(subjects), [wrong, *subjects], shape_synonyms())
    assert explanations.pictures == 2
    assert len(explanations.unreadable) == 1 and "128x64" in explanations.unreadable[0]


def test_captions_that_name_nothing_are_an_error():
    subjects = drawn_subjects(1, level=1, size=SIDE)
    with pytest.raises(DataError, match="no word of any caption"):
        check_explanations(OracleModel(subjects), subjects, {"elephant": "elephant"})


def test_pieces_of_a_word_belong_together():
    assert spelled_words(["a</w>", "snow", "board</w>"]) == (["a", "snowboard"], [[0], [1, 2]])
    assert spelled_words(["A", "dog"]) == (["a", "dog"], [[0], [1]])
