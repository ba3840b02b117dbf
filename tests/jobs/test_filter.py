"""Filtering a crawl: what each rule drops, the counts, shards that are read again, memory that stays flat."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import patchword.jobs.filter as filter_file
from patchword.data.formats.readers import read_captions
from patchword.errors import ConfigError, DataError
from patchword.jobs.filter import filter_pairs
from patchword.jobs.pairs import batches
from patchword.jobs.rules import (
    Boilerplate,
    Counts,
    Length,
    Letters,
    NearDuplicate,
    Pair,
    RareWords,
    Readable,
    SameText,
    Size,
    difference_hash,
)


def texts(*given):
    return [Pair(str(number), text) for number, text in enumerate(given)]


def kept(rule, *given):
    return [why is None for why in rule(texts(*given))]


def jpeg(seed, quality=95, side=64, crop=0):
    """A smooth random picture; `crop` pixels are cut from its left."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = (
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).crop((crop, 0, side, side))
    )
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_rules_over_texts():
    assert kept(Length(3, 5), "a dog", "a brown dog", "a b c d e", "a b c d e f") == [
        False,
        True,
        True,
        False,
    ]
    found = kept(Letters(), "a dog runs", "12345 67 a", "Собака бежит по снегу", "a café in Zürich", "")
    assert found == [True, False, False, True, False]
    assert kept(Letters(script="CYRILLIC"), "Собака бежит", "a dog runs") == [True, False]
    said = ["Stock Photo of a dog", "IMG_1234", "see www.shop.com", "a dog by the shopfront", "an icon"]
    assert kept(Boilerplate(), *said) == [False, False, False, True, False]
    assert kept(SameText(2), "a dog", "A  dog", "a cat", "a dog", "a cat") == [True, True, True, False, True]
    rare = RareWords(after=2)
    assert kept(rare, "zx qy", "a brown dog", "a brown cat", "xq7 vv9 zz1", "dog") == [
        True,
        True,
        True,
        False,
        True,
    ]


def test_rules_over_pictures():
    size = Size(50, 3)
    whys = size([Pair("a", "t", None, *hw) for hw in ((60, 60), (49, 90), (60, 181), (0, 0), (60, 180))])
    assert [why is None for why in whys] == [True, False, False, True, True]
    pairs = [Pair(str(seed), "t", jpeg(seed)) for seed in range(40)]
    near = NearDuplicate()
    assert near(pairs) == [None] * 40
    again = [Pair("again", "t", jpeg(seed, quality=40, side=80)) for seed in range(40)]
    assert sum(why is not None for why in near(again)) >= 36
    held_out = NearDuplicate(among=[difference_hash(Image.open(io.BytesIO(jpeg(3))))])
    assert held_out.name == "in the test set"
    assert [why is None for why in held_out(pairs[:5])] == [True, True, True, False, True]
    whys = Readable()([pairs[0], Pair("bad.jpg", "t", b"\xff\xd8\xff no"), Pair("text alone", "t")])
    assert whys[0] is None and "bad.jpg" in whys[1] and whys[2] is None


def test_counts_are_never_too_low_and_take_no_more_memory():
    counts, truth = Counts(places=512), {}
    for number in np.random.default_rng(0).integers(0, 300, 3000):
        truth[number] = truth.get(number, 0) + 1
        assert counts.add(str(number)) >= truth[number]
    exact = Counts()
    assert [exact.add(word) for word in "a b a a c".split()] == [1, 1, 2, 3, 1]


def test_one_pass_over_all_kinds_of_sources_counts_and_writes_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("patchword.jobs.filter.SHARD", 3)
    monkeypatch.setattr("patchword.jobs.pairs.AT_ONCE", 2)
    table = pyarrow.table(
        {
            "TEXT": ["a brown dog runs", "img_1", "a brown dog runs", "two"],
            "url": ["http://a", "http://b", "http://c", "http://d"],
            "jpg": [jpeg(0), jpeg(1), jpeg(2), jpeg(3)],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for name, content in (
            ("x/1.jpg", jpeg(0)),
            ("x/1.txt", b"the same dog again"),
            ("x/2.txt", b"a cat sleeps on a bed"),
            ("x/2.jpg", jpeg(5)),
            ("x/3.jpg", b"broken"),
            ("x/3.txt", b"a broken picture here"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    rows = [{"image": "p.jpg", "caption": "three red birds fly", "width": 10, "height": 90}]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "d.csv").write_text("filepath,title,width,height\nq.jpg,four red birds fly,90,90\n")
    sources = [str(tmp_path / name) for name in ("a.parquet", "b.tar", "c.jsonl", "d.csv")]
    rules = [Length(), Boilerplate(), Size(20), Readable(), NearDuplicate()]
    seen = []
    report = filter_pairs(sources, tmp_path / "out", rules, lambda read, kept: seen.append((read, kept)))
    assert (report.read, report.kept, report.shards) == (9, 4, 2) and seen[-1] == (9, 4)
    assert {one.rule: one.pairs for one in report.dropped} == {
        "length": 2,
        "boilerplate": 0,
        "size": 1,
        "readable": 1,
        "near-duplicate": 1,
    }
    assert report.dropped[0].examples[0] == ("http://b", "img_1", "1 word")
    held = json.loads((tmp_path / "out" / "report.json").read_text())
    assert held["kept"] == 4 and held["dropped"][4]["examples"][0][1] == "the same dog again"
    again = [pair for some in batches([str(tmp_path / "out")]) for pair in some]
    assert [pair.text for pair in again] == [
        "a brown dog runs",
        "a brown dog runs",
        "a cat sleeps on a bed",
        "four red birds fly",
    ]
    assert again[2].content == jpeg(5) and (again[2].width, again[2].name) == (64, f"{tmp_path}/b.tar#x/2")
    with pytest.raises(ConfigError, match="is there already: name a new folder"):
        filter_pairs(sources, tmp_path / "out", rules, lambda read, kept: None)
    with pytest.raises(DataError, match=r"expected .parquet, .tar \(WebDataset\)"):
        list(batches([str(tmp_path / "x.zip")]))


def test_tar_shards_are_read_again_and_trained_on(tmp_path, patchword):
    from patchword.data.pictures import open_picture

    rows = {
        "text": ["a red dog", "a blue cat"],
        "url": ["http://a", "http://b"],
        "jpg": [jpeg(0), jpeg(1, side=80)],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    out = tmp_path / "out"
    status, printed, _ = patchword(
        "filter", tmp_path / "a.parquet", "--out", out, "--to", "tar", "--rules", "length"
    )
    assert status == 0 and "2 of 2 pairs in 1 shard" in printed
    again = list(batches([str(out)]))[0]
    assert [(pair.text, pair.content) for pair in again] == list(zip(rows["text"], rows["jpg"], strict=True))
    records = read_captions(out)
    assert [record.captions for record in records] == [("a red dog",), ("a blue cat",)]
    assert [open_picture(out / record.file).width for record in records] == [64, 80]
    (tmp_path / "c.jsonl").write_text('{"image": "p.jpg", "caption": "three red birds"}')
    status, _, said = patchword(
        "filter", tmp_path / "c.jsonl", "--out", tmp_path / "x", "--to", "tar", "--rules", "length"
    )
    assert status == 2 and "its source has no bytes of the picture" in said


def test_parquet_shards_are_data_sets_with_their_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHWORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(filter_file, "SHARD", 3)
    texts, pictures = [f"a picture with number {number}" for number in range(8)], [jpeg(n) for n in range(8)]
    parquet.write_table(pyarrow.table({"text": texts, "jpg": pictures}), tmp_path / "crawl.parquet")
    out = tmp_path / "clean"
    filter_pairs([str(tmp_path / "crawl.parquet")], out, [], lambda read, kept: None)
    (out / "shard-00000002.parquet").rename(out / "val-00000.parquet")
    (out / ".shard-00000009.parquet").write_bytes(b"half of a shard")
    for _ in range(2):  # once from the shards, once from the cache
        records = read_captions(out)
        assert [record.captions for record in records] == [(text,) for text in texts]
        assert [record.split for record in records] == [None] * 6 + ["val"] * 2
        assert [Path(record.file).read_bytes() for record in records] == pictures


def test_the_command_names_its_rules(patchword, tmp_path):
    rows = [{"image": f"{n}.jpg", "caption": "a small dog"} for n in range(4)]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    status, out, _ = patchword(
        "filter",
        tmp_path / "c.jsonl",
        "--out",
        tmp_path / "out",
        "--rules",
        "length,same-text",
        "--same-text",
        3,
    )
    assert status == 0 and "3 of 4 pairs in 1 shard" in out and "same text: 1" in out
    status, _, err = patchword("filter", tmp_path / "c.jsonl", "--out", tmp_path / "x", "--rules", "beauty")
    assert status == 2 and "no such rule; there are length, letters" in err
    status, _, err = patchword("filter", tmp_path / "c.jsonl", "--out", tmp_path / "x", "--rules", "score")
    assert status == 2 and "give --score as well" in err
