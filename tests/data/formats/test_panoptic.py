"""Classes of grid cells from panoptic masks: drawn scenes, whose masks are known, written as COCO writes
them.
"""

import numpy as np
import pytest
from PIL import Image

from patchword.data.formats.panoptic import (
    UNLABELLED,
    cell_classes,
    panoptic_store,
    read_panoptic,
    segment_ids,
)
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord
from patchword.errors import DataError, StoreError

SQUASHED, CROPPED = Preprocessing(size=32), Preprocessing(size=32, fit="short_side_center_crop")


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (37, 90), (20, 333), (1000, 8)])
@pytest.mark.parametrize(
    "fit", [SQUASHED, CROPPED, Preprocessing(size=32, fit="short_side_center_crop", cover=1.25)]
)
def test_cells_lie_where_the_tower_sees_them(size, fit):
    """Two halves in two colours, cut where they meet: the class of a cell is the colour that the prepared
    picture shows there.
    """
    width, height = size
    ids_HW = np.ones((height, width), dtype=np.int32)
    if width >= height:
        ids_HW[:, : int(0.45 * width)] = 2
    else:
        ids_HW[: int(0.45 * height)] = 2
    shown_HWC = fit.apply(Image.fromarray(np.repeat((ids_HW == 2)[..., None] * np.uint8(255), 3, axis=2)))
    share_44 = shown_HWC[..., 0].reshape(4, 8, 4, 8).mean(axis=(1, 3)) / 255
    found_44 = cell_classes(ids_HW, {1: 10, 2: 20}, fit.seen(width, height), (4, 4)).reshape(4, 4)
    clear_44 = np.abs(share_44 - 0.5) > 0.15  # a cell that the border halves may fall to either
    assert clear_44.any() and np.array_equal(found_44[clear_44], np.where(share_44 > 0.5, 20, 10)[clear_44])


def test_majority_by_area_by_hand():
    """Upper left cell: 3 of 4 pixels of segment 70000; lower right: 2 unlabelled, 1 of each class; segment 9
    is listed nowhere.
    """
    ids_HW = np.array([[70000, 70000, 5, 5], [70000, 5, 5, 5], [9, 9, 0, 0], [5, 9, 5, 70000]])
    classes = cell_classes(ids_HW, {70000: 3, 5: 7}, (0, 0, 4, 4), (2, 2))
    assert classes.tolist() == [3, 7, UNLABELLED, UNLABELLED]
    assert (
        cell_classes(ids_HW[:1, :1], {70000: 3}, (0, 0, 1, 1), (2, 2)).tolist() == [3] * 4
    )  # cells smaller than the pixel


def test_ids_are_read_from_colours():
    assert segment_ids(np.array([[[1, 2, 3]]], dtype=np.uint8)).tolist() == [[1 + 2 * 256 + 3 * 65536]]


@pytest.fixture
def segmented(tmp_path, write_panoptic):
    """Three scenes with masks and panoptic JSON, and records of four pictures."""
    from patchword.data.scenes import make_scenes

    scenes = make_scenes(3, level=2)
    path = write_panoptic(tmp_path, scenes, range(3), size=32)
    return (
        tmp_path,
        path,
        scenes,
        [CaptionRecord(number, f"{number}.png", ("a thing",)) for number in range(4)],
    )


def test_a_data_set_of_masks_becomes_a_store(segmented):
    from patchword.data.scenes import masks
    from patchword.data.scenes.world import SHAPES

    folder, path, scenes, records = segmented
    store = panoptic_store(
        path, folder / "panoptic", records, SQUASHED, (4, 4), folder / "cache", lambda count: None
    )
    classes_B44 = np.asarray(store.fields["classes"]).reshape(4, 4, 4)
    assert (classes_B44[3] == UNLABELLED).all()  # no segmentation, no label
    owners_BKSS = masks(scenes, 32)
    for b, scene in enumerate(scenes):
        shares_K44 = owners_BKSS[b].reshape(-1, 4, 8, 4, 8).mean(axis=(2, 4))
        expected_44 = np.full((4, 4), UNLABELLED)
        for k, thing in enumerate(scene.things):
            expected_44[shares_K44[k] > 0.5] = 1 + SHAPES.index(thing.shape)
        clear_44 = (shares_K44 > 0.5).any(axis=0) | (shares_K44.sum(axis=0) < 0.5)
        assert clear_44.sum() > 8 and np.array_equal(classes_B44[b][clear_44], expected_44[clear_44])
    again = panoptic_store(
        path,
        folder / "panoptic",
        records,
        SQUASHED,
        (4, 4),
        folder / "cache",
        lambda count: pytest.fail("made twice"),
    )
    assert np.array_equal(again.fields["classes"], store.fields["classes"])


def test_what_is_wrong_with_masks_is_said(segmented):
    folder, path, _, records = segmented

    def make(annotations=path, masks=folder / "panoptic", records=records):
        panoptic_store(annotations, masks, records, SQUASHED, (4, 4), folder / "cache", lambda count: None)

    with pytest.raises(DataError, match="no panoptic annotations at"):
        make(annotations=folder / "none.json")
    (folder / "captions.json").write_text('{"annotations": [{"image_id": 1, "caption": "a dog"}]}')
    with pytest.raises(DataError, match="is no panoptic JSON .KeyError: 'file_name'"):
        read_panoptic(folder / "captions.json")
    with pytest.raises(DataError, match="none of them is among the training pictures"):
        make(records=[CaptionRecord(99, "99.png", ("a thing",))])
    with pytest.raises(StoreError, match="No such file"):
        make(masks=folder / "nowhere")
    for mask in (folder / "panoptic").iterdir():
        Image.new("RGB", (32, 32), (1, 1, 1)).save(mask)
    with pytest.raises(DataError, match="no pixel belongs to a segment that the annotations list"):
        make()
