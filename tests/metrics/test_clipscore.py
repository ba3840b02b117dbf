import numpy as np
import pytest

from patchword.errors import DataError
from patchword.metrics.clipscore import clip_score, ref_clip_score

IMAGES = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
CAPTIONS = np.array([[3.0, 4.0], [0.0, 5.0], [-1.0, 0.0]])


def test_hand_worked_numbers():
    found = clip_score(IMAGES, CAPTIONS)["CLIPScore"]
    assert found.per_item == pytest.approx({0: 1.5, 1: 2.5, 2: 0.0})
    assert found.value == pytest.approx(4 / 3)


def test_reference_version_takes_the_best_reference_and_cuts_at_zero():
    references = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = ref_clip_score(IMAGES, CAPTIONS, references, np.array([0, 0, 1, 2]))["RefCLIPScore"]
    assert found.per_item == pytest.approx({0: 2 * 1.5 / 2.5, 1: 2 * 2.5 / 3.5, 2: 0.0})


@pytest.mark.parametrize(
    "images, captions, message",
    [
        (IMAGES, CAPTIONS[:2], "one caption for each image"),
        (IMAGES * [[1], [0], [1]], CAPTIONS, "image embedding of row 1 is zero"),
        (IMAGES, CAPTIONS * np.nan, "caption embedding of row 0 is zero or not finite"),
        (IMAGES[0], CAPTIONS, r"shape \(2,\)"),
    ],
)
def test_errors(images, captions, message):
    with pytest.raises(DataError, match=message):
        clip_score(images, captions)


def test_caption_without_reference():
    with pytest.raises(DataError, match="caption row 1 has no reference"):
        ref_clip_score(IMAGES, CAPTIONS, CAPTIONS[:2], np.array([0, 2]))
