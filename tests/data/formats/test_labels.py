import json
import tracemalloc

import pytest

from patchword.data.formats.labels import LabelTable, TableColumns, absent
from patchword.errors import DataError

HARD = 'he said "two, or three"\nand left'


@pytest.fixture
def table(tmp_path):
    def made(content, name="table.csv", **columns):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return LabelTable(path, TableColumns(**columns))

    return made


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_with_quotes_and_newlines(table, mark, delimiter, ending):
    rows = [
        ("image", "text", "Label", "split"),
        ("a.jpg", quoted(HARD), "cat", "train"),
        ("b.jpg", "café", "dog", "val"),
    ]
    found = list(table(mark + (ending.join(delimiter.join(row) for row in rows) + ending).encode()).rows())
    assert [(row.file, row.text, row.labels, row.split) for row in found] == [
        ("a.jpg", " ".join(HARD.split()), ("cat",), "train"),
        ("b.jpg", "café", ("dog",), "val"),
    ]
    assert found[1].where.endswith("line 4")  # the first row takes two lines


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_row_is_read_again_by_its_place(table, name):
    texts = [HARD, "", "plain", "日本語", "x" * 9000]
    if name.endswith("csv"):
        content = "\ufeffimage,text,label\n" + "".join(
            f"{i}.jpg,{quoted(text)},l{i}\n\n" for i, text in enumerate(texts)
        )
    else:
        content = "\ufeff" + "".join(
            json.dumps({"image": f"{i}.jpg", "text": text, "label": f"l{i}"}) + "\n"
            for i, text in enumerate(texts)
        )
    made = table(content, name)
    rows = list(made.rows())
    assert [row.text for row in rows] == [" ".join(text.split()) for text in texts]
    for row in reversed(rows):
        again = made.read(row.place)
        assert (again.file, again.text, again.labels) == (row.file, row.text, row.labels)


def test_several_labels(table):
    csv = table("image,text,label\na.jpg,x,red| round |red\nb.jpg,y,\n", separator="|")
    assert [row.labels for row in csv.rows()] == [("red", "round"), ()]
    lines = table('{"image": "a.jpg", "text": "x", "label": ["red", "round"]}\n', "t.jsonl", separator="|")
    assert [row.labels for row in lines.rows()] == [("red", "round")]


def test_columns_of_other_names(table):
    made = table("File;Says;Kind\na.jpg;x;cat\n", image="file", text="says", label="kind")
    assert [(row.file, row.text, row.labels) for row in made.rows()] == [("a.jpg", "x", ("cat",))]


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (
            "picture,words\na,b\n",
            "t.csv",
            "line 1: expected a header with the columns image, text and label, found 'picture,words'",
        ),
        ("image,text,label\na.jpg,x\n", "t.csv", "line 2: the row has 2 cells where the header has 3"),
        ('image,text,label\na.jpg,"x,cat\n', "t.csv", "line 2: this row cannot be read"),
        (b"image,text,label\na.jpg,\xff,cat\n", "t.csv", "line 2: byte 0xff at column 7 is not UTF-8"),
        ("image,text".encode("utf-16"), "t.csv", "UTF-16"),
        ('{"image": "a.jpg"}\n{"image"\n', "t.jsonl", "line 2: this is not JSON"),
        ('{"image": "a.jpg"}\n[1]\n', "t.jsonl", "line 2: expected one JSON object per line, found list"),
        (
            '{"image": "a.jpg", "label": ["x"]}\n',
            "t.jsonl",
            "set data.columns.separator where a row has several labels",
        ),
        ("image,text,label,split\na.jpg,x,cat,later\n", "t.csv", "line 2: the split is 'later'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(table, content, name, says):
    with pytest.raises(DataError) as raised:
        list(table(content, name).rows())
    assert says in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.csv: cannot be read"):
        LabelTable(tmp_path / "none.csv", TableColumns())


def test_missing_picture_or_text(table, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    whole, no_text, no_image, nothing = table(
        "image,text,label\na.jpg,x,l\na.jpg,  ,l\ngone.jpg,x,l\n,,l\n"
    ).rows()
    assert absent(whole, tmp_path, (True, True), "error") == (False, False)
    with pytest.raises(DataError, match="line 3: the text is empty"):
        absent(no_text, tmp_path, (True, True), "error")
    with pytest.raises(DataError, match="line 3: the text is empty"):
        absent(no_text, tmp_path, (True, True), "text-only")
    assert absent(no_text, tmp_path, (True, True), "image-only") == (False, True)
    assert absent(no_text, tmp_path, (True, False), "error") == (
        False,
        False,
    )  # a model of pictures alone does not care
    with pytest.raises(DataError, match="line 4: no picture .*gone.jpg"):
        absent(no_image, tmp_path, (True, True), "error")
    assert absent(no_image, tmp_path, (True, True), "text-only") == (True, False)
    with pytest.raises(DataError, match="line 5: the row has nothing that the model reads"):
        absent(nothing, tmp_path, (True, True), "text-only")


def test_a_large_table_is_streamed(tmp_path):
    path = tmp_path / "large.csv"
    with open(path, "w", encoding="utf-8") as file:
        file.write("image,text,label\n")
        file.writelines(f"{i}.jpg,{'word ' * 20},l{i % 7}\n" for i in range(30_000))
    tracemalloc.start()
    count = sum(1 for _ in LabelTable(path, TableColumns()).rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert peak < path.stat().st_size / 10
