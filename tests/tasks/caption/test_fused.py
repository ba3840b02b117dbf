"""The fused model through its stages, as `fused-scenes` trains it: every command typed, on drawn scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

CONFIGS = Path(__file__).resolve().parents[3] / "src" / "patchword" / "configs"


TIMED = ("seconds", "images_per_second", "captions_per_second", "reward_share")


def every(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder):
    return [row for row in every(folder) if row["event"] == "step"]


@pytest.fixture(scope="module")
def call():
    """The command line inside this process; the error, where it ends with one, is raised."""
    from typer.testing import CliRunner

    from patchword.cli import app

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return run


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, call):
    """A folder with scenes, two towers and a codebook, and the overrides that point the configuration at
    them.
    """
    from patchword.data.scenes import write_scenes

    folder = tmp_path_factory.mktemp("fused")
    for split, count in (("train", 96), ("val", 24)):
        write_scenes(folder / "scenes", count, level=1, split=split)
    scenes = folder / "scenes"
    data = (
        f"data.annotations={scenes / 'dataset.json'}",
        f"data.images={scenes / 'images'}",
        f"data.cache={folder / 'cache'}",
    )
    call("train", CONFIGS / "two-towers-scenes.toml", *data, f"out={folder / 'towers'}", "--device", "cpu")
    towers = folder / "towers" / "best"
    words = ("--from-captions", folder / "scenes/dataset.json", "--minimum-count", 5)
    call("codebook", *words, "--tower", towers, "--out", folder / "codebook")
    return folder, (*data, f"tower_from={towers}", f"text_from={towers}", f"codebook={folder / 'codebook'}")


def recipe_of(folder, *overrides):
    """The recipe of `fused-scenes`, ready for its first step."""
    from patchword.config import override, read_toml, validate
    from patchword.tasks.caption.settings import CaptionRun
    from patchword.tasks.caption.train import caption_recipe

    settings = override(read_toml(CONFIGS / "fused-scenes.toml"), overrides)
    return caption_recipe(validate(settings, CaptionRun, "the test"), folder / "run", "test")


@pytest.fixture(scope="module")
def fused(workshop, call):
    """The run folder of the whole recipe."""
    folder, overrides = workshop
    call("train", CONFIGS / "fused-scenes.toml", *overrides, f"out={folder / 'run'}", "--device", "cpu")
    return folder / "run"


def test_every_loss_has_its_stage(fused):
    by_stage = {}
    for row in steps(fused):
        by_stage.setdefault(row["stage"], []).append(row["losses"])
    words = {"loss", "cross_entropy", "patch_contrast", "text_regulariser"}
    assert {name: set(rows[0]) for name, rows in by_stage.items()} == {
        "align": words,
        "joint": words,
        "self-critical": {"loss", "reward"},
    }
    first = by_stage["align"][0]
    expected = first["cross_entropy"] + 0.25 * first["patch_contrast"] + 0.1 * first["text_regulariser"]
    assert first["loss"] == pytest.approx(expected, abs=1e-5)
    last, share = (
        by_stage["joint"][-1],
        1 - 1 / len(by_stage["joint"]),
    )  # of the stage; the weights fall to 0 over it
    expected = (
        last["cross_entropy"]
        + 0.25 * (1 - share) * last["patch_contrast"]
        + 0.2 * (1 - share) * last["text_regulariser"]
    )
    assert last["loss"] == pytest.approx(expected, abs=1e-5)
    assert (
        last["text_regulariser"] < first["text_regulariser"]
        and last["cross_entropy"] < first["cross_entropy"]
    )


def test_captions_in_text_space_are_those_of_their_two_towers(workshop):
    from patchword.checkpoints.folder import tower_digest
    from patchword.checkpoints.towers import load_tower
    from patchword.data.records import CaptionRecord
    from patchword.tasks.caption.texts import embed_captions, text_towers
    from patchword.tasks.retrieve.load import load_two_towers

    towers = workshop[0] / "towers" / "best"
    loaded = text_towers(str(towers), tower_digest(load_tower(towers)[0])[:16])
    records = [
        CaptionRecord(image_id=1, file="a.png", captions=("a red square", "zzz qqq"), split="train"),
        CaptionRecord(image_id=2, file="b.png", captions=("a small blue star",), split="train"),
    ]
    first_2E, second_1E = embed_captions(loaded, records, torch.device("cpu"))
    expected_2E = load_two_towers(towers, "cpu").embed_texts(["a red square", "a small blue star"])
    np.testing.assert_allclose(first_2E[0], expected_2E[0], atol=1e-3)
    np.testing.assert_allclose(second_1E[0], expected_2E[1], atol=1e-3)
    assert (
        first_2E.dtype == np.float16 and not first_2E[1].any()
    )  # a caption without a known word points nowhere


def test_what_does_not_fit_is_said_before_anything_runs(workshop, call, tmp_path):
    from patchword.errors import ConfigError

    overrides = (*workshop[1], f"out={tmp_path / 'run'}", "--device", "cpu")
    for setting, message in (
        (
            "captioner.region_alignment.text_regulariser=false",
            "that needs captioner.region_alignment.text_regulariser = true",
        ),
        (
            "captioner.region_alignment.contrast_width=0",
            "the model has no head for it: set captioner.region_alignment.contrast_width above 0",
        ),
        ("text_from=two-towers", "text_from names two-towers, whose vision tower is"),
        ("stage.0.objective.text_regulariser=[0.1, -1]", "greater than or equal to 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            call("train", CONFIGS / "fused-scenes.toml", *overrides, setting)
    assert not (tmp_path / "run").exists()


SMALL = (
    *(
        "captioner.width=16",
        "captioner.heads=2",
        "captioner.hidden=16",
        "captioner.memory.count=4",
        "captioner.memory.cluster_every=2",
    ),
    *(
        "captioner.memory.effect_after=1",
        "captioner.memory.bank=512",
        "tower.trainable_from=1",
        "tower.adapters.blocks=1",
    ),
    *(
        "tower.adapters.bottleneck=4",
        "precision=fp32",
        "data.minimum_count=1",
        "data.limit=16",
        "log_steps=1",
        "decoding.beams=1",
    ),
    *(f"stage.{number}.{setting}" for number in range(4) for setting in ("epochs=1", "batch=8")),
    *("stage.0.warm_up_steps=0", "stage.3.objective.samples=2", "stage.3.start_from=last"),
)
"""What makes `fused-coco-clip-b16` small enough for a test; the recipe itself stays as it is."""


def test_the_recipe_of_the_design_runs_with_a_tiny_clip(workshop, tiny_clip, call, tmp_path):
    """From stored tokens below the adapters, through all stages; only what a stage trains moves, and the
    model is one file tree.
    """
    from safetensors.numpy import load_file

    import patchword

    folder, clip = workshop[0], f"hub:{tiny_clip}"
    scenes = folder / "scenes"
    (tmp_path / "words.txt").write_text("cat\ndog\ncats\ndogs\n")
    call("codebook", tmp_path / "words.txt", "--tower", clip, "--out", tmp_path / "codebook")
    where = ("--data", scenes / "dataset.json", "--images", scenes / "images")
    stored = call(
        "features", clip, *where, "--until-layer", 1, "--out", tmp_path / "store", "--device", "cpu"
    )
    assert "tokens (120, 17, 16) float16" in stored
    settings = (
        f"tower.source={tiny_clip}",
        f"text_from={clip}",
        f"codebook={tmp_path / 'codebook'}",
        *workshop[1][:2],
        *SMALL,
    )
    run = (
        "train",
        CONFIGS / "fused-coco-clip-b16.toml",
        *settings,
        f"data.features={tmp_path / 'store'}",
        "--device",
        "cpu",
    )
    call(*run, f"out={tmp_path / 'run'}")
    logged = {row["stage"]: row for row in steps(tmp_path / "run")}
    assert list(logged) == ["align", "joint-ramp", "joint", "self-critical"]
    assert (
        logged["align"]["learning_rates"]["tower.adapters"] == 1e-4
        and "tower" not in logged["align"]["learning_rates"]
    )
    assert logged["joint-ramp"]["learning_rates"]["tower"] == 1e-6 and logged["self-critical"][
        "learning_rates"
    ] == {"captioner": 5e-6}
    last = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    theirs = load_file(tiny_clip / "model.safetensors")
    names = {name: name.removeprefix("tower.model.") for name in last if name.startswith("tower.model.")}
    moved = {name.split(".")[2] for name, own in names.items() if not np.array_equal(last[name], theirs[own])}
    still = {name for name in names if "layers.0." in name or "embeddings" in name}
    assert moved and still and all(np.array_equal(last[name], theirs[names[name]]) for name in still)
    assert last["tower.adapters.0.up.weight"].any() and last["captioner.memory.live_LM"].any()
    model = patchword.load(tmp_path / "run" / "best", device="cpu")
    assert model.caption(
        scenes / "images" / sorted(path.name for path in (scenes / "images").iterdir())[0]
    ).text

    from patchword.errors import ConfigError

    with pytest.raises(
        ConfigError, match="replaces the tower's layers below 1, and a stage trains it from layer 0 on"
    ):
        call(*run, f"out={tmp_path / 'other'}", "tower.adapters.blocks=2")


def test_what_the_parts_do_is_logged_and_drawn(fused):
    rows = steps(fused)
    crossed, rewarded = (
        [row for row in rows if (row["stage"] == "self-critical") == is_last] for is_last in (False, True)
    )
    assert all(1 <= row["concepts_in_use"] <= 26 for row in crossed)
    assert all(0 <= row["concept_entropy"] <= np.log(row["concepts_in_use"]) + 1e-6 for row in crossed)
    joint = [row for row in crossed if row["stage"] == "joint"]
    assert not any("bank_fill" in row for row in crossed if row["stage"] == "align")
    fill = [row["bank_fill"] for row in joint]
    assert 0 < fill[0] < fill[-1] <= 1 and fill == sorted(fill)
    # clustered at the stage's 6th step, in effect at the 8th: attended to from the 9th on
    assert [row["prototypes_live_1"] for row in joint[5:9]] == [0, 0, 8, 8]
    masses = [row["memory_attention_0"] for row in joint[5:10]]
    assert masses[:3] == [0, 0, 0] and 0 < masses[3] < masses[4]
    assert all(
        0 < row["reward_share"] < 1 and not any(key.startswith(("bank", "concept")) for key in row)
        for row in rewarded
    )
    assert all(row["captions_per_second"] > 0 for row in every(fused) if row["event"] == "validation")
    page = (fused / "report.html").read_text()
    for title in (
        "Attention on prototypes",
        "Live prototypes",
        "Concepts in use",
        "Share of a self-critical step spent on rewards",
    ):
        assert f"<figcaption>{title}" in page


def test_masks_of_people_label_the_contrast(workshop, call, write_panoptic, tmp_path):
    """The labels of a batch are the masks' classes, and the loss of the first step is that of the patches
    under them.
    """
    from patchword.data.scenes import make_scenes
    from patchword.errors import ConfigError
    from patchword.train.step import Shares

    numbers = {
        one["filename"]: one["imgid"]
        for one in json.loads((workshop[0] / "scenes/dataset.json").read_text())["images"]
    }
    scenes = make_scenes(40, 1, "train")
    path = write_panoptic(tmp_path, scenes, [numbers[f"{scene.name}.png"] for scene in scenes], 32)
    segmented = (f"data.panoptic={path}", f"data.panoptic_masks={tmp_path / 'panoptic'}")
    recipe = recipe_of(tmp_path, *workshop[1], *segmented)
    objective = recipe.objective(0).eval()
    batch = recipe.batch(0, recipe.plan(0, 0)[0], torch.Generator().manual_seed(0))
    known_B = torch.tensor([image in numbers.values() and image < 40 for image in batch.image_ids])
    assert batch.labels_BN.shape == (16, 16) and known_B.any() and not known_B.all()
    assert (batch.labels_BN[~known_B] == -1).all() and (batch.labels_BN[known_B] > 0).any()
    named = objective(batch, Shares(batch.target_count, batch.picture_count, 0.0))
    with torch.no_grad():
        memory = recipe.model.captioner.encode(recipe.model.features(batch.inputs))
        expected = recipe.model.captioner.contrast_loss(memory, batch.labels_BN)
    assert named["patch_contrast"].item() == pytest.approx(expected.item(), abs=1e-6)
    for settings, message in (
        (segmented[:1], "go together: give both or neither"),
        (
            (*segmented, "data.augmentation.smallest_area=0.5"),
            "augmentation shows others: leave one of them out",
        ),
        (
            (*segmented, *(f"stage.{n}.objective.patch_contrast=0" for n in (0, 1))),
            "no stage gives that a weight",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            call(
                "train",
                CONFIGS / "fused-scenes.toml",
                *workshop[1],
                *settings,
                f"out={tmp_path / 'run'}",
                "--device",
                "cpu",
            )


def test_the_memory_is_frozen_while_self_critical(workshop, fused, tmp_path):
    """Two steps from the best model, a joint one: its prototypes and bank stay bit-equal, while what reads
    them learns.
    """
    from patchword.train.groups import build_optimiser, freeze
    from patchword.train.step import Shares

    recipe = recipe_of(tmp_path, *workshop[1], f"captioner_from={fused / 'best'}")
    memory, stage = recipe.model.captioner.memory, 2
    freeze(
        recipe.model,
        {name: True for name, _ in recipe.model.named_parameters()},
        recipe.stages[stage].learning_rates,
    )
    objective, optimiser = (
        recipe.objective(stage).train(),
        build_optimiser(recipe.model, recipe.stages[stage]),
    )
    recipe.before_step(stage, 0.0, objective)
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    for step, entries in enumerate(recipe.plan(stage, 0)[:2]):
        batch = recipe.batch(stage, entries, torch.Generator().manual_seed(step))
        objective(batch, Shares(batch.target_count, batch.picture_count, 0.0))["loss"].backward()
        optimiser.step()
        assert recipe.after_step(step, objective).keys() == {"reward_share"}
    assert memory.live_LM.all() and not any(name.startswith("bank") for name in recipe.state())
    moved = {
        name for name, tensor in recipe.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert "captioner.memory.segment_memory_LC" in moved and "captioner.output.weight" in moved
    assert not moved & {f"captioner.memory.{name}" for name, _ in memory.named_buffers()}


def test_an_average_is_saved_and_a_resumed_run_goes_on_with_what_it_trained(workshop, fused, tmp_path):
    """With `average` the saved weights lie between those before and after a step; the trained ones are in
    the run's state, so that a run that goes on from both takes the same step as one that was left alone."""
    from patchword.train.groups import build_optimiser
    from patchword.train.step import Shares

    overrides = (*workshop[1], f"captioner_from={fused / 'best'}", "average=0.1")
    stage = 0

    def take(recipe, step):
        objective = recipe.objective(stage).eval()
        optimiser = build_optimiser(recipe.model, recipe.stages[stage])
        optimiser.zero_grad()
        recipe.before_step(stage, 0.0, objective)
        batch = recipe.batch(stage, recipe.plan(stage, 0)[step], torch.Generator().manual_seed(step))
        objective(batch, Shares(batch.target_count, batch.picture_count, 0.0))["loss"].backward()
        optimiser.step()
        recipe.after_step(step, objective)

    def words(recipe):
        return recipe.model.captioner.words.weight.detach().clone()

    alone = recipe_of(tmp_path / "alone", *overrides)
    before = words(alone)
    take(alone, 0)
    alone.save(tmp_path / "saved")
    state = {name: tensor.clone() for name, tensor in alone.state().items()}
    saved = load_file(tmp_path / "saved" / "model.safetensors")["captioner.words.weight"]
    torch.testing.assert_close(saved, 0.1 * before + 0.9 * words(alone))
    assert not torch.equal(saved, words(alone))

    resumed = recipe_of(tmp_path / "resumed", *overrides)
    resumed.load(tmp_path / "saved")
    assert torch.equal(words(resumed), saved)
    resumed.load_state(state)
    assert torch.equal(words(resumed), words(alone))
    for recipe in (alone, resumed):
        take(recipe, 1)
        recipe.save(tmp_path / "later")
    assert torch.equal(words(resumed), words(alone))


def test_a_training_begins_from_a_model_whose_concepts_were_calibrated():
    """What a calibration added to the shipped captioner is of its pictures, and no weight of the model."""
    from patchword import load
    from patchword.checkpoints.model import find_model
    from patchword.tasks.caption.train import load_weights

    model = load("flickr8k").model
    wanted = model.captioner.output.weight.detach().clone()
    assert model.familiarity is not None
    model.familiarity = None
    with torch.no_grad():
        model.captioner.output.weight.zero_()
    load_weights(model, find_model("flickr8k"))
    assert torch.equal(model.captioner.output.weight, wanted)


def test_captions_end_where_sentences_end(fused):
    """After self-critical training none stops at "with a" or "on a": the end token counts in reward and loss."""
    from patchword.metrics.diversity import FUNCTION_WORDS

    rows = json.loads((fused / "predictions" / "self-critical-004.json").read_text())
    captions = [row["caption"].split() for row in rows]
    assert len(captions) == 24 and all(
        len(words) > 1 and words[-1] not in FUNCTION_WORDS for words in captions
    )


def test_killed_while_the_memory_fills_and_resumed(workshop, fused, call, start_patchword, tmp_path):
    """kill -9 in the second stage: resumed, the run has the same losses, scores, bank and prototypes as the
    one that was left alone.
    """
    import os
    import signal
    import time

    from safetensors.numpy import load_file

    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last"
    arguments = (
        "train",
        CONFIGS / "fused-scenes.toml",
        *workshop[1],
        f"out={run}",
        "checkpoint_steps=1",
        "--device",
        "cpu",
    )
    process = start_patchword(*arguments)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        try:  # the first stage has 24 steps; a clustering waits for its step
            if json.loads((last / "training.json").read_text())["position"]["step"] >= 48:
                break
        except (OSError, ValueError):
            pass  # not there yet, or being replaced
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stopped = json.loads((last / "training.json").read_text())["position"]
    assert stopped["stage"] == 1 and "extra.bank.keys_LNC" in load_file(last / "training.safetensors")
    call(*arguments, "--resume")
    kept = [
        [{key: value for key, value in row.items() if key not in TIMED} for row in every(folder)]
        for folder in (run, fused)
    ]
    assert kept[0] == kept[1]
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = load_file(last / name), load_file(fused / "checkpoints" / "last" / name)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_codebook_serves_its_own_tower_alone(workshop, fused, call, tmp_path):
    """Refused at `train` by another tower, by top_k beyond its words, and by a model that was trained with
    another one; at `caption`, where the folder's codebook is not the one that it was saved with.
    """
    import shutil

    from patchword.errors import ConfigError, ModelError

    folder, overrides = workshop
    (tmp_path / "words.txt").write_text("red\ngreen\nstar\n")
    call(
        "codebook", tmp_path / "words.txt", "--tower", folder / "towers" / "best", "--out", tmp_path / "small"
    )
    call("codebook", tmp_path / "words.txt", "--tower", "two-towers", "--out", tmp_path / "foreign")
    run = ("train", CONFIGS / "fused-scenes.toml", *overrides, f"out={tmp_path / 'run'}", "--device", "cpu")
    with pytest.raises(
        ModelError, match="the codebook was made in the text space of .* their cosines mean nothing"
    ):
        call(*run, f"codebook={tmp_path / 'foreign'}", "captioner.region_alignment.top_k=1")
    with pytest.raises(ConfigError, match="top_k = 6 exceeds the codebook's 3 words"):
        call(*run, f"codebook={tmp_path / 'small'}")
    with pytest.raises(
        ConfigError, match="was trained with another codebook than .*small: give the one it has"
    ):
        call(
            *run,
            f"codebook={tmp_path / 'small'}",
            "captioner.region_alignment.top_k=1",
            f"captioner_from={fused / 'best'}",
        )
    picture = next((folder / "scenes" / "images").iterdir())
    assert call("caption", picture, "--model", fused / "best", "--device", "cpu").split("\t")[1].strip()
    shutil.copytree(fused / "best", tmp_path / "edited")
    config = json.loads((tmp_path / "edited" / "config.json").read_text())
    config["codebook"]["templates"][0] = "{}!"
    (tmp_path / "edited" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the prompt templates of the codebook do not match their hash"):
        call("caption", picture, "--model", tmp_path / "edited", "--device", "cpu")
    swapped = config | {"codebook": json.loads((tmp_path / "foreign" / "codebook.json").read_text())}
    (tmp_path / "edited" / "config.json").write_text(json.dumps(swapped))
    with pytest.raises((ModelError, ConfigError), match="has shape|exceeds"):
        call("caption", picture, "--model", tmp_path / "edited", "--device", "cpu")


def test_prototypes_are_listed_with_their_contexts(workshop, fused, call):
    """What a prototype of language shows are runs of words out of training captions; the shares of the bank
    add up.
    """
    layers = json.loads(call("memory", fused / "best", "--json"))["layers"]
    pictures = json.loads((workshop[0] / "scenes" / "dataset.json").read_text())["images"]
    captions = [
        f" {' '.join(told['tokens'])} "
        for one in pictures
        if one["split"] == "train"
        for told in one["sentences"]
    ]
    assert [len(layer) for layer in layers] == [8, 8]
    for layer in layers:
        assert sum(one["bank_share"] for one in layer) == pytest.approx(1)
        contexts = {context for one in layer for context in one["contexts"]} - {"(beginning of a caption)"}
        assert len(contexts) > 4 and all(
            any(f" {context} " in caption for caption in captions) for context in contexts
        )
