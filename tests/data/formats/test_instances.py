"""COCO instances: what is read, and what each fault is called."""

import json

import pytest

from patchword.data.formats.instances import read_instances
from patchword.errors import DataError

GOOD = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 8, "file_name": "b.jpg", "width": 10, "height": 10},
    ],
    "categories": [{"id": 1, "name": "Person"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 20]},
        {"image_id": 7, "category_id": 1, "bbox": [5.5, 0, 1, 1], "iscrowd": 1},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 30]},
    ],
}


def written(tmp_path, **changes):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    return path


def test_boxes_by_category_with_their_edges(tmp_path):
    first, second = read_instances(written(tmp_path))
    assert (first.image_id, first.file, first.size) == (7, "a.jpg", (40, 30))
    assert first.boxes == {"person": [(1, 2, 11, 22), (5.5, 0, 6.5, 1)], "car": [(0, 0, 40, 30)]}
    assert second.boxes == {}, "a picture without objects is there as well"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": [{"id": 7, "file_name": "a.jpg"}]}, "width and height"),
        ({"images": [*GOOD["images"], GOOD["images"][0]]}, "stands twice"),
        ({"categories": [{"id": 1}]}, "a category has"),
        (
            {"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            "no picture in this file",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]}]}, "no category"),
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]}, "expected left, top"),
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 0, 1]}]}, "no area"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, changes, says):
    with pytest.raises(DataError, match=says):
        read_instances(written(tmp_path, **changes))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(DataError, match="expected COCO instances"):
        read_instances(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_instances(tmp_path / "missing.json")
