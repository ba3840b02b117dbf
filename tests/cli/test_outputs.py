"""Kinds 2, 5 and 12: what a person wrote is kept, every name can be written, and what cannot be drawn or
searched is refused."""

import csv
import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from patchword.cli.outputs import refuse_existing, refuse_suffix
from patchword.errors import ConfigError
from patchword.tasks.caption.csv_table import COLUMNS, CaptionTable
from patchword.tasks.caption.result import Caption

SAID = Caption("a red square", -1.25, ("a", "red", "square"))
OWN = "what a person wrote\n"
LABELLER = Path(__file__).resolve().parents[1] / "kits" / "format1" / "label"


@pytest.fixture(scope="module")
def options_of_commands():
    """(command, option, what typer knows of it), of every command and of those within `words`."""
    import typer

    from patchword.cli import app

    def of(command, name):
        if hasattr(command, "list_commands"):
            for one in command.list_commands(None):
                yield from of(command.get_command(None, one), f"{name} {one}".strip())
        else:
            yield from ((name, "/".join(one.opts), one) for one in command.params)

    return list(of(typer.main.get_command(app), ""))


@pytest.fixture
def own(tmp_path):
    """Files of many kinds that a person wrote."""
    folder = tmp_path / "own"
    folder.mkdir()
    for suffix in ("csv", "json", "html", "png", "txt", "svg", "jsonl"):
        (folder / f"mine.{suffix}").write_text(OWN)
    for name in ("curves.png", "words-8.png", "sheet.png", "index.html", "predictions/val.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(OWN)
    return folder


WRITERS = [
    ("caption", "{photos}", "--out", "{own}/mine.csv"),
    ("caption", "{photos}/red.png", "--explain", "{own}/mine.html"),
    ("caption", "{photos}/red.png", "--explain", "{own}/mine.png"),
    ("ask", "{photos}/red.png", "what is it?", "--explain", "{own}/mine.html"),
    ("pair", "{photos}/red.png", "a dog", "--explain", "{own}/mine.svg"),
    ("predict", "flickr8k", "--data", "{own}/mine.csv", "--images", "{photos}", "--out", "{own}/mine.json"),
    ("evaluate", "easy-vqa", "--data", "{own}/mine.json", "--images", "{photos}", "--out", "{own}/mine.json"),
    ("score", "{own}/mine.json", "{own}/mine.json", "--out", "{own}/mine.json"),
    ("submit", "{own}/mine.json", "{own}/mine.json", "--out", "{own}/mine.csv"),
    ("recall", "--data", "{own}/mine.json", "--images", "{photos}", "--out", "{own}/mine.json"),
    ("explain-check", "flickr8k", "--scenes", "1", "--out", "{own}/mine.html"),
    ("label", "{photos}/red.png", "--model", "{labeller}", "--explain", "{own}/mine.html"),
    ("point", "{photos}/red.png", "a dog", "--model", "none", "--out", "{own}/mine.png"),
    ("probe-linear", "none", "--data", "x", "--images", "{photos}", "--out", "{own}/mine.json"),
    ("search", "{photos}", "a dog", "--html", "{own}/mine.html"),
    ("vokens", "a dog", "--model", "none", "--bank", "{own}", "--html", "{own}/mine.html"),
    ("vokens", "a dog", "--model", "none", "--bank", "{own}", "--out", "{own}/mine.jsonl"),
    ("words", "neighbours", "none", "dog", "--html", "{own}/mine.html"),
    ("words", "imagine", "none", "dog", "--html", "{own}/mine.html"),
    ("words", "export", "none", "--out", "{own}/mine.txt"),
    ("zero-shot", "none", "--classes", "x", "--data", "y", "--out", "{own}/mine.json"),
    ("template", "--data", "x", "--out", "{own}"),
    ("compare", "run", "--out", "{own}"),
    ("paint", "a dog", "--model", "none", "--explain", "--seed", "7", "-n", "2", "--out", "{own}"),
    ("paint", "a dog", "--model", "none", "--grid", "--out", "{own}"),
    ("paint", "a dog", "--model", "none", "--html", "--out", "{own}"),
]
FOLDER_WRITERS = [
    ("codebook", "--out"),
    ("concepts", "flickr8k", "--data", "x", "--images", "y", "--out"),
    ("consensus", "flickr8k", "--data", "x", "--images", "y", "--out"),
    ("export", "two-towers", "--out"),
    ("filter", "{own}/mine.csv", "--out"),
]
"""Commands that write a new folder: one with anything in it is refused before a model is loaded."""
WRITTEN = {
    "caption --cluster": "gone on with: jobs/test_part.py",
    "features --cluster": "workers and one process that puts it together: jobs/test_files.py",
    "features --parts": "gone on with: jobs/test_files.py",
    "features --out": "a store is replaced, anything else refused: jobs/test_features.py",
    "index --out": "brought up to date: search/test_absence.py",
    "index --parts": "gone on with: jobs/test_index.py",
    "label --out": "with --cluster only: jobs/test_part.py",
    "predict --cluster": "as features: jobs/test_files.py",
    "predict --parts": "gone on with: jobs/test_files.py",
    "serve --cluster": "where replicas run; nothing is written",
}
"""Options that name something to write and stand in no table above, and where they are tested."""


def content_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("words", WRITERS, ids=lambda words: f"{words[0]} {words[-2]} {words[-1][-4:]}")
def test_kind_2_no_command_writes_over_what_is_there(patchword, photos, own, words):
    before = content_of(own)
    status, _, err = patchword(*(word.format(photos=photos, own=own, labeller=LABELLER) for word in words))
    assert status == 2 and "exists" in err and "--overwrite" in err and len(err.splitlines()) == 1
    assert content_of(own) == before


@pytest.mark.parametrize("words", FOLDER_WRITERS, ids=lambda words: words[0])
def test_kind_2_no_command_writes_into_a_folder_that_is_there(patchword, own, words):
    before = content_of(own)
    for place, said in ((own, "there already|not empty"), (own / "mine.csv", "is a file|there already")):
        status, _, err = patchword(*(word.format(own=own) for word in words), place)
        assert status == 2 and re.search(said, err) and len(err.splitlines()) == 1
    assert content_of(own) == before


@pytest.mark.parametrize(
    "words", [("compare", "run", "--out"), ("paint", "a dog", "--model", "none", "--out")], ids=lambda w: w[0]
)
def test_kind_2_a_file_cannot_be_replaced_by_a_folder(patchword, own, words):
    status, _, err = patchword(*words, own / "mine.csv")
    assert status == 2 and "is a file, and a folder is written" in err
    assert (own / "mine.csv").read_text() == OWN


def test_kind_2_a_template_writes_into_no_run_of_another_model(patchword, own):
    (own / "predictions" / "val.json").unlink()
    (own / "config.json").write_text(json.dumps({"captioner": {"kind": "caption_transformer"}}))
    (own / "metrics.jsonl").write_text(OWN)
    before = content_of(own)
    status, _, err = patchword("template", "--data", own / "mine.json", "--out", own, "--overwrite")
    assert status == 2 and "config.json, metrics.jsonl of another run" in err and content_of(own) == before


def test_kind_2_an_output_without_its_folder_is_refused_before_the_work(patchword, tmp_path):
    status, _, err = patchword("explain-check", "none", "--scenes", 1, "--out", tmp_path / "no" / "a.html")
    assert status == 2 and f"there is no folder {tmp_path / 'no'}: make it first" in err


def test_kind_2_every_option_that_writes_is_tested(options_of_commands):
    tested = {option for words in (*WRITERS, *FOLDER_WRITERS) for option in _written(words)}
    found = {
        f"{command} {option}"
        for command, option, _ in options_of_commands
        if option in ("--out", "--html", "--explain", "--cluster", "--parts", "--grid")
    }
    assert found - tested - {"index --cluster", "label --cluster"} == set(WRITTEN)


def _written(words):
    command = " ".join(words[:2]) if words[0] == "words" else words[0]
    return {f"{command} {word}" for word in words if word.startswith("--")}


def test_kind_2_with_overwrite_it_is_replaced(patchword, photos, own):
    photo, page = photos / "red.png", own / "mine.html"
    assert patchword("caption", photo, "--explain", page, "--overwrite", "--device", "cpu")[0] == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert patchword("caption", photo, "--out", own / "mine.csv", "--overwrite", "--device", "cpu")[0] == 0
    assert (own / "mine.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_kind_2_texts_beside_photographs_are_kept(patchword, photos):
    (photos / "red.txt").write_text(OWN)
    status, _, err = patchword("caption", photos / "red.png", photos / "bl\u00e5.png", "--sidecar")
    assert status == 1 and "1 text was there already and kept" in err and "--overwrite" in err
    assert (photos / "red.txt").read_text() == OWN and (photos / "bl\u00e5.txt").read_text().strip()
    status, said, err = patchword("caption", photos / "red.png", "--sidecar", "--overwrite")
    assert status == 0 and (photos / "red.txt").read_text() == said.split("\t")[1].removeprefix("unsure: ")
    # A call that was interrupted goes on: the same text is no conflict.
    assert patchword("caption", photos / "red.png", "--sidecar")[::2] == (0, "")


def test_kind_2_two_pictures_that_share_a_text_do_not_write_over_one_another(patchword, photos):
    Image.effect_noise((64, 64), 90).convert("RGB").save(photos / "red.jpg")
    status, said, err = patchword("caption", photos / "red.jpg", photos / "red.png", "--sidecar")
    first, second = (line.split("\t")[1].removeprefix("unsure: ") for line in said.splitlines())
    assert (photos / "red.txt").read_text() == first + "\n"
    assert first == second or (status == 1 and "there already and kept" in err)


def test_kind_2_a_folder_cannot_be_replaced_by_a_file(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, and a file is written"):
        refuse_existing(True, {"--out": tmp_path})
    refuse_existing(False, {"--out": tmp_path / "new.json", "--explain": None})
    if os.path.exists("/dev/null"):
        refuse_existing(False, {"--out": Path("/dev/null")})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file of a full disk, which Linux has")
def test_a_full_disk_is_said_of_the_table_it_was_met_with():
    table = CaptionTable(Path("/dev/full"), "flickr8k")
    with pytest.raises(OSError) as full:
        table.write("a.jpg", SAID)
    assert full.value.filename == "/dev/full"
    with pytest.raises(OSError) as left:
        table.close()
    assert left.value.filename == "/dev/full"


def test_kind_2_a_table_of_captions_is_gone_on_with_by_the_same_model_only(tmp_path):
    path = tmp_path / "captions.csv"
    table = CaptionTable(path, "flickr8k")
    table.write(tmp_path / "a.png", SAID)
    table.close()
    again = CaptionTable(path, "flickr8k")
    assert again.done == {str(tmp_path / "a.png")}
    with pytest.raises(ConfigError, match=r"holds captions of another model \(1 by 'flickr8k'\)"):
        CaptionTable(path, "runs/mine/best")


def test_kind_2_the_table_of_another_model_is_said(patchword, photos, tmp_path):
    out = tmp_path / "captions.csv"
    out.write_text(",".join(COLUMNS) + "\n" + f"{photos / 'red.png'},a square,-1.0,another\n")
    before = out.read_bytes()
    status, _, err = patchword("caption", photos / "red.png", "--out", out)
    assert status == 2 and "1 by 'another'" in err and out.read_bytes() == before
    out.write_text(",".join(COLUMNS) + "\n" + f"{photos / 'red.png'},a square,-1.0,flickr8k\n")
    status, said, err = patchword("caption", photos / "red.png", "--out", out)
    assert status == 0 and said == "" and "1 of the pictures are there already and are left out" in err


@pytest.mark.parametrize(
    ("end", "kept"), [("", 1), ("x.png,cut off", 1), ("x.png,a b,-1.0", 1), ("x.png,a b,-1.0,flickr", 1),
                      ("x.png,a b,-1.0,flickr8k", 2)]
)  # fmt: skip
def test_kind_2_only_an_interrupted_row_is_taken_off(tmp_path, end, kept):
    path = tmp_path / "captions.csv"
    path.write_text(",".join(COLUMNS) + "\na.png,it is red,-1.0,flickr8k\n" + end, newline="")
    table = CaptionTable(path, "flickr8k")
    assert len(table.done) == kept
    table.write(tmp_path / "new.png", SAID)
    table.close()
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == kept + 2 and {len(row) for row in rows} == {len(COLUMNS)}


unix_names = pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="the system takes UTF-8 names only"
)
ODD_NAMES = [b"caf\xe9.png", b"\xff\xfe.png", "\u202egnp.png".encode(), b"tab\there.png", b"new\nline.png",
             b'a,"b".png', "\U0001f600.png".encode()]  # fmt: skip


@pytest.fixture
def odd(tmp_path):
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    for number, name in enumerate(ODD_NAMES):
        Image.new("RGB", (20, 20), (20 * number, 90, 200)).save(os.fsdecode(os.path.join(folder, name)))
    return tmp_path / "odd"


@unix_names
def test_kind_5_the_table_holds_every_name_and_is_gone_on_with(patchword, odd, tmp_path):
    out = tmp_path / "captions.csv"
    status, _, err = patchword("caption", odd, "--out", out)
    assert status == 0 and "Traceback" not in err
    with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
        named = {os.fsencode(row["image"]) for row in csv.DictReader(file)}
    assert named == {os.path.join(os.fsencode(odd), name) for name in ODD_NAMES}
    status, said, err = patchword("caption", odd, "--out", out)
    assert status == 0 and said == "" and f"{len(ODD_NAMES)} of the pictures are there already" in err


@unix_names
def test_kind_5_pages_texts_and_lines_hold_every_name(patchword, odd, tmp_path):
    page = tmp_path / "page.html"
    status, said, err = patchword("caption", odd, "--json", "--sidecar", "--explain", page)
    assert status == 0, err
    rows = [json.loads(line) for line in said.splitlines()]
    assert {os.path.basename(os.fsencode(row["image"])) for row in rows} == set(ODD_NAMES)
    assert all("complete" in row for row in rows)
    assert page.read_text(encoding="utf-8").count("<section>") >= len(ODD_NAMES)
    assert len(list(odd.glob("*.txt"))) == len(ODD_NAMES)


@unix_names
def test_kind_5_what_is_printed_can_be_read_back_as_a_name(patchword, odd):
    """The bytes of a name come out as they are."""
    status, said, err = patchword("label", odd, "--labels", "a dog, a cat")
    assert status == 0, err
    for name in (b"caf\xe9.png", b"\xff\xfe.png"):
        assert os.path.join(os.fsencode(odd), name) + b"\t" in os.fsencode(said)


@unix_names
def test_kind_5_a_broken_picture_of_such_a_name_does_not_stop_the_others(patchword, odd, tmp_path):
    with open(os.path.join(os.fsencode(odd), b"br\xf6ken.jpg"), "wb") as file:
        file.write(b"no picture")
    status, _, err = patchword("caption", odd, "--out", tmp_path / "captions.csv")
    assert status == 1 and len(err.splitlines()) == 1
    assert len((tmp_path / "captions.csv").read_bytes().split(b",flickr8k\r\n")) == len(ODD_NAMES) + 1


@unix_names
def test_kind_5_data_sets_take_such_names(odd, patchword, tmp_path):
    """photo.txt beside photo.jpg, checked and predicted."""
    for name in os.listdir(os.fsencode(odd)):
        with open(os.path.join(os.fsencode(odd), name[:-4] + b".txt"), "w") as file:
            file.write("a blue square\n")
    os.remove(os.path.join(os.fsencode(odd), b"new\nline.png"))
    os.remove(os.path.join(os.fsencode(odd), b"tab\there.png"))
    status, said, _ = patchword("check", odd)
    assert status == 0, said
    out = tmp_path / "predictions.json"
    status, _, err = patchword(
        "predict", "flickr8k", "--data", odd, "--images", odd, "--split", "train", "--out", out
    )
    assert status == 0, err
    named = {os.fsencode(row["image_id"]) for row in json.loads(out.read_text())}
    assert named <= set(ODD_NAMES) and len(named) > 1
    status, said, err = patchword("score", out, odd, "--split", "train", "--metrics", "bleu")
    assert status == 0, err


@pytest.mark.parametrize("beam", ["0", "-2", "100000"])
@pytest.mark.parametrize("command", ["caption", "predict"])
def test_kind_12_searches_have_a_range(patchword, photos, command, beam):
    data = ["flickr8k", "--data", "x", "--images", "y", "--out", "z"]
    words = [photos / "red.png"] if command == "caption" else data
    status, _, err = patchword(command, *words, "--beam", beam)
    limit = "100" if beam == "100000" else "1"
    assert status == 2 and "Invalid value for '--beam'" in err and limit in err and len(err.splitlines()) == 1


WITHOUT_A_LIMIT = {
    "-n/--n-best": "all that there are, where there are fewer",
    "--count/-k": "all that there are, where there are fewer",
    "--top": "all that there are, where there are fewer",
    "--limit": "all that there are, where there are fewer",
    "--layer": "compared with the layers of the model",
    "--batch": "what memory takes",
    "--held-out": "compared with the pictures of the data",
    "--shortlist": "all that there are, where there are fewer",
}
"""Numbers that have a least value and no greatest one, and why."""


def test_kind_12_every_number_has_a_range(options_of_commands):
    numbers = [(f"{c} {o}", o, p) for c, o, p in options_of_commands if kind_of(p) in (int, float)]
    assert len(numbers) > 50
    assert [name for name, _, one in numbers if one.min is None] == []
    assert [name for name, option, one in numbers if one.max is None and option not in WITHOUT_A_LIMIT] == []
    # nan is in no range that has two ends; infinity is in none that has an upper one.
    assert [name for name, _, one in numbers if kind_of(one) is float and one.max is None] == []


def kind_of(option):
    return getattr(getattr(option, "type_descriptor", None), "annotation", None)


@pytest.mark.parametrize(
    "words",
    [
        ("paint", "a", "--model", "none", "--seed", str(10**30)),
        ("paint", "a", "--model", "none", "-n", str(10**12)),
        ("paint", "a", "--model", "none", "--guidance", "inf"),
        ("paint", "a", "--model", "none", "--threshold", "nan"),
        ("features", "two-towers", "--data", "x", "--images", "y", "--out", "z", "--size", "0"),
        ("features", "two-towers", "--data", "x", "--images", "y", "--out", "z", "--views", str(10**9)),
        ("probe-linear", "two-towers", "--data", "x", "--images", "y", "--seed", "-1"),
        ("explain-check", "flickr8k", "--scenes", str(10**9)),
        ("score-images", "x", "y", "--resize", str(10**9)),
        ("filter", "x.csv", "--out", "y", "--score", "nan"),
        ("words", "evaluate", "none", "--border", "nan"),
    ],
    ids=lambda words: f"{words[0]} {words[-2]} {words[-1]}",
)  # fmt: skip
def test_kind_12_what_is_out_of_range_is_one_line(patchword, words):
    status, _, err = patchword(*words)
    assert status == 2 and "Invalid value" in err and words[-2] in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [("--batch", "0"), ("--no-such-option",), ("--beam", "three")])
def test_kind_12_what_makes_no_sense_is_one_line(patchword, photos, words):
    status, _, err = patchword("caption", photos / "red.png", *words)
    assert status == 2 and words[0] in err and "patchword caption --help" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["x.jpg", "x.jpeg", "x.gif", "x", "x.txt", "x.HTML.jpg"])
@pytest.mark.parametrize("command", ["caption", "ask", "pair", "label"])
def test_kind_12_what_cannot_be_drawn_is_refused(patchword, photos, tmp_path, command, name):
    words = {"ask": ["what is it?"], "pair": ["a dog"], "label": ["--model", "flickr8k"]}.get(command, [])
    status, _, err = patchword(command, photos / "red.png", *words, "--explain", tmp_path / name)
    assert status == 2 and len(err.splitlines()) == 1
    assert command == "label" or "cannot be drawn; let it end in .html" in err
    assert not (tmp_path / name).exists()


def test_kind_12_a_figure_holds_one_picture(tmp_path):
    refuse_suffix("--explain", tmp_path / "a.html", (".html", ".png"), pictures=2)
    with pytest.raises(ConfigError, match="is a figure of one picture, and there are 2"):
        refuse_suffix("--explain", tmp_path / "a.png", (".html", ".png"), pictures=2)


@pytest.mark.parametrize("batch", ["1", "4", "32"])
def test_kind_9_predict_counts_what_it_did(patchword, tmp_path, batch):
    """The last line of the bar says as many of as many, whatever the size of a batch."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    told, asked = ["image,caption,split"], ["image,question,answer,split"]
    for number in range(6):
        Image.new("RGB", (20, 20), (40 * number, 90, 20)).save(pictures / f"{number}.png")
        told.append(f"{number}.png,a square,test")
        asked += [f"{number}.png,what colour?,red,test", f"{number}.png,what shape?,square,test"]
    (tmp_path / "told.csv").write_text("\n".join(told))
    (tmp_path / "asked.csv").write_text("\n".join(asked))
    for model, data, count in (("flickr8k", "told.csv", "6/6"), ("easy-vqa", "asked.csv", "12/12")):
        call = ["predict", model, "--data", tmp_path / data, "--images", pictures, "--batch", batch]
        status, _, err = patchword(*call, "--out", tmp_path / f"{model}.json")
        assert status == 0 and count in err, err
