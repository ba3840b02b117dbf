"""Kind 8: every command line of README.md and docs/ is what the command understands: its words are read by the
command's own parser, and a training is followed to its settings, which must be valid with everything that the
line changes. Lines that need no model are then run as they are typed, on small stand-ins for the files that
they name.

Lines that load a model take minutes together: `make test-slow` runs these too, sends the curl lines to a
service, and trains the captioner of the README. What is no line of ours stands in `NOT_RUN`, with the reason.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PRETRAINED = ROOT / "src" / "patchword" / "pretrained"
BASH = shutil.which("bash")

NOT_RUN = {
    "make ": "builds an environment from the registry; test_docs.py looks at the targets",
    "pip ": "needs the registry; the extras are looked at below",
    "python3 -m venv ": "makes an environment",
    "py -m venv ": "is for Windows",
    ".venv\\": "is for Windows",
    "schemathesis ": "is no part of Patchword",
    "accelerate launch ": "starts processes of its own; the words behind it are run as a training",
    "torchrun ": "starts processes of its own; the words behind it are run as a training",
    "python benchmarks/": "takes minutes",
    "python examples/ship_a_model.py ": "wants the scores of a trained model",
    "python -c ": "is Python, not a command",
}
RUNS = ("patchword ", "curl ", *NOT_RUN)


def typed_lines():
    """(page, line) of everything that a page tells a person to type, continued lines joined, with the shell
    variables set before it."""
    for page in PAGES:
        fence, before, waiting = None, [], ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("```"):
                fence, before, waiting = (line[3:].strip() or "text") if fence is None else None, [], ""
                continue
            block = fence in ("sh", "bat") or (fence is None and line.startswith("    "))
            text = (waiting + line).strip()
            waiting = ""
            if not block or not text:
                continue
            if text.endswith("\\"):
                waiting = text[:-1] + " "
            elif re.match(r"[A-Z]=", text):
                before.append(text)
            elif text.startswith(RUNS):
                for number in ("-m patchword ",):
                    # accelerate launch, torchrun: the words behind them, where they are not left to the reader
                    if number in text and not re.search(r" \.\.\.( |$)", text):
                        yield page, "patchword " + text.split(number)[1], tuple(before)
                yield page, text, tuple(before)


LINES = list(dict.fromkeys((line, before) for _, line, before in typed_lines()))
COMMANDS = [(line, before) for line, before in LINES if line.startswith("patchword ")]
WITHOUT_A_MODEL = {"check", "compare", "models", "score", "structure", "submit", "train"}
"""Commands that are run in any case; of `score` the lines without --clip-model."""
WITHOUT_A_STAND_IN = {
    "export", "filter", "paint", "point", "probe", "probe-linear", "score-images", "shares", "template", "vokens", "words",
    "zero-shot",
}  # fmt: skip
"""Commands for whose files there are no stand-ins here: their words are checked, and their own tests run them."""


def is_quick(line):
    return line.split()[1] in WITHOUT_A_MODEL and "--clip-model" not in line


QUICK = [(line, before) for line, before in COMMANDS if is_quick(line)]
SLOW = [
    (line, before)
    for line, before in COMMANDS
    if not is_quick(line) and line.split()[1] not in WITHOUT_A_STAND_IN
]


def names_of(lines):
    return [line.split("#")[0].strip() for line, _ in lines]


def photo(number, size=(64, 48)):
    return Image.fromarray(np.roll(skimage.data.astronaut(), 37 * number, axis=1)).resize(size)


def drawing():
    picture = Image.new("RGB", (256, 256), (240, 236, 250))
    ImageDraw.Draw(picture).ellipse((60, 80, 150, 170), fill=(255, 0, 0))
    return picture


def save_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


SPLITS = ("train",) * 6 + ("val",) * 4 + ("test",) * 4


def pictures_and_captions(folder):
    """photos/ under all its names, and what people said of them in the layouts that the pages name."""
    (folder / "photos").mkdir()
    images, rows = [], ["image,caption,split"]
    for number, split in enumerate(SPLITS):
        name = f"{number}.jpg"
        photo(number).save(folder / "photos" / name)
        said = [
            f"a woman in an orange suit number {number}",
            "a woman smiles",
            "a person",
            "an astronaut",
            "a flag",
        ]
        sentences = [{"raw": text, "tokens": text.split()} for text in said]
        images.append({"filename": name, "imgid": number, "split": split, "sentences": sentences})
        rows.append(f"{name},{said[0]},{split}")
    for name in ("DIR", "IMAGES", "val2014", "Pictures", "Flicker8k_Dataset"):
        (folder / name).symlink_to("photos")
    for name in ("dataset_flickr8k.json", "D.json", "dataset.json", "scenes/dataset.json"):
        save_json(folder / name, {"images": images})
    (folder / "scenes" / "images").symlink_to("../photos")
    rows_of_questions = [{"image": "0.jpg", "question": "what is it?", "answer": "flag"}] * 2
    (folder / "scenes" / "questions.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows_of_questions)
    )
    many = [{**images[-1], "imgid": number, "sentences": [{"raw": "cat"}] * 5} for number in range(1000)]
    save_json(folder / "dataset_coco.json", {"images": many})
    for name in ("mine.csv", "titles.csv"):
        (folder / name).write_text("\n".join(rows) + "\n")
    (folder / "clean").mkdir()  # shards of `filter --to tar`
    for name in ("photo.jpg", "new.jpg"):
        photo(0, (320, 240)).save(folder / name)
    of = {split: [number for number, one in enumerate(SPLITS) if one == split] for split in set(SPLITS)}
    for name, split in (("predictions", "val"), ("new", "val"), ("old", "val"), ("val", "val"), ("runs/a", "test"),
                        ("runs/b", "test"), ("captioner", "val"), ("runs/template-coco/predictions/train", "val")):  # fmt: skip
        said = [{"image_id": number, "caption": f"a woman smiles {name[-1]}"} for number in of[split]]
        save_json(folder / f"{name}.json", said)
    listed = [{"id": number, "file_name": f"{number}.jpg", "domain": "in-domain"} for number in of["val"]]
    told = [{"image_id": number, "caption": text} for number in of["val"] for text in ("a woman", "a flag")]
    for name in ("references", "nocaps_val", "captions"):
        save_json(folder / f"{name}.json", {"images": listed, "annotations": told})
    save_json(folder / "image_info_test2014.json", {"images": listed})
    save_json(folder / "instances_val2014.json", {str(number): ["person"] for number in of["val"]})
    (folder / "synonyms.txt").write_text("person, woman, man\n")


def questions(folder):
    (folder / "easy_vqa" / "images").mkdir(parents=True)
    for number in range(40):
        drawing().save(folder / "easy_vqa" / "images" / f"{number}.png")
    asked = [["what color is the shape?", "red", number] for number in range(40)]
    save_json(folder / "easy_vqa" / "questions.json", asked)
    (folder / "easy_vqa" / "answers.txt").write_text("red\nblue\n")
    drawing().save(folder / "drawing.png")
    entries = [
        {"question_id": 1, "image_id": 9, "answers": [{"answer": "red"}] * 10, "question_type": "what"}
    ]
    save_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": entries})
    one = [{"question_id": 1, "image_id": 9, "question": "what color is it?"}]
    asked = {"data_subtype": "val2014", "questions": one}
    save_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", asked)
    save_json(folder / "answers.json", [{"question_id": 1, "answer": "red"}])


LABELLER = """
task = "label"
out = "runs/prompt-fusion-fashion"
[data]
table = "fashion.csv"
images = "photos"
cache = "cache"
minimum_count = 1
[vision]
kind = "vit"
architecture = { hidden_size = 24, num_hidden_layers = 3, num_attention_heads = 3, intermediate_size = 32, image_size = 12, patch_size = 6 }
[text]
kind = "bert"
architecture = { hidden_size = 16, num_hidden_layers = 3, num_attention_heads = 2, intermediate_size = 32 }
[model]
kind = "prompt_fusion"
query = 2
query_context = 1
fusion_context = 2
fused_layers = 2
[[stage]]
epochs = 1
batch = 8
learning_rates = { "" = 1e-2 }
"""


def runs(folder):
    """Run folders under the names that trainings of the pages give them, with the shipped models as theirs."""
    for name, shipped in (
        ("own-data", "flickr8k"), ("mine", "flickr8k"), ("fused", "flickr8k"), ("ablation/fused-2", "flickr8k"),
        ("fused-flickr8k-self-critical", "flickr8k"), ("two-towers-flickr8k", "two-towers"), ("towers", "two-towers"),
        ("laps-flickr8k", "laps"), ("easy-vqa", "easy-vqa"),
    ):  # fmt: skip
        (folder / "runs" / name).mkdir(parents=True, exist_ok=True)
        (folder / "runs" / name / "best").symlink_to(PRETRAINED / shipped)
    (folder / "OUT").symlink_to(PRETRAINED / "flickr8k")
    runs = ["baseline", "fused", "template", "captioner", *(f"case-study/{name}" for name in ("one", "two"))]
    runs += [f"ablation/{name}-{seed}" for name in ("baseline", "fsgr", "pma", "fused") for seed in (1, 2, 3)]
    for name in runs:
        run_folder(folder / "runs" / name)
    (folder / "runs" / "prompt-fusion-search-fashion").mkdir()
    found = folder / "runs" / "prompt-fusion-search-fashion" / "structure.toml"
    shutil.copy(ROOT / "src" / "patchword" / "configs" / "prompt-fusion-fashion.toml", found)
    rows = [f"{number}.jpg,canvas laces {number % 2},{'shoe' if number % 2 else 'bag'},{split}"
            for number, split in enumerate(SPLITS)]  # fmt: skip
    (folder / "fashion.csv").write_text("image,text,label,split\n" + "\n".join(rows) + "\n")


def models(folder, call):
    """What the pages train, index and embed before they use it."""
    (folder / "labeller.toml").write_text(LABELLER)
    call("train", "labeller.toml", "--device", "cpu")
    (folder / "words.txt").write_text("dog\nwoman\n")
    call("codebook", "words.txt", "--tower", "two-towers", "--out", "codebooks/mine")
    call("index", "Pictures", "--out", "pictures.index", "--concepts", "codebooks/mine")


def run_folder(folder):
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"CIDEr": 0.2, "Bleu_4": 0.1}
    events = [
        {"event": "step", "stage": "words", "step": 10, "epoch": 0, "loss": 3.0, "images_per_second": 10.0},
        {"event": "validation", "stage": "words", "step": 20, "epoch": 0, "seconds": 1.0, "best": True,
         "scores": scores, "teacher_forced": {"loss": 2.0}},
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    said = [{"image_id": n, "caption": "a woman"} for n, split in enumerate(SPLITS) if split == "val"]
    for name in ("val", "words-001"):
        save_json(folder / "predictions" / f"{name}.json", said)
    seed = folder.name[-1] if folder.name[-1].isdigit() else 1
    save_json(
        folder / "config.json",
        {"stage": [{"name": "words", "batch": 20}], "seed": int(seed), "out": str(folder)},
    )
    save_json(folder / "samples.json", [])


def in_process(words):
    from patchword.cli import main

    given, sys.argv = sys.argv, ["patchword", *words]
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    finally:
        sys.argv = given
    return 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files that the pages name, without what a model makes of them."""
    folder = tmp_path_factory.mktemp("typed") / "world"
    folder.mkdir()
    pictures_and_captions(folder)
    questions(folder)
    runs(folder)
    return folder


@pytest.fixture(scope="module")
def world(files, tmp_path_factory):
    """The same with a labeller, a codebook and an index."""
    folder = tmp_path_factory.mktemp("typed") / "world"
    shutil.copytree(files, folder, symlinks=True)
    here = os.getcwd()
    os.chdir(folder)

    def call(*words):
        assert in_process(words) == 0, words

    try:
        models(folder, call)
    finally:
        os.chdir(here)
    return folder


def copy_of(world, tmp_path, monkeypatch):
    """A copy of the world for one line, and the folder in which it is typed; a person's home as well. What is
    cached is the line's own, but for METEOR's tables, which take twenty seconds to make."""
    from patchword.metrics.meteor.tables import cache_directory

    tables = cache_directory() / "meteor"
    tables.mkdir(parents=True, exist_ok=True)
    shutil.copytree(world, tmp_path / "place", symlinks=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "meteor").symlink_to(tables)
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("HOME", str(tmp_path / "place"))
    monkeypatch.setenv("PATCHWORD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "place"


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    return copy_of(world, tmp_path, monkeypatch)


@pytest.fixture
def place_of_files(files, tmp_path, monkeypatch):
    return copy_of(files, tmp_path, monkeypatch)


def words_of(line, before):
    """As bash makes words of the line."""
    script = "\n".join([*before, f"printf '%s\\0' {line}"])
    done = subprocess.run([BASH, "-c", script], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]][1:]


def follow_training(config, overrides, *rest, **more):
    """A training up to its settings: all of them valid, and every file that the line names there."""
    from patchword.config import override, read_toml, validate
    from patchword.lookup import look_up
    from patchword.tasks.table import TASKS

    values = override(read_toml(config), overrides)
    settings = validate(values, look_up(TASKS[values.get("task", "caption")].run), str(config))
    for one in overrides:
        key, value = one.split("=", 1)
        if key in ("data.annotations", "data.table", "data.images", "towers", "tower_from"):
            assert Path(value).exists() or (PRETRAINED / value).exists(), one
    return Path(settings.out)


STANDS_FOR_AN_ANSWERER = {"runs/mine/best": "runs/easy-vqa/best", "photo.jpg": "drawing.png"}
"""The page of `ask` calls a model and a picture by the names that the page of `caption` gives to others."""
USAGE = (" DATA ", " [--")
"""Words of a line that shows what a command takes, in place of a call."""


def typed(line, before):
    """The words of a line; of one that shows what a command takes, those of a call."""
    if any(part in line for part in USAGE):
        line = (
            line.replace("[", "")
            .replace("]", "")
            .replace("DATA", "mine.csv")
            .replace("--images DIR", "--images photos")
        )
    return words_of(line, before)


@pytest.mark.skipif(BASH is None, reason="the lines are for bash")
@pytest.mark.parametrize(("line", "before"), COMMANDS, ids=names_of(COMMANDS))
def test_kind_8_the_words_of_a_documented_line_are_understood(line, before, tmp_path, monkeypatch):
    """Read by the command's own parser, as far as the call of its function: options and choices that are
    none, values of another type, and what is missing are errors there."""
    import typer

    from patchword.cli import app

    monkeypatch.chdir(tmp_path)
    name, *words = typed(line, before)
    commands = typer.main.get_command(app)
    with commands.make_context("patchword", [name, *words], resilient_parsing=True) as context:
        command = commands.get_command(context, name)
        assert command is not None, f"patchword has no command {name!r}"
        command.make_context(name, words, parent=context).close()


@pytest.mark.skipif(BASH is None, reason="the lines are for bash")
@pytest.mark.parametrize(("line", "before"), QUICK, ids=names_of(QUICK))
def test_kind_8_a_documented_line_runs_as_typed(line, before, place_of_files, patchword, monkeypatch):
    run_line(typed(line, before), patchword, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="the lines are for bash")
@pytest.mark.parametrize(("line", "before"), SLOW, ids=names_of(SLOW))
def test_kind_8_a_documented_line_with_a_model_runs_as_typed(
    line, before, place, tiny_clip, patchword, monkeypatch
):
    words = [
        word.replace("hub:openai/clip-vit-base-patch32", f"hub:{tiny_clip}") for word in typed(line, before)
    ]
    if words[0] == "ask":
        words = [STANDS_FOR_AN_ANSWERER.get(word, word) for word in words]
    run_line(words, patchword, monkeypatch)


def run_line(words, patchword, monkeypatch):
    for option in ("--out", "--explain", "--html"):
        if option in words and words[0] != "compare":
            made = Path(words[words.index(option) + 1])
            if made.is_file() or (made.is_dir() and words[0] in ("index", "codebook", "features")):
                shutil.rmtree(made) if made.is_dir() else made.unlink()
    served = []
    monkeypatch.setattr("patchword.tasks.start.start", follow_training)
    monkeypatch.setattr("patchword.tasks.label.structure.search_structure", follow_structure)
    if words[0] == "serve":
        monkeypatch.setattr("patchword.serve.run.serve", lambda app, taken, limits, ready: served.append(app))
        monkeypatch.setattr("patchword.serve.run.take_port", lambda host, port: socket.socket())
    status, out, err = patchword(*words)
    assert status == 0, f"{' '.join(words)}\n{err}"
    assert bool(served) == (words[0] == "serve")


def follow_structure(config, overrides, *rest):
    from patchword.config import override, read_toml, validate
    from patchword.tasks.label.structure import StructureRun

    validate(override(read_toml(config), overrides), StructureRun, str(config))
    return SimpleNamespace(ranked=[], toml="structure.toml", plot="search.png")


@pytest.mark.slow
def test_kind_8_the_readme_trains_a_captioner_that_captions(place, patchword):
    """The lines of "Train on your own data" one after the other; the training is shortened, and everything
    after it is as typed."""
    shutil.rmtree(place / "runs" / "own-data")
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Train on your own data")[1]
    lines = [line for line in section.split("```")[1].splitlines() if line.startswith("patchword ")]
    assert any("train" in line for line in lines) and len(lines) > 3
    (place / "predictions.json").unlink()
    for line in lines:
        words = words_of(line, ())
        short = ["stage.0.epochs=1", "data.minimum_count=1", "--device", "cpu"]
        status, _, err = patchword(*words, *(short if words[0] == "train" else []))
        assert status == 0, err
    assert (place / "new.html").is_file() and json.loads((place / "predictions.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None or BASH is None, reason="curl is not installed")
def test_kind_8_curl_is_answered_as_typed(place):
    """All lines of docs/serve.md, sent to one service with an index, as `patchword serve --index
    pictures.index` starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copy("photo.jpg", "kept.jpg")
    program = "from patchword.cli import main; main()"
    service = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "--index", "pictures.index", "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert b"Patchword is ready at" in service.stdout.readline(), service.stderr.read()
        lines = [line for line, _ in LINES if line.startswith("curl ")]
        for line in lines:
            shutil.copy("drawing.png" if "/ask" in line else "kept.jpg", "photo.jpg")
            typed = line.replace("8321", str(port)).replace(
                "curl ", "curl --silent --show-error --fail-with-body ", 1
            )
            done = subprocess.run(
                [BASH, "-c", typed], capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0 and '"error"' not in done.stdout, (
                f"{line}\n{done.stdout}{done.stderr}"
            )
        assert len(lines) > 3
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(30)
        service.stdout.close()
        service.stderr.close()


def test_kind_8_every_line_is_run_or_says_why_not():
    untold = [line for line, _ in LINES if not line.startswith(("patchword ", "curl ", *NOT_RUN))]
    assert not untold and len(COMMANDS) > 50
    unused = [start for start in NOT_RUN if not any(line.startswith(start) for line, _ in LINES)]
    assert set(unused) <= {".venv\\", "schemathesis ", "python benchmarks/"}


def test_kind_8_extras_that_the_pages_install_exist():
    import re

    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with the standard library")
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    named = {
        name
        for page in PAGES
        for found in re.findall(r"(?:patchword|\.)\[([a-z,]+)\]", page.read_text(encoding="utf-8"))
        for name in found.split(",")
    }
    assert named and named <= set(extras)
