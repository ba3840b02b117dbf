import json

import pytest
from typer.testing import CliRunner

from patchword.cli import app
from patchword.errors import DataError
from patchword.metrics.nocaps import check_submission, domain_groups


def test_groups():
    images = [
        {"id": 1, "domain": "in-domain"},
        {"id": 2, "domain": "out-domain"},
        {"id": 3, "domain": "near-domain"},
    ]
    groups = domain_groups({"images": images}, [3, 1, 2])
    assert groups == {"in-domain": [1], "near-domain": [3], "out-domain": [2], "entire": [3, 1, 2]}
    with pytest.raises(DataError, match="image 9 has the domain None"):
        domain_groups({"images": images}, [9])


@pytest.mark.parametrize(
    "results, message",
    [
        ({"1": "a"}, "found dict"),
        ([{"image_id": 1}], "entry 0 is not an object with image_id and caption"),
        ([{"image_id": "1", "caption": "a"}], "image_id is '1'"),
        ([{"image_id": 1, "caption": " "}], "caption is ' '"),
        ([{"image_id": 1, "caption": "a"}] * 2, "image 1 stands twice"),
        ([{"image_id": 1, "caption": "a"}], "1 image is missing: 2"),
        ([{"image_id": i, "caption": "a"} for i in (1, 2, 3)], "1 image is not in the annotation file: 3"),
    ],
)
def test_what_a_server_would_refuse(results, message):
    with pytest.raises(DataError, match=message):
        check_submission(results, [1, 2])


def test_submit_command(tmp_path):
    (tmp_path / "info.json").write_text(json.dumps({"images": [{"id": 2}, {"id": 1}]}))
    (tmp_path / "mine.json").write_text(
        json.dumps([{"image_id": 2, "caption": "a  d\u00f6g\n"}, {"image_id": 1, "caption": "b", "x": 0}])
    )
    out = tmp_path / "results.json"
    result = CliRunner().invoke(
        app, ["submit", str(tmp_path / "mine.json"), str(tmp_path / "info.json"), "--out", str(out)]
    )
    assert result.exit_code == 0 and "2 captions" in result.stdout
    assert json.loads(out.read_text(encoding="ascii")) == [
        {"image_id": 1, "caption": "b"},
        {"image_id": 2, "caption": "a d\u00f6g"},
    ]
    result = CliRunner().invoke(
        app,
        [
            "submit",
            str(tmp_path / "none.json"),
            str(tmp_path / "info.json"),
            "--out",
            str(out),
            "--overwrite",
        ],
    )
    assert isinstance(result.exception, DataError) and "none.json does not exist" in str(result.exception)
