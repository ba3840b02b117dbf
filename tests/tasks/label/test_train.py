"""Labels of pictures with texts, as a user types it: train, predict, evaluate, label, stored tokens, and
every mistake in a table.
"""

import csv
import json
import random
import re
import shutil

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast, ViTConfig, ViTModel

from patchword.config import read_toml
from patchword.data.store import Store
from patchword.jobs import sources
from patchword.tasks.label.model import load_labelling_model

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
CONFIG = """
task = "label"
out = "{out}"
seed = 2
[data]
table = "{data}/rows.csv"
images = "{data}"
cache = "{cache}"
minimum_count = 1
[vision]
kind = "vit"
[vision.architecture]
hidden_size = 24
num_hidden_layers = 3
num_attention_heads = 3
intermediate_size = 32
initializer_range = 0.2
image_size = 12
patch_size = 6
[text]
kind = "bert"
[text.architecture]
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
initializer_range = 0.2
[model]
kind = "prompt_fusion"
query = 2
query_context = 1
fusion_context = 2
[[stage]]
epochs = 25
batch = 32
learning_rates = {{ "" = 1e-2 }}
validate_every = 25
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Squares whose text names their colour or the other one; the label says which.

    Neither side knows it alone.
    """
    folder = tmp_path_factory.mktemp("rows")
    generator = random.Random(5)
    with open(folder / "rows.csv", "w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "text", "label", "split"])
        for number in range(120):
            shown, named = generator.choice(list(COLOURS)), generator.choice(list(COLOURS))
            name = f"{number}.png"
            shade = tuple(value + generator.randint(-20, 20) for value in COLOURS[shown])
            Image.new("RGB", (12, 12), shade).save(folder / name)
            label = "match" if shown == named else "mismatch"
            table.writerow(
                [name, f'a "{named}" square,\nas it says', label, "val" if number < 40 else "train"]
            )
    return folder


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "run.toml").write_text(CONFIG.format(out=folder / "run", data=data, cache=folder / "cache"))
    return folder / "run.toml"


def read_csv(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def picture_width(path):
    with Image.open(path) as picture:
        return picture.size[0]


@pytest.fixture
def run_patchword(monkeypatch, capsys):
    """Calls the command line as a user types it; gives exit status, standard output and standard error."""
    from patchword.cli import main

    def call(*words):
        monkeypatch.setattr("sys.argv", ["patchword", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def trained(config, run_patchword):
    """The model folder of a finished training, from stored tokens."""
    folder = config.parent / "run"
    if not (folder / "best").exists():
        status, _, said = run_patchword("train", config, "data.cache_tokens=true", "--device", "cpu")
        assert status == 0, said
    return folder / "best"


def scores(run):
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(event["scores"] for event in reversed(events) if event["event"] == "validation")


def test_prompts_learn_what_neither_side_knows_alone(trained, config, run_patchword, tmp_path):
    assert scores(trained.parent)["accuracy"] >= 0.9
    for inputs in ("image", "text", "both"):
        run = tmp_path / inputs
        plain = (
            f'model={{kind="late_concatenation",inputs="{inputs}"}}',
            "data.cache_tokens=true",
            f"out={run}",
            "stage.0.epochs=6",
        )
        status, _, said = run_patchword(
            "train", config, *plain, "stage.0.validate_every=6", "--device", "cpu"
        )
        assert status == 0, said
        assert (
            scores(run)["accuracy"] <= 0.75
        )  # linear in each side: a label that is their agreement is out of reach


def test_from_pictures_and_from_stored_tokens(trained, config, run_patchword, tmp_path):
    """The same training, up to the half precision of the store."""
    short = ("stage.0.epochs=2", "stage.0.validate_every=1")
    losses = {}
    for name, setting in (("pixels", "data.cache_tokens=false"), ("tokens", "data.cache_tokens=true")):
        status, _, said = run_patchword(
            "train", config, setting, f"out={tmp_path / name}", "log_steps=1", *short, "--device", "cpu"
        )
        assert status == 0, said
        events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses["pixels"]) == 6
    torch.testing.assert_close(
        torch.tensor(losses["pixels"]), torch.tensor(losses["tokens"]), rtol=5e-3, atol=5e-3
    )


def test_tokens_with_pictures_looked_at_by_workers(
    trained, data, run_patchword, tmp_path, in_place_of_ray, monkeypatch
):
    """Rows share pictures, and one has none; a job that ends before its end goes on."""
    monkeypatch.setattr(sources, "PART", 10)
    rows = read_csv(data / "rows.csv")[:40]
    rows[7]["image"], rows[20]["image"] = rows[3]["image"], ""
    with open(tmp_path / "rows.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    arguments = ("--data", tmp_path / "rows.csv", "--images", data, "--tokens", 2, "--device", "cpu")
    arguments = ("features", trained, *arguments, "--missing", "text-only")
    status, _, wrong = run_patchword(*arguments, "--out", tmp_path / "here")
    assert status == 0, wrong
    there = (*arguments, "--out", tmp_path / "there", "--cluster", "local", "--parts", tmp_path / "parts")
    in_place_of_ray["most"] = 2
    assert run_patchword(*there)[0] == 130 and not (tmp_path / "there").exists()
    in_place_of_ray["most"] = 99
    status, said, wrong = run_patchword(*there)
    assert status == 0 and "40 rows; image (40, 5, 24) float16" in said, wrong
    assert in_place_of_ray["made"] == 4 and not (tmp_path / "parts").exists()
    one, other = (Store.open(tmp_path / name) for name in ("here", "there"))
    assert {key: one.manifest[key] for key in ("towers", "table", "files")} == {
        key: other.manifest[key] for key in ("towers", "table", "files")
    }
    np.testing.assert_array_equal(one.fields["length"], other.fields["length"])
    for name in ("image", "text"):
        np.testing.assert_allclose(one.fields[name], other.fields[name], atol=2e-2)


def test_tokens_from_the_command_are_those_that_a_training_caches(
    trained, config, data, run_patchword, tmp_path
):
    arguments = (
        "--data",
        data / "rows.csv",
        "--images",
        data,
        "--tokens",
        2,
        "--out",
        tmp_path / "store",
        "--device",
        "cpu",
    )
    status, said, wrong = run_patchword("features", trained, *arguments)
    assert status == 0 and "120 rows; image (120, 5, 24) float16, text (120, 8, 16) float16" in said, wrong
    settings = (
        f"out={tmp_path / 'run'}",
        f"data.features={tmp_path / 'store'}",
        f"vision_from={trained}",
        f"text_from={trained}",
    )
    path = tmp_path / "run.toml"
    path.write_text(
        "".join(
            part
            for part in re.split(r"(?=^\[)", config.read_text(), flags=re.M)
            if not part.startswith(("[vision", "[text"))
        )
    )
    status, _, wrong = run_patchword(
        "train", path, *settings, "stage.0.epochs=2", "stage.0.validate_every=2", "--device", "cpu"
    )
    assert status == 0, wrong
    with open(data / "rows.csv", "a") as file:
        file.write(" ")
    try:
        status, _, wrong = run_patchword(
            "train", path, *settings, f"out={tmp_path / 'other'}", "--device", "cpu"
        )
    finally:
        (data / "rows.csv").write_bytes((data / "rows.csv").read_bytes()[:-1])
    assert status == 2 and "stale: its table" in wrong


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A ViT and a BERT with its WordPiece tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    sizes = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    ViTModel(ViTConfig(hidden_size=16, image_size=12, patch_size=6, **sizes)).save_pretrained(folder / "vit")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "blue",
        "squa",
        "##re",
        "says",
        '"',
        ",",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    BertModel(
        BertConfig(hidden_size=12, vocab_size=len(words), max_position_embeddings=20, **sizes)
    ).save_pretrained(folder / "bert")
    return folder


def test_published_towers_with_their_tokenizer(published, config, data, run_patchword, tmp_path):
    settings = [
        f'vision={{kind="vit",source="{published / "vit"}"}}',
        f'text={{kind="bert",source="{published / "bert"}"}}',
    ]
    settings += [
        f"out={tmp_path / 'run'}",
        "stage.0.epochs=1",
        "stage.0.validate_every=1",
        "model.fused_layers=0",
        "--device",
        "cpu",
    ]
    status, _, wrong = run_patchword("train", config, *settings)
    assert status == 0, wrong
    found = load_labelling_model(tmp_path / "run" / "best", "cpu")
    tokens = BertTokenizerFast.from_pretrained(published / "bert")(
        "a red square, unheard", return_tensors="pt"
    )
    batch = found.batch([data / "0.png"], ["a red square, unheard"])
    assert torch.equal(batch.ids_BL, tokens["input_ids"])
    with torch.no_grad():
        first_BC = BertModel.from_pretrained(published / "bert", add_pooling_layer=False)(
            **tokens
        ).last_hidden_state[:, 0]
        class_BC = ViTModel.from_pretrained(published / "vit", add_pooling_layer=False)(
            batch.pixels_B3HW
        ).last_hidden_state[:, 0]
        expected_BY = (found.model.image_head(class_BC) + found.model.text_head(first_BC)) / 2
        torch.testing.assert_close(found.model(*parts(batch)), expected_BY, rtol=1e-4, atol=1e-5)
    shutil.rmtree(published / "bert")  # the folder of the model is whole: it needs no other
    assert load_labelling_model(tmp_path / "run" / "best", "cpu").explain(
        data / "0.png", "a red square"
    ).words[2:4] == ("red", "squa")


def test_frozen_towers_do_not_move_and_trained_ones_do(trained, config, run_patchword, tmp_path):
    """One epoch and twenty-five leave the same frozen towers; with everything trained, one epoch moves every
    tensor of them.
    """
    settings = (f"out={tmp_path / 'run'}", "stage.0.epochs=1", "stage.0.validate_every=1", "--device", "cpu")

    def towers(folder):
        weights = load_labelling_model(folder, "cpu").model.state_dict()
        return {name: tensor for name, tensor in weights.items() if "tower" in name}

    long = towers(trained)
    for more, moves in (((), False), (("vision.trainable_from=0", "text.trainable_from=0"), True)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        status, _, said = run_patchword("train", config, *settings, *more)
        assert status == 0, said
        same = [torch.equal(tensor, long[name]) for name, tensor in towers(tmp_path / "run" / "best").items()]
        assert not any(same) if moves else all(same)


def test_predict_writes_probabilities_and_evaluate_scores_them(trained, data, run_patchword, tmp_path):
    out = tmp_path / "rows.csv"
    status, said, _ = run_patchword(
        "predict", trained, "--data", data / "rows.csv", "--images", data, "--split", "val", "--out", out
    )
    assert status == 0 and "40 rows" in said
    rows = read_csv(out)
    assert len(rows) == 40
    for row in rows:
        shares = {label: float(row[f"p({label})"]) for label in ("match", "mismatch")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4) and row["predicted"] == max(
            shares, key=shares.get
        )
    folder = tmp_path / "evaluated"
    status, said, _ = run_patchword(
        "evaluate", trained, "--data", data / "rows.csv", "--images", data, "--out", folder
    )
    assert status == 0
    accuracy = sum(row["predicted"] == row["label"] for row in rows) / 40
    assert f"accuracy {accuracy:.4f}" in said and "macro_F1" in said and "mismatch" in said
    found = json.loads((folder / "scores.json").read_text())
    assert found["scores"]["accuracy"] == accuracy == pytest.approx(scores(trained.parent)["accuracy"])
    assert picture_width(folder / "confusion.png") > 100
    (data / "odd.csv").write_text("image,text,label,split\n0.png,red,match,val\n1.png,red,odd,val\n")
    status, _, wrong = run_patchword(
        "evaluate", trained, "--data", data / "odd.csv", "--images", data, "--out", tmp_path / "none"
    )
    assert (
        status == 2
        and "line 3: the label 'odd' is none of the 2 labels" in wrong
        and not (tmp_path / "none").exists()
    )
    lines = tmp_path / "rows.jsonl"
    run_patchword(
        "predict", trained, "--data", data / "rows.csv", "--images", data, "--split", "all", "--out", lines
    )
    assert len(lines.read_text(encoding="utf-8").splitlines()) == 120


def test_rows_that_lack_a_side(trained, data, run_patchword, tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("image,text,label\n0.png,,match\n1.png,red,match\n")
    arguments = (trained, "--data", path, "--images", data, "--split", "all", "--out", tmp_path / "out.csv")
    status, _, said = run_patchword("predict", *arguments)
    assert (
        status == 2 and f"{path}, line 2: the text is empty" in said and not (tmp_path / "out.csv").exists()
    )
    status, _, said = run_patchword("predict", *arguments, "--overwrite", "--missing", "image-only")
    assert status == 0, said
    first = read_csv(tmp_path / "out.csv")[0]
    classifier = load_labelling_model(trained, "cpu")
    image_BY, _ = classifier.model.fuse_heads(
        classifier.model.lower(*parts(classifier.batch([data / "0.png"], [""])))
    )
    assert float(first["p(match)"]) == pytest.approx(image_BY.softmax(1)[0, 0].item(), abs=1e-4)
    path.write_text("image,text,label\ngone.png,red,match\n")
    status, _, said = run_patchword("predict", *arguments, "--overwrite", "--missing", "image-only")
    assert status == 2 and "no picture" in said and "gone.png" in said
    status, _, said = run_patchword("predict", *arguments, "--overwrite", "--missing", "text-only")
    assert status == 0, said


def test_workers_label_the_rows_that_one_process_labels(
    trained, data, run_patchword, tmp_path, in_place_of_ray
):
    """Several rows about a picture, rows without one, one that cannot be decoded."""
    (data / "broken.png").write_bytes(b"no picture")
    path = tmp_path / "gaps.csv"
    rows = [
        "0.png,red,match",
        ",blue,match",
        "1.png,blue,match",
        "0.png,green,mismatch",
        "broken.png,red,match",
    ]
    path.write_text("\n".join(["image,text,label", *rows]))
    arguments = (
        "predict",
        trained,
        "--data",
        path,
        "--images",
        data,
        "--split",
        "all",
        "--missing",
        "text-only",
    )
    status, _, said = run_patchword(*arguments, "--out", tmp_path / "here.csv")
    assert status == 0, said
    spread = ("--cluster", "local", "--parts", tmp_path / "parts")
    status, printed, said = run_patchword(*arguments, "--out", tmp_path / "there.csv", *spread)
    assert status == 0 and "5 rows" in printed and in_place_of_ray["made"] == 1, said
    here, there = (read_csv(tmp_path / name) for name in ("here.csv", "there.csv"))
    for one, other in zip(here, there, strict=True):
        assert [one[name] for name in ("image", "text", "label")] == [
            other[name] for name in ("image", "text", "label")
        ]
        assert float(one["p(match)"]) == pytest.approx(float(other["p(match)"]), abs=1e-5)


def parts(batch):
    return batch.pixels_B3HW, batch.ids_BL, None, batch.mask_BL


def test_a_broken_picture_is_named_and_left_out(trained, data, run_patchword, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "astronaut.png")
    (tmp_path / "rows.csv").write_text("image,text\nbroken.png,red\nastronaut.png,blue\n")
    arguments = (
        "--data",
        tmp_path / "rows.csv",
        "--images",
        tmp_path,
        "--split",
        "all",
        "--out",
        tmp_path / "out.jsonl",
    )
    status, said, wrong = run_patchword("predict", trained, *arguments)
    assert status == 1 and "1 row, 1 picture could not be read" in said and "broken.png" in wrong
    assert json.loads((tmp_path / "out.jsonl").read_text())["image"] == "astronaut.png"


def test_label_gives_the_right_label(trained, data, run_patchword):
    """A picture with the text that names its colour matches, with the other one it does not."""
    pictures = sorted({row["image"] for row in read_csv(data / "rows.csv") if row["split"] == "val"})
    right = 0
    for name in pictures[:12]:
        with Image.open(data / name) as picture:
            red, _, blue = picture.convert("RGB").getpixel((0, 0))
        for colour, is_shown in (("red", red > blue), ("blue", blue > red)):
            text = f'a "{colour}" square, as it says'
            status, said, wrong = run_patchword("label", data / name, "--model", trained, "--text", text)
            assert status == 0, wrong
            best, second = (cell.rsplit(" ", 1) for cell in said.strip().split("\t")[1:])
            assert float(best[1]) >= float(second[1])
            right += best[0] == ("match" if is_shown else "mismatch")
    assert right >= 0.9 * 24


def test_label_explains(trained, data, run_patchword, tmp_path):
    page, figure = tmp_path / "page.html", tmp_path / "figure.png"
    status, said, wrong = run_patchword(
        "label", data / "0.png", "--model", trained, "--text", "a red square", "--explain", page
    )
    assert status == 0 and said.split("\t")[0] == str(data / "0.png"), wrong
    content = page.read_text(encoding="utf-8")
    assert (
        content.count("data:image/png") == 4
        and "Layer 2" in content
        and "Layer 3" in content
        and ">square</mark>" in content
    )
    status, _, wrong = run_patchword(
        "label", data / "0.png", "--model", trained, "--text", "a red square", "--explain", figure
    )
    assert status == 0 and picture_width(figure) > 100, wrong
    explained = load_labelling_model(trained, "cpu").explain(data / "0.png", "a red square")
    assert explained.words == ("(start)", "a", "red", "square", "(end)")
    for gathered in explained.layers:
        assert gathered.patches_Qhw.shape == (2, 2, 2) and gathered.words_QL.shape == (2, 5)
        assert (gathered.patches_Qhw.sum((1, 2)) < 1).all() and (gathered.words_QL.sum(1) < 1).all()
    status, _, wrong = run_patchword("label", data / "0.png", "--model", trained, "--labels", "a, b")
    assert status == 2 and "leave out --labels" in wrong


def test_the_page_shows_what_the_model_saw(trained, middle_only, run_patchword, tmp_path):
    cut, page = middle_only(trained), tmp_path / "page.html"
    words = ("--text", "a red square", "--explain", page)
    status, _, wrong = run_patchword("label", cut.picture, "--model", cut.folder, *words)
    assert status == 0 and set(cut.shown(page)) == {0.0}, wrong


def test_several_labels_per_row(config, data, run_patchword, tmp_path):
    rows = read_csv(data / "rows.csv")
    with open(tmp_path / "several.jsonl", "w") as file:
        for row in rows:
            named = "red" if "red" in row["text"] else "blue"
            labels = [f"says {named}", row["label"]] if row["label"] == "match" else [f"says {named}"]
            file.write(json.dumps({**row, "label": labels}) + "\n")
    settings = (
        f"data.table={tmp_path / 'several.jsonl'}",
        'data.columns.separator="|"',
        f"out={tmp_path / 'run'}",
        "stage.0.epochs=8",
    )
    status, _, said = run_patchword("train", config, *settings, "stage.0.validate_every=8", "--device", "cpu")
    assert status == 0, said
    found = scores(tmp_path / "run")
    assert set(found) == {"exact", "micro_F1", "macro_F1"} and found["micro_F1"] >= 0.6
    arguments = ("--data", tmp_path / "several.jsonl", "--images", data)
    status, said, wrong = run_patchword("evaluate", tmp_path / "run" / "best", *arguments)
    assert status == 0 and f"micro_F1 {found['micro_F1']:.4f}" in said, wrong
    status, _, wrong = run_patchword(
        "predict", tmp_path / "run" / "best", *arguments, "--split", "val", "--out", tmp_path / "p.csv"
    )
    assert status == 0 and "|" in (tmp_path / "p.csv").read_text(), wrong


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda rows: rows[0].update(label="unheard"),
            "line 2: the label 'unheard' is none of the 2 labels of the training rows (match, mismatch)",
        ),
        (
            lambda rows: [row.update(label="match") for row in rows],
            "has the label 'match': there is nothing to choose from",
        ),
        (lambda rows: rows[-1].update(text=" "), "the text is empty: write one"),
        (lambda rows: rows[-1].update(label=""), "the row has no label"),
        (lambda rows: rows[-1].update(image="gone.png"), "gone.png: give it, remove the row"),
        (
            lambda rows: [row.update(split="train") for row in rows],
            "no rows of split val to select the model on",
        ),
    ],
    ids=["unknown label", "one class", "empty text", "no label", "no picture", "no val"],
)
def test_a_table_that_cannot_be_trained_on(change, says, config, data, run_patchword, tmp_path):
    rows = read_csv(data / "rows.csv")
    for row in rows:
        row["text"] = row["text"].replace("\n", " ")
    change(rows)
    with open(tmp_path / "changed.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    status, _, said = run_patchword(
        "train",
        config,
        f"data.table={tmp_path / 'changed.csv'}",
        f"out={tmp_path / 'run'}",
        "--device",
        "cpu",
    )
    assert status == 2 and says in said and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


SEARCH = """
[prompt_search]
fused_layers = [1, 2]
query = [0, 1, 2]
query_context = [0, 1]
fusion_context = [0, 2]
map_width = [8, 16]
[evolution]
generations = 2
population = 4
parents = 2
mutations = 2
crossings = 1
"""


def test_a_search_goes_on_and_its_result_trains(config, run_patchword, tmp_path):
    text = config.read_text().split("[model]")
    stage = "[[stage]]" + text[1].split("[[stage]]")[1].replace("epochs = 25", "epochs = 3").replace(
        "validate_every = 25", "validate_every = 3"
    )
    path = tmp_path / "search.toml"
    text[0] = text[0].replace("label", "structure")
    path.write_text(text[0] + SEARCH + stage)
    settings = ("data.cache_tokens=true", "budget=3500", f"out={tmp_path / 'run'}")
    status, said, wrong = run_patchword("structure", path, *settings, "--device", "cpu")
    assert status == 0 and "12 structures" in said, wrong
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "structures.jsonl").read_text().splitlines()]
    assert (
        len(rows) == 12
        and max(row["cost"] for row in rows) <= 3500
        and picture_width(run / "search.png") > 100
    )
    (run / "structures.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows[:5]) + '{"generation": 1, "sco'
    )
    status, _, wrong = run_patchword("structure", path, *settings, "--resume", "--device", "cpu")
    assert status == 0, wrong
    assert [json.loads(line) for line in (run / "structures.jsonl").read_text().splitlines()] == rows
    best = max(rows, key=lambda row: (row["score"], -row["cost"]))
    found = read_toml(run / "structure.toml")
    assert found["model"]["query"] == best["structure"]["query"] and found["task"] == "label"
    status, _, wrong = run_patchword("train", run / "structure.toml", "--device", "cpu")
    assert status == 0, wrong
    trained = load_labelling_model(run / "trained" / "best", "cpu").model
    learnt = sum(parameter.numel() for name, parameter in trained.named_parameters() if "tower" not in name)
    assert learnt == best["cost"]
