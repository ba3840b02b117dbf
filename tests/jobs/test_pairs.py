"""Sources of `patchword filter` as people have them: what cannot be read is counted, nothing is left out in silence,
and nothing comes twice."""

import io
import json
import tarfile

import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from patchword.errors import DataError
from patchword.jobs.filter import BROKEN, filter_pairs
from patchword.jobs.pairs import batches, find_sources
from patchword.jobs.rules import Letters, NearDuplicate, Readable, Size

SAID = "a dog runs through the snow"


def picture(number=0, turned=1):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = turned
    Image.radial_gradient("L").resize((64 + number, 40)).convert("RGB").save(file, "JPEG", exif=exif)
    return file.getvalue()


def tar(path, *files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pairs_of(path):
    return [pair for some in batches([str(path)]) for pair in some]


@pytest.mark.parametrize(
    "name", ["./{}.jpg", "v1.0/{}.jpg", "./a.b/c/{}.jpg", "{}.JPG", "{}.seg.png", "{}.jpg"]
)
@pytest.mark.parametrize("text", ["txt", "json"])
def test_kind_4_every_pair_of_a_webdataset_is_found_however_its_files_are_named(tmp_path, name, text):
    said = SAID if text == "txt" else json.dumps({"caption": SAID, "url": "http://a"})
    stem = name.split("{}")[0]
    files = []
    for number in range(3):
        files += [(name.format(number), picture(number)), (f"{stem}{number}.{text}", said.encode())]
    found = pairs_of(tar(tmp_path / "a.tar", *files))
    assert [(pair.text, pair.problem) for pair in found] == [(SAID, "")] * 3
    assert [pair.content for pair in found] == [picture(number) for number in range(3)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"\ufeffcaption,url\n{SAID},u\n"),
        ("a.csv", f"url;caption\nu;{SAID}\n"),
        ("a.tsv", f"filepath\ttitle\nu\t{SAID}\n"),
        ("A.CSV", f'url,caption,width,height\nu,"{SAID}",64.0,\n'),
        ("a.jsonl", "\ufeff" + json.dumps({"TEXT": SAID, "url": "u", "width": None}) + "\n\n"),
        ("a.jsonl", json.dumps({"captions": [SAID, SAID], "url": "u"})),
    ],
)
def test_kind_13_tables_of_other_programs_are_read(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = pairs_of(tmp_path / name)
    assert {(pair.text, pair.name, pair.problem) for pair in found} == {(SAID, "u", "")}


def test_kind_13_parquet_of_hugging_face_holds_its_pictures_with_their_names(tmp_path):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": picture(), "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}], kind)
    parquet.write_table(pyarrow.table({"text": [SAID, SAID], "image": images}), tmp_path / "a.parquet")
    found = pairs_of(tmp_path / "a.parquet")
    assert [(pair.name, pair.content) for pair in found] == [("a.jpg", picture()), ("b.jpg", None)]


def test_kind_3_a_table_beside_its_shard_brings_no_pair_twice(tmp_path):
    """As img2dataset writes them; shards in folders below count as well."""
    (tmp_path / "crawl" / "below").mkdir(parents=True)
    for place in ("crawl", "crawl/below"):
        tar(tmp_path / place / "00000.tar", ("0.jpg", picture()), ("0.txt", SAID.encode()))
        parquet.write_table(pyarrow.table({"caption": [SAID]}), tmp_path / place / "00000.parquet")
        (tmp_path / place / "00000_stats.json").write_text("{}")
    report = filter_pairs([str(tmp_path / "crawl")], tmp_path / "out", [], lambda read, kept: None)
    assert (report.read, report.kept) == (2, 2)
    assert report.left_out == {"table beside a .tar of the same name": 2, "no shard": 2}


def test_kind_4_what_cannot_be_read_is_counted_and_the_rest_is_kept(tmp_path, patchword):
    whole = tar(tmp_path / "a.tar", *((f"{n}.{s}", c) for n in range(2) for s, c in
                                      (("jpg", picture(n)), ("txt", SAID.encode()))))  # fmt: skip
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:2500])
    (tmp_path / "no.parquet").write_bytes(b"no table")
    lines = [json.dumps({"caption": SAID}), "{broken", "[1]", json.dumps({"caption": SAID + " \ud83d"})]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.csv").write_text(f"caption\n{'x' * 200_000}\n{SAID}\n")
    names = [tmp_path / name for name in ("a.tar", "cut.tar", "no.parquet", "b.jsonl", "c.csv")]
    rules = ("--rules", "length", "--words", 3, 9)
    status, said, err = patchword("filter", *names, "--out", tmp_path / "out", *rules)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (status, err) == (1, "") and f"{BROKEN}: 5" in said
    assert (report["read"], report["kept"], report["dropped"][0]["pairs"]) == (10, 5, 5)


def test_kind_6_what_is_no_source_is_said_before_anything_is_written(tmp_path, patchword):
    (tmp_path / "a.csv").write_text("url,words\nu,a dog\n")
    (tmp_path / "a.jsonl").write_text('{"url": "u"}\n')
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("gone.tar", "gone.tar does not exist"),
        ("a.csv", "no column of texts: expected one of caption"),
        ("a.jsonl", "no column of texts"),
        ("empty", "no .parquet and no .tar in this folder"),
    ):
        status, _, err = patchword("filter", tmp_path / name, "--out", tmp_path / "out")
        assert status == 2 and message in err and len(err.splitlines()) == 1
    with pytest.raises(DataError, match="does not exist"):
        find_sources([str(tmp_path / "a.csv"), str(tmp_path / "gone.csv")])


def test_kind_1_sides_are_those_of_the_upright_picture(tmp_path):
    files = [
        (f"{n}.{s}", c) for n in range(1, 9) for s, c in (("jpg", picture(0, n)), ("txt", SAID.encode()))
    ]
    found = pairs_of(tar(tmp_path / "a.tar", *files))
    assert [(pair.width, pair.height) for pair in found] == [(64, 40)] * 4 + [(40, 64)] * 4
    assert Size(40, 2)(found) == [None] * 8


def test_kind_4_rules_over_pictures_drop_what_cannot_be_decoded(tmp_path):
    found = pairs_of(tar(tmp_path / "a.tar", ("0.jpg", b"\xff\xd8\xff broken"), ("0.txt", SAID.encode())))
    assert all("damaged" in (rule(found)[0] or "") for rule in (NearDuplicate(), Readable()))


def test_kind_12_a_script_that_no_letter_has_and_words_in_the_wrong_order(tmp_path, patchword):
    (tmp_path / "a.csv").write_text(f"caption\n{SAID}\n")
    call = ("filter", tmp_path / "a.csv", "--out", tmp_path / "out")
    assert "no letter of Unicode is 'KLINGON'" in patchword(*call, "--script", "klingon")[2]
    assert "expected the fewest words, then the most" in patchword(*call, "--words", 60, 3)[2]
    assert Letters(script="GREEK").script == "GREEK"


def test_kind_4_a_test_set_says_what_of_it_was_not_read(tmp_path, patchword):
    (tmp_path / "a.csv").write_text(f"caption\n{SAID}\n")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(b"broken")
    call = ("filter", tmp_path / "a.csv", "--test-set", tmp_path / "set", "--out")
    status, _, err = patchword(*call, tmp_path / "one")
    assert status == 2 and "no picture there can be read" in err
    (tmp_path / "set" / "b.jpg").write_bytes(picture())
    (tmp_path / "set" / "notes.md").write_text("mine")
    status, _, err = patchword(*call, tmp_path / "two")
    assert status == 0 and "1 picture of --test-set, 1 could not be read; left out 1 (no picture: 1)" in err
