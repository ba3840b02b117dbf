"""Documents with pictures between texts, in each layout, and what is wrong with them."""

import json

import pytest

from patchword.data.formats.interleaved import Part, read_documents
from patchword.errors import DataError

EXPECTED = (Part(image="a.jpg"), Part(text="a dog"), Part(image="b.jpg"), Part(text="a cat"))
LAYOUTS = {
    "ours": {"parts": [{"image": "a.jpg"}, {"text": "a dog"}, {"image": "b.jpg"}, "a cat"]},
    "obelics": {"images": ["a.jpg", None, "b.jpg", None], "texts": [None, "a dog", None, "a cat"]},
    "mmc4": {
        "text_list": ["a dog", "a cat"],
        "image_info": [
            {"image_name": "b.jpg", "matched_text_index": 1},
            {"image_name": "a.jpg", "matched_text_index": 0},
        ],
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_json_lines(layout, tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps(LAYOUTS[layout] | {"split": "val", "name": "one"}) + "\n\n")
    (document,) = read_documents(path)
    assert document.parts == EXPECTED and document.images == ("a.jpg", "b.jpg")
    assert (document.name, document.split) == ("one", "val")


def test_pages(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.html").write_text(
        "<html><head><title>T</title><style>p {}</style></head><body><img src='../a.jpg'><p>a\n <b>dog</b></p>"
        '<script>no()</script><img src="../b.jpg"/><p>a cat</p></body></html>'
    )
    (tmp_path / "page.md").write_text("![x](a.jpg)\na dog\n\n![](<b.jpg> 'title') a cat\n")
    for document in read_documents(tmp_path):
        assert document.parts == EXPECTED, document


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this is not JSON"),
        ('{"a": 1}', "found a; expected JSON lines"),
        ('{"images": [], "texts": ["a"]}', "one of the two at each place"),
        ('{"parts": [{"image": "a", "text": "b"}]}', "a part is"),
        ('{"parts": ["x", {"image": "https://a/b.jpg"}]}', "is an address"),
        ('{"parts": ["x", {"image": 3}]}', "expected the name of a file"),
        ('{"parts": ["x"], "split": "dev"}', "expected train, val or test"),
        (
            '{"text_list": ["a"], "image_info": [{"image_name": "a", "matched_text_index": 1}]}',
            "is 1, and there",
        ),
        ('{"parts": [{"image": "a.jpg"}]}', "no document with a text"),
    ],
)
def test_what_is_wrong_is_named(line, message, tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_documents(path)


def test_with_complaints_the_rest_is_read(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text('{"parts": ["x", {"image": "http://a/b.jpg"}, {"image": "c.jpg"}]}\n{\n')
    said = []
    (document,) = read_documents(path, lambda kind, where, what: said.append((kind, where)))
    assert document.images == ("c.jpg",) and [kind for kind, _ in said] == ["address", "json"]
    assert said[1][1].endswith("line 2")


def test_pictures_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "page.md").write_text("text ![](../secret.jpg)")
    with pytest.raises(DataError, match="lies outside"):
        read_documents(tmp_path)
