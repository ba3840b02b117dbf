"""Model folders: saved whole, loaded strictly, towers by value or by reference, no pickle."""

import json

import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import patchword
from patchword.checkpoints.facts import ModelFacts
from patchword.composed import CaptionModel, reader_preprocessing
from patchword.errors import ModelError, PatchwordError, WriteError
from patchword.models.captioners.adaptive import AdaptiveConfig
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.options import DecodingSettings
from patchword.text.words import Vocabulary
from patchword.towers.settings import AdaptersConfig, ClipTowerConfig, ConvolutionalConfig

VOCABULARY = Vocabulary.build(["a dog runs on grass", "a cat sits"], minimum_count=1)
CAPTIONER = AdaptiveConfig(word_width=8, width=12, attention_width=5)
SIZES = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
SMALL_CLIP = dict(**SIZES, image_size=32, patch_size=16, projection_dim=8)


def made(tower) -> CaptioningModel:
    torch.manual_seed(0)
    model = CaptionModel.build(tower, CAPTIONER, VOCABULARY.size)
    settings = ModelSettings(
        tower=tower,
        captioner=CAPTIONER,
        preprocessing=reader_preprocessing(model.tower.preprocessing),
        decoding=DecodingSettings(beams=2, max_length=8),
        vocabulary_size=VOCABULARY.size,
    )
    return CaptioningModel(
        model, settings, VOCABULARY, ModelFacts(name="test", licence="none"), torch.device("cpu")
    )


@pytest.fixture
def small():
    return made(ConvolutionalConfig(stem=4, widths=(8, 8), blocks=(0, 0), size=32))


def test_saved_model_says_the_same(small, tmp_path):
    small.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.json",
        "README.md",
    }
    loaded = patchword.load(tmp_path / "model", device="cpu")
    before, after = small.caption(skimage.data.coffee()), loaded.caption(skimage.data.coffee())
    assert (before.text, before.log_probability, before.sentinel) == (
        after.text,
        after.log_probability,
        after.sentinel,
    )
    assert np.array_equal(before.attention_Thw, after.attention_Thw)
    assert before.attention_Thw.shape == (len(before.tokens), 4, 4)
    assert loaded.facts.licence == "none"


def test_half_precision_halves_the_file(small, tmp_path):
    small.save(tmp_path / "whole")
    small.save(tmp_path / "half", half=True)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")}
    assert size["half"] < 0.7 * size["whole"]
    assert patchword.load(tmp_path / "half", device="cpu").caption(skimage.data.coffee()).text is not None


def test_pictures_of_every_kind_and_in_any_batch(small):
    pictures = [skimage.data.astronaut(), skimage.data.camera(), skimage.data.coffee()]
    together = small.caption(pictures, batch=2)
    assert [caption.text for caption in together] == [small.caption(picture).text for picture in pictures]


def test_folder_is_not_overwritten(small, tmp_path):
    small.save(tmp_path / "model")
    with pytest.raises(WriteError, match="exists and is not empty"):
        small.save(tmp_path / "model")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "no model at"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"format": 99}'),
            "has format 99, this version of Patchword reads 1",
        ),
        (lambda folder: (folder / "vocab.json").unlink(), "vocab.json is missing"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
            "is not the file that was written",
        ),
    ],
)
def test_damaged_folders(small, tmp_path, damage, message):
    small.save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        patchword.load(tmp_path / "model", device="cpu")


def forget_digests(folder):
    """As a folder of an early format, which has none."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "files": {}}), encoding="utf-8")


def test_weights_that_were_altered_are_noticed(small, tmp_path):
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file that was written"):
        patchword.load(tmp_path / "model", device="cpu")


def test_weights_are_strict_both_ways(small, tmp_path):
    small.save(tmp_path / "model")
    forget_digests(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    missing = dict(tensors)
    del missing["captioner.embedding.weight"]
    save_file(missing, path)
    with pytest.raises(ModelError, match="1 tensors missing.*captioner.embedding.weight.*0 too many"):
        patchword.load(tmp_path / "model", device="cpu")
    save_file({**tensors, "captioner.extra": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="0 tensors missing.*1 too many.*captioner.extra"):
        patchword.load(tmp_path / "model", device="cpu")


def test_tower_from_a_folder_is_saved_by_value(tmp_path):
    CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL_CLIP)).save_pretrained(tmp_path / "clip")
    model = made(ClipTowerConfig(source=str(tmp_path / "clip")))
    model.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["tower"]["source"] is None and config["tower_sha256"] is None
    assert (
        patchword.load(tmp_path / "model", device="cpu").caption(skimage.data.coffee()).text
        == model.caption(skimage.data.coffee()).text
    )


@pytest.mark.parametrize("adapters", [None, AdaptersConfig(blocks=1, bottleneck=3)])
def test_public_frozen_tower_is_saved_by_reference(tmp_path, monkeypatch, adapters):
    """The folder holds no tower weights but those of adapters; another tower under the same id is refused."""
    CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL_CLIP)).save_pretrained(
        tmp_path / "someone" / "clip"
    )
    monkeypatch.chdir(tmp_path)
    model = made(ClipTowerConfig(source="someone/clip", revision="abc", adapters=adapters))
    for adapter in model.model.tower.adapters:
        torch.nn.init.normal_(adapter.up.weight)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # the id is no folder here, as a hub id is none
    model.save(tmp_path / "model")
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    kept = {name.split(".")[1] for name in names if name.startswith("tower.")}
    assert any(name.startswith("captioner.") for name in names) and kept == (
        {"adapters"} if adapters else set()
    )
    monkeypatch.chdir(tmp_path)
    loaded, coffee = patchword.load(tmp_path / "model", device="cpu"), skimage.data.coffee()
    assert loaded.caption(coffee).log_probability == model.caption(coffee).log_probability
    CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL_CLIP)).save_pretrained(
        tmp_path / "someone" / "clip"
    )
    with pytest.raises(ModelError, match="was trained with a tower of SHA-256"):
        patchword.load(tmp_path / "model", device="cpu")


def test_no_space_is_one_error_and_nothing_is_left(small, tmp_path, small_disk):
    with small_disk(2000), pytest.raises(WriteError, match="model cannot be written"):
        small.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    small.save(tmp_path / "model")
    assert patchword.load(tmp_path / "model", device="cpu").facts.name == "test"


def test_a_read_only_folder_is_one_error(small, read_only):
    with pytest.raises(WriteError, match="writing is not allowed there"):
        small.save(read_only / "model")


SIZES_BEYOND_REASON = [
    ("tower", "blocks", [10**30]),
    ("tower", "blocks", [500]),
    ("tower", "stem", 60000),
    ("tower", "widths", [60000]),
    ("captioner", "width", 10**30),
    ("captioner", "width", 60000),
    ("captioner", "word_width", -1),
    ("preprocessing", "size", 10**9),
    ("decoding", "beams", 100_000),
    ("decoding", "length_penalty", float("nan")),
]


@pytest.mark.parametrize("section, key, value", SIZES_BEYOND_REASON)
def test_sizes_are_compared_before_memory_is_taken(small, tmp_path, section, key, value):
    """No process is given the memory of 60,000 channels: it would be seen in the largest size that this one
    ever had.
    """
    resource = pytest.importorskip("resource", reason="sizes of processes are of POSIX")
    small.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[section][key] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PatchwordError, match=r"config\.json|model\.safetensors") as refused:
        patchword.load(tmp_path / "model", device="cpu")
    assert str(tmp_path) in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_vocabulary_and_config_must_be_of_one_model(small, tmp_path):
    small.save(tmp_path / "model")
    (tmp_path / "model" / "vocab.json").write_text('{"splitter": "english", "minimum_count": 1, "words": 3}')
    forget_digests(tmp_path / "model")
    with pytest.raises(ModelError, match=r"vocab\.json holds no vocabulary.*copy the folder anew"):
        patchword.load(tmp_path / "model", device="cpu")


def test_files_that_others_may_read_are_written(small, tmp_path):
    (tmp_path / "ordinary").touch()
    small.save(tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "ordinary").stat().st_mode}


@pytest.mark.parametrize("name", ["auto_map", "_attn_implementation", "quantization_config"])
def test_an_architecture_cannot_name_code(name):
    with pytest.raises(ValueError, match="is no size of a network"):
        ClipTowerConfig(architecture={**SMALL_CLIP, name: "someone/else"})
