"""Two towers as ONNX files: the vectors of the model, without torch, and in an index of the model."""

import numpy as np
import pytest
import torch

from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Preprocessing
from patchword.errors import DataError
from patchword.models.pairs.two_towers import TwoTowersConfig
from patchword.tasks.retrieve.exported import ExportedTowers
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers
from patchword.tasks.retrieve.query import load_embedder
from patchword.text.words import Vocabulary
from patchword.towers.settings import ConvolutionalConfig, SentenceEncoderConfig

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
TEXTS = ("a red dog", "two blue cats on a big red mat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with random weights."""
    vocabulary = Vocabulary(("a", "red", "dog", "two", "blue", "cats", "on", "big", "mat"), "english", 1)
    sizes = {"vocab_size": vocabulary.size, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 12}
    settings = TwoTowerSettings(
        vision=ConvolutionalConfig(stem=8, widths=(8, 16), blocks=(1, 1), size=32),
        text=SentenceEncoderConfig(weights="none", architecture=sizes),
        two_towers=TwoTowersConfig(width=24),
        preprocessing=Preprocessing(size=32),
        vocabulary_size=vocabulary.size,
    )
    torch.manual_seed(0)
    towers = build_two_towers(settings)
    model = TwoTowerModel(towers, settings, vocabulary, ModelFacts(), torch.device("cpu"))
    out = tmp_path_factory.mktemp("export") / "model"
    model.save(out)
    return out


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (20 + n, 40, 3), dtype=np.uint8) for n in range(5)]


def test_exported_towers_give_the_vectors_of_the_model_for_any_batch(folder, pictures, patchword, tmp_path):
    status, out, err = patchword("export", folder, "--out", tmp_path / "onnx")
    assert (
        status == 0 and "lowest cosine with the model's vectors: 1.000000 for a photograph, 1.000000" in out
    ), err
    model, exported = load_two_towers(folder, "cpu"), load_embedder(tmp_path / "onnx")
    assert isinstance(exported, ExportedTowers) and exported.identity == model.identity
    for some in (pictures, pictures[:1]):
        np.testing.assert_allclose(exported.embed_images(some), model.embed_images(some), atol=1e-5)
    for texts in (TEXTS, TEXTS[:1], [" ".join(["red dog"] * 30)]):
        np.testing.assert_allclose(exported.embed_texts(texts), model.embed_texts(texts), atol=1e-5)
    assert exported.remarks("a red zebra") == model.remarks("a red zebra")
    with pytest.raises(DataError, match="has no word that the model knows"):
        exported.embed_texts(["zebra"])


def test_weights_of_eight_bits_stay_near_and_are_bytes(folder, pictures, patchword, tmp_path):
    import onnx

    status, out, err = patchword("export", folder, "--to", "int8", "--out", tmp_path / "int8")
    assert status == 0 and "lowest cosine with the model's vectors: 0.99" in out, err
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == [
        "exported.json", "pictures.onnx", "texts.onnx", "vocab.json",
    ]  # fmt: skip
    model, exported = load_two_towers(folder, "cpu"), load_embedder(tmp_path / "int8")
    assert (exported.embed_images(pictures) * model.embed_images(pictures)).sum(1).min() > 0.98
    assert (exported.embed_texts(TEXTS) * model.embed_texts(TEXTS)).sum(1).min() > 0.98
    for name in ("pictures.onnx", "texts.onnx"):
        held = onnx.load(tmp_path / "int8" / name).graph.initializer
        assert any(one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1 for one in held)


def test_a_full_disk_is_said_before_the_quantisation_cuts_a_file_short(
    folder, tmp_path, patchword, monkeypatch
):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**10))
    status, _, err = patchword("export", folder, "--to", "int8", "--out", tmp_path / "int8")
    assert status == 2 and "int8 cannot be written, the disk is full: free some space" in err
    assert "KiB are needed and 1 KiB are free" in err and list(tmp_path.iterdir()) == []
