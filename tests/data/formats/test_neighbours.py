"""Data sets in the layouts of other programs: open_clip's tables, imagefolder, Parquet, and what `datasets`
saved."""

import csv
import io
import json

import pytest
from PIL import Image

from patchword.data.formats.check import examine
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.pictures import open_picture
from patchword.errors import DataError, MissingExtra

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

ROWS = [("a.png", "a red square", "red"), ("b.png", "a blue square", "blue"), ("b.png", "it is blue", "blue")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHWORD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(colour):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, "PNG")
    return content.getvalue()


def pictures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, colour in ROWS:
        (folder / name).write_bytes(png(colour))


def found(records):
    return {record.file: (record.image_id, record.captions, record.split) for record in records}


def test_open_clips_table_is_read_under_its_own_names(tmp_path):
    path = tmp_path / "train.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("filepath", "title"), *(row[:2] for row in ROWS)])
    assert found(read_captions(path)) == {
        "a.png": ("a.png", ("a red square",), None),
        "b.png": ("b.png", ("a blue square", "it is blue"), None),
    }


def metadata(folder, kind, rows, names=("file_name", "text")):
    pictures(folder)
    if kind == "csv":
        with open(folder / "metadata.csv", "w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    elif kind == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows]
        (folder / "metadata.jsonl").write_text("".join(lines))
    else:
        table = pa.table(
            {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        )
        pa.parquet.write_table(table, folder / "metadata.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolder_with_one_metadata_file(tmp_path, kind):
    metadata(tmp_path / "data", kind, [row[:2] for row in ROWS])
    records = read_captions(tmp_path / "data")
    assert [(record.file, record.captions) for record in records] == [
        ("a.png", ("a red square",)),
        ("b.png", ("a blue square", "it is blue")),
    ]
    assert not examine(tmp_path / "data").stops


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolder_with_a_folder_for_each_split(tmp_path, kind):
    for split in ("train", "validation"):
        metadata(tmp_path / "data" / split, kind, [row[:2] for row in ROWS[:1]])
    records = read_captions(tmp_path / "data")
    assert [(record.file, record.split) for record in records] == [
        ("train/a.png", "train"),
        ("validation/a.png", "val"),
    ]
    assert not examine(tmp_path / "data").stops


def test_imagefolder_whose_one_file_names_the_splits_of_its_pictures(tmp_path):
    pictures(tmp_path / "train")
    pictures(tmp_path / "test")
    rows = [("train/a.png", "red"), ("test/b.png", "blue")]
    (tmp_path / "metadata.csv").write_text(
        "file_name,caption\n" + "".join(",".join(row) + "\n" for row in rows)
    )
    assert [record.split for record in read_captions(tmp_path)] == ["train", "test"]


def test_a_metadata_file_without_captions_says_what_is_missing(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,1\n")
    with pytest.raises(DataError, match="metadata.csv, line 1: expected a header with file_name and caption"):
        read_captions(tmp_path)


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def inside(rows=ROWS, named=True):
    """A table whose pictures lie in it as `datasets` writes them."""
    cells = [{"bytes": png(colour), "path": name if named else None} for name, _, colour in rows]
    return pa.table({"image": pa.array(cells, STRUCT), "text": [text for _, text, _ in rows]})


def save(folder, table):
    """What `Dataset.save_to_disk` leaves."""
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"})
    )


def saved_splits(folder, **tables):
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(tables)}))
    for split, table in tables.items():
        save(folder / split, table)


def test_what_datasets_saved_is_read_with_its_pictures(tmp_path, cache):
    saved_splits(tmp_path / "saved", train=inside(ROWS[:2]), validation=inside(ROWS[:1]))
    records = read_captions(tmp_path / "saved")
    assert [(record.image_id, record.captions, record.split) for record in records] == [
        ("train/a.png", ("a red square",), "train"),
        ("train/b.png", ("a blue square",), "train"),
        ("validation/a.png", ("a red square",), "val"),
    ]
    colours = [open_picture(tmp_path / "anywhere" / record.file).getpixel((0, 0)) for record in records]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    times = {file: file.stat().st_mtime_ns for file in cache.rglob("*.png")}
    assert read_captions(tmp_path / "saved") == records and len(times) == len(records)
    assert times == {file: file.stat().st_mtime_ns for file in cache.rglob("*.png")}
    assert not examine(tmp_path / "saved").stops


def test_one_saved_data_set_has_no_splits_and_unnamed_pictures_their_numbers(tmp_path):
    save(tmp_path / "saved", inside(named=False))
    records = read_captions(tmp_path / "saved")
    assert [(record.image_id, record.split) for record in records] == [("0", None), ("1", None), ("2", None)]
    assert {record.split for record in split_records(records, "train")} == {"train"}


def test_pictures_of_the_same_name_stay_apart(tmp_path):
    save(tmp_path / "saved", inside([ROWS[0], ("a.png", "another", "green")]))
    records = read_captions(tmp_path / "saved")
    assert len({record.image_id for record in records}) == len({record.file for record in records}) == 2


@pytest.mark.parametrize("pictures_in", [True, False])
def test_one_parquet_file(tmp_path, pictures_in):
    table = inside() if pictures_in else pa.table({"filepath": ["a.png", "b.png"], "title": ["red", "blue"]})
    pa.parquet.write_table(table, tmp_path / "data.parquet")
    records = read_captions(tmp_path / "data.parquet")
    assert [record.captions[0] for record in records] == (
        [text for _, text, _ in ROWS] if pictures_in else ["red", "blue"]
    )


def test_a_paths_only_column_of_datasets_is_read_as_paths(tmp_path):
    table = pa.table(
        {
            "image": pa.array([{"bytes": None, "path": "photos/a.png"}], STRUCT),
            "caption": [["red", "a square"]],
        }
    )
    pa.parquet.write_table(table, tmp_path / "data.parquet")
    assert found(read_captions(tmp_path / "data.parquet")) == {
        "photos/a.png": ("photos/a.png", ("red", "a square"), None)
    }


@pytest.mark.parametrize("content", [b"", b"PAR1 no table", png("red")])
def test_a_broken_parquet_file_is_named(tmp_path, content):
    (tmp_path / "data.parquet").write_bytes(content)
    with pytest.raises(DataError, match="data.parquet: is no table that can be read"):
        read_captions(tmp_path / "data.parquet")


@pytest.mark.parametrize("place", ["a text", "a name"])
def test_a_text_or_a_name_that_is_no_utf8_is_an_error_of_the_file(tmp_path, place):
    table = pa.table({"image": ["a.png"], "caption": ["zzzz"], "qqqq": ["more"]})
    path = tmp_path / "data.parquet"
    pa.parquet.write_table(table, path, compression="none", use_dictionary=False, store_schema=False)
    seen = {"a text": b"zzzz", "a name": b"qqqq"}[place]
    content = path.read_bytes()
    assert seen in content
    path.write_bytes(content.replace(seen, b"\xf0" + seen[1:]))
    with pytest.raises(DataError, match="data.parquet: .*(is no UTF-8|codec can.t decode)"):
        read_captions(path)


def test_without_pyarrow_the_message_names_the_extra(tmp_path, monkeypatch):
    pa.parquet.write_table(inside(), tmp_path / "data.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'patchword\[arrow\]'"):
        read_captions(tmp_path / "data.parquet")
