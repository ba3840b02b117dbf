"""Few-shot models through the command line: trained on documents, shown examples, asked."""

import json

import pytest
import torch

import patchword as package
from patchword.data.captions import Inputs
from patchword.data.formats.interleaved import Document, Part
from patchword.data.scenes.documents import WORDINGS, make_episodes, write_documents
from patchword.models.captioners.flamingo import MARK
from patchword.tasks.interleave.data import Documents, encode, from_captions
from patchword.tasks.interleave.model import Shot, read_shots
from patchword.text.words import Vocabulary

TINY = [
    "tower.stem=4", "tower.widths=[8]", "tower.blocks=[0]", "tower.shared_width=8",
    "language.architecture.hidden_size=16", "language.architecture.intermediate_size=16",
    "language.architecture.num_hidden_layers=2", "flamingo.latents=2", "asked=4", "stage.0.epochs=1",
    "stage.1.epochs=1", "stage.0.batch=8", "stage.1.batch=8", "shots=[0, 2]",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory, run_patchword):
    folder = tmp_path_factory.mktemp("documents")
    for split, count in (("train", 16), ("val", 4)):
        path = write_documents(folder, make_episodes(count, 3, split), split, 24)
    config = folder / "run.toml"
    from patchword.config import find_config

    text = find_config("flamingo-scenes").read_text().replace('tower_from = "runs/eyes-scenes/best"\n', "")
    config.write_text(text)
    finished = run_patchword(
        "train", config, *TINY, f"data.documents={path}", f"data.images={folder / 'images'}",
        f"data.cache={folder / 'cache'}", f"out={folder / 'run'}", "--device", "cpu",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "exact_0" in finished.stderr and "exact_2" in finished.stderr
    return folder


def shots_file(model, count):
    rows = [json.loads(line)["parts"] for line in (model / "documents.jsonl").read_text().splitlines()]
    file = model / "images" / f"shots{count}.jsonl"
    file.write_text(
        "\n".join(json.dumps({"image": row[0]["image"], "text": row[1]["text"]}) for row in rows[:count])
    )
    return file


def test_the_language_model_was_frozen_when_pictures_came(model):
    events = [json.loads(line) for line in (model / "run" / "metrics.jsonl").read_text().splitlines()]
    stages = [event["stage"] for event in events if event["event"] == "validation"]
    assert stages == ["language", "pictures"]
    assert [event["best"] for event in events if event["event"] == "validation"] == [True, True]


def test_shots_are_read_once_and_answers_equal_reading_again(model):
    few = package.load(model / "run" / "best", "cpu")
    shots = read_shots(shots_file(model, 2))
    with torch.no_grad():  # so that pictures matter after one epoch
        for block in few.model.flamingo.gated:
            block.attention_gate.fill_(1.0)
    photos = [shot.image for shot in read_shots(shots_file(model, 4))][2:]
    before = few.read(shots)
    looked = []
    of_tower = few.model.tower.register_forward_hook(lambda *given: looked.append(len(given[1][0])))
    said = few.ask(photos, "", before, longest=4)
    assert looked == [2], "the pictures of the shots are not looked at again"
    of_tower.remove()
    assert said == [few.ask(photo, "", shots, longest=4)[0] for photo in photos] and "few shots" in repr(few)
    ids = torch.tensor([[few.vocabulary.special.start, *(t for s in shots for t in (MARK, *few.vocabulary.encode(s.text), few.vocabulary.special.end)), MARK]])  # fmt: skip  # noqa: E501
    latents = few.latents([*(shot.image for shot in shots), photos[0]])[None]
    with torch.inference_mode():
        whole = few.model.flamingo(ids, few.model.flamingo.remember(latents))[0, -1]
        parts = few.model.flamingo.read(torch.tensor([[MARK]]), latents[:, 2:], before).logits_BTV[0, -1]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_ask_and_caption_take_shots(model, patchword):
    file, best = shots_file(model, 2), model / "run" / "best"
    photo = next((model / "images").glob("*.png"))
    status, out, err = patchword("ask", photo, "the", "--model", best, "--shots", file, "--device", "cpu")
    assert status == 0 and len(out.splitlines()) == 1, err
    status, out, _ = patchword(
        "ask", photo, "zebra", "--model", best, "--shots", file, "--json", "--device", "cpu"
    )
    assert status == 0 and set(json.loads(out)) == {"image", "question", "answers"}
    status, out, err = patchword("caption", photo, "--model", best, "--shots", file, "--device", "cpu")
    assert status == 0 and out.startswith(f"{photo}\t"), err
    status, _, err = patchword("caption", photo, "--shots", file)
    assert status == 2 and "--shots is for models of task interleave" in err
    status, _, err = patchword("caption", photo, "--model", best, "--shots", file, "--beam", "3")
    assert status == 2 and "likeliest words" in err
    (model / "wrong.jsonl").write_text('{"image": "a.png"}\n')
    status, _, err = patchword("ask", photo, "the", "--model", best, "--shots", model / "wrong.jsonl")
    assert status == 2 and "line 1: expected" in err


def test_too_many_shots_are_refused(model):
    few = package.load(model / "run" / "best", "cpu")
    shots = read_shots(shots_file(model, 1)) * 60
    with pytest.raises(package.errors.DataError, match="give fewer shots"):
        few.read(shots)
    assert few.ask([], "", shots) == []


def test_documents_are_cut_where_pictures_or_tokens_end():
    vocabulary = Vocabulary.build(["a dog", "a cat"], 1)
    document = Document("one", (Part(image="x"), Part(text="a dog"), Part(image="y"), Part(text="a cat")))
    start, end = vocabulary.special.start, vocabulary.special.end
    a, cat, dog = (vocabulary.encode(word)[0] for word in ("a", "cat", "dog"))
    whole = encode(document, vocabulary, 99, 9)
    assert whole.ids == (start, MARK, a, dog, end, MARK, a, cat, end) and whole.files == ("x", "y")
    assert encode(document, vocabulary, 99, 1).ids == whole.ids[:5]
    short = encode(document, vocabulary, 3, 9)
    assert short.ids == whole.ids[:3] and short.files == ("x",)

    class Pictures:
        def load(self, files, generator):
            return Inputs(pixels_B3HW=torch.zeros(len(files), 3, 2, 2))

    batch = Documents((whole, short), vocabulary.special.pad, Pictures()).batch([0, 1], None)
    assert batch.pictures_BM.tolist() == [[0, 1], [0, 0]] and len(batch.inputs.pixels_B3HW) == 2
    assert batch.target_count == 6 + 1 and batch.picture_count == 2


def test_captioned_pictures_make_documents():
    from patchword.data.records import CaptionRecord

    records = [CaptionRecord(n, f"{n}.jpg", (f"text {n}", "other"), "train") for n in range(7)]
    made = from_captions(records, 3, None)
    assert len(made) == 2 and made[1].images == ("3.jpg", "4.jpg", "5.jpg")
    assert made[0].parts[1] == Part(text="text 0")


def test_episodes_keep_their_wording_and_say_the_truth():
    episodes = make_episodes(30, 4, distractors=0.3)
    assert episodes == make_episodes(30, 4, distractors=0.3) and len({one.wording for one in episodes}) == 4
    bare = 0
    for episode in episodes:
        said = [(s, c) for s, c in zip(episode.scenes, episode.captions, strict=True) if c is not None]
        bare += len(episode.scenes) - len(said)
        assert len(said) == 4
        for scene, caption in said:
            (thing,) = scene.things
            assert caption == WORDINGS[episode.wording].format(colour=thing.colour, shape=thing.shape)
    assert 15 < bare < 60
    assert Shot("a", "b").question == ""


def test_stored_features_stand_in_for_the_pictures_of_a_training(model, patchword, run_patchword, tmp_path):
    """The tower runs once; what is learnt is what is learnt from pixels, up to the store's half precision."""
    from patchword.data.scenes import write_scenes

    for split, count in (("train", 16), ("val", 6)):
        annotations = write_scenes(tmp_path, count, 1, 24, split)
    best, images, store = model / "run" / "best", tmp_path / "images", tmp_path / "store"
    status, _, err = patchword("features", best, "--data", annotations, "--images", images, "--out", store)
    assert status == 0, err
    losses = []
    for given in ([], [f"data.features={store}"]):
        out = tmp_path / f"run{len(given)}"
        finished = run_patchword(
            "train", model / "run.toml", *TINY, f"tower_from={best}", f"data.documents={annotations}",
            f"data.images={images}", f"data.cache={tmp_path / 'cache'}", "data.pictures_per_document=2",
            f"out={out}", *given, "--device", "cpu",
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([event["scores"]["loss"] for event in events if event["event"] == "validation"][-1])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
