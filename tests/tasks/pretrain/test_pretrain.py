"""Pre-training through the command line: the tower that comes out, few labels over it, and a collapse."""

import csv
import json

import pytest
import torch

import patchword as package
from patchword.config import override, read_toml, validate
from patchword.data.scenes import draw, make_scenes
from patchword.lookup import look_up
from patchword.tasks.table import TASKS

TINY = [
    "tower.architecture.hidden_size=16",
    "tower.architecture.num_hidden_layers=2",
    "tower.architecture.num_attention_heads=2",
    "tower.architecture.intermediate_size=16",
    "model.layers=2",
    "stage.0.epochs=2",
    "stage.0.batch=16",
    "stage.0.warm_up_steps=1",
    "data.held_out=8",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    scenes = make_scenes(56)
    rows = [["image", "text", "label", "split"]]
    for number, (scene, pixels) in enumerate(zip(scenes, draw(scenes, 16), strict=True)):
        Image.fromarray(pixels).save(folder / f"{scene.name}.png")
        label = "round" if scene.things[0].shape in ("circle", "ring") else "other"
        rows.append([f"{scene.name}.png", "a thing", label, "val" if number % 4 == 0 else "train"])
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def tower(pictures, tmp_path_factory, run_patchword):
    out = tmp_path_factory.mktemp("run") / "data2vec"
    arguments = [*TINY, f"data.pictures={pictures}", f"out={out}", f"data.cache={out}-cache"]
    finished = run_patchword("train", "data2vec-scenes", *arguments, "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    assert "target deviation" in finished.stderr
    return out


def test_a_tower_comes_out_that_others_take(tower, pictures, patchword, tmp_path):
    model = package.load(tower / "best", "cpu")
    vectors = model.embed_images(sorted(pictures.glob("*.png"))[:3])
    assert vectors.shape == (3, 16) and "pre-trained vit" in repr(model)
    events = [json.loads(line) for line in (tower / "metrics.jsonl").read_text().splitlines()]
    scores = [event["scores"] for event in events if event["event"] == "validation"]
    assert all({"explained", "target_deviation"} <= set(one) for one in scores)
    status, out, err = patchword(
        "shares", "label-few-fashion", "--at", "0.1,1", "--seeds", "1,2", "--device", "cpu",
        f"data.table={pictures / 'table.csv'}", f"data.images={pictures}", f"vision_from={tower / 'best'}",
        "data.pixel_size=16", f"data.cache={tmp_path / 'cache'}", "stage.0.epochs=1", f"out={tmp_path / 'few'}",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads((tmp_path / "few" / "shares.json").read_text())
    assert [row["rows"] for row in found["shares"]] == [4, 42] and found["measure"] == "micro_F1"
    assert all(len(row["scores"]) == 2 for row in found["shares"]) and "0.1" in out
    begun = package.load(tmp_path / "few" / "share-1-seed-1" / "best", "cpu")
    ours, theirs = begun.model.image_tower.state_dict(), model.tower.state_dict()
    moved = [(ours[name] - theirs[name]).abs().max() for name in theirs]
    assert 0 < max(moved) < 0.05, "it begins with the pre-trained weights and goes on learning"
    status, _, err = patchword("shares", "label-few-fashion", "--at", "2")
    assert status == 2 and "at most 1" in err


def recipe(pictures, tmp_path, *more):
    values = override(
        read_toml("data2vec-scenes"),
        [*TINY, f"data.pictures={pictures}", f"data.cache={tmp_path / 'cache'}", *more],
    )
    run = validate(values, look_up(TASKS["pretrain"].run), "data2vec-scenes")
    return look_up(TASKS["pretrain"].recipe)(run, tmp_path / "run", "test")


def test_a_resumed_run_has_its_teacher(pictures, tmp_path):
    one, two = recipe(pictures, tmp_path), recipe(pictures, tmp_path)
    with torch.no_grad():
        for weight in one.model.parameters():
            weight += torch.rand(weight.shape)
    one.save(tmp_path / "model")
    two.load(tmp_path / "model")
    two.load_state(one.state())
    assert all(
        torch.equal(value, two.model.state_dict()[name]) for name, value in one.model.state_dict().items()
    )


def test_a_collapse_is_told(pictures, tmp_path):
    """A teacher that gives the same for every picture."""
    from accelerate import Accelerator

    made = recipe(pictures, tmp_path, "model.normalise=false")
    for block in made.model.teacher.feed_forwards:
        torch.nn.init.zeros_(block.fc2.weight)
    found = made.validate(0, 0, Accelerator(cpu=True))
    assert found.event["collapsed"] and found.event["scores"]["target_deviation"] < 1e-6
    assert "COLLAPSED" in found.measure


def test_texts_are_pretrained_and_read_by_others(tmp_path, run_patchword):
    words = "a red green blue small large circle square ring star near above".split()
    generator = torch.Generator().manual_seed(0)
    lines = [
        " ".join(words[int(n)] for n in torch.randint(len(words), (6,), generator=generator))
        for _ in range(40)
    ]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n\n")
    sizes = "hidden_size=16 num_hidden_layers=2 num_attention_heads=2 intermediate_size=16".split()
    finished = run_patchword(
        "train", "data2vec-texts", f"data.texts={tmp_path / 'lines.txt'}", f"out={tmp_path / 'run'}",
        "data.held_out=8", "stage.0.epochs=1", "stage.0.batch=16", "model.layers=2",
        *(f"text.architecture.{size}" for size in sizes), "--device", "cpu",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    model = package.load(tmp_path / "run" / "best", "cpu")
    assert model.embed_texts(["a red circle", "a star"]).shape == (2, 16)
    with pytest.raises(package.errors.ModelError, match="text tower"):
        model.embed_images([])


def test_what_does_not_fit_together_is_said(pictures, tmp_path, patchword):
    status, _, err = patchword("train", "data2vec-scenes", "data.texts=x.txt", f"out={tmp_path / 'a'}")
    assert status == 2 and "exactly one of data.pictures, data.texts" in err
    status, _, err = patchword(
        "train", "data2vec-scenes", f"data.pictures={tmp_path / 'none'}", f"out={tmp_path / 'b'}"
    )
    assert status == 2 and "there is no folder" in err


def voken_rows():
    """Texts whose colours have a picture each, in pieces of two letters, as another tokenizer cuts."""
    pictures = {"red": "r.png", "green": "g.png", "blue": "b.png"}
    rows = []
    for number in range(48):
        colour, shape = list(pictures)[number % 3], ("circle", "star")[number % 2]
        text, vokens, at = f"A {colour} {shape}.", [], 2
        while at < 2 + len(colour):
            end = min(at + 2, 2 + len(colour))
            vokens.append({"token": text[at:end], "span": [at, end], "picture": pictures[colour]})
            at = end
        rows.append({"text": text, "vokens": vokens})
    return rows


VOKEN_SIZES = [
    "text.architecture.hidden_size=16",
    "text.architecture.num_hidden_layers=1",
    "text.architecture.num_attention_heads=2",
    "text.architecture.intermediate_size=16",
    "data.held_out=12",
    "stage.0.warm_up_steps=1",
]


def voken_recipe(tmp_path, *more):
    path = tmp_path / "vokens.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in voken_rows()), encoding="utf-8")
    values = override(read_toml("vokens-language-flickr8k"), [*VOKEN_SIZES, f"data.vokens={path}", *more])
    run = validate(values, look_up(TASKS["pretrain"].run), "vokens-language-flickr8k")
    return look_up(TASKS["pretrain"].recipe)(run, tmp_path / "run", "test")


def test_vokens_go_from_the_pieces_of_another_tokenizer_to_words(tmp_path):
    made = voken_recipe(tmp_path)
    batch = made.batch(0, [0, 1, 2], torch.Generator().manual_seed(0))
    assert (batch.vokens_BL[:, :2] == -1).all() and (batch.vokens_BL[:, 3:] == -1).all()
    assert sorted(batch.vokens_BL[:, 2].tolist()) == [0, 1, 2]  # start, a, colour, shape, end
    assert (batch.hidden_BL.sum(1) >= 1).all() and not batch.hidden_BL[:, 0].any()
    assert not batch.hidden_BL[:, -1].any()


def test_a_tower_learns_words_and_vokens_and_others_take_it(tmp_path, run_patchword):
    voken_recipe(tmp_path)
    out = tmp_path / "run"
    finished = run_patchword(
        "train", "vokens-language-flickr8k", *VOKEN_SIZES, f"data.vokens={tmp_path / 'vokens.jsonl'}",
        f"out={out}", "stage.0.epochs=40", "stage.0.batch=12", 'stage.0.learning_rates={ "" = 1e-2 }',
        "--device", "cpu",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = [event["scores"] for event in events if event["event"] == "validation"]
    # A colour that is not hidden tells its picture; one in three is what chance gives.
    assert max(one["vokens"] for one in scores) > 0.6 and "hidden_words" in scores[-1]
    model = package.load(out / "best", "cpu")
    assert model.embed_texts(["a red circle", "a star"]).shape == (2, 16)


def test_a_resumed_run_has_its_voken_heads_and_without_weight_there_is_none(tmp_path):
    one, two = voken_recipe(tmp_path), voken_recipe(tmp_path, "seed=5")
    one.save(tmp_path / "model")
    two.load(tmp_path / "model")
    two.load_state(one.state())
    assert all(torch.equal(v, two.model.state_dict()[n]) for n, v in one.model.state_dict().items())
    plain = voken_recipe(tmp_path, "model.voken_weight=0")
    assert not any(name.startswith("vokens.") for name in plain.state())


def test_what_are_no_vokens_is_said(tmp_path, patchword):
    def said(text, *more):
        (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
        status, _, err = patchword(
            "train", "vokens-language-flickr8k", f"data.vokens={tmp_path / 'bad.jsonl'}",
            f"out={tmp_path / 'r'}", *more,
        )  # fmt: skip
        assert status == 2
        return err

    assert "0 texts without a voken" in said("\n")
    assert "1 text without a voken" in said('{"text": "a dog", "vokens": []}\n')
    assert "bad.jsonl, line 2: expected a text with its vokens" in said(
        '{"text": "a", "vokens": []}\na dog\n'
    )
    assert "line 1: expected a text" in said('{"text": "a dog", "vokens": [{"span": [0, 1]}]}\n')
    assert "give data.vokens" in said("\n", "data={ texts = 'x.txt' }")
    status, _, err = patchword(
        "train", "vokens-language-flickr8k", f"data.vokens={tmp_path / 'none.jsonl'}", f"out={tmp_path / 'r'}"
    )
    assert status == 2 and "none.jsonl cannot be read" in err
