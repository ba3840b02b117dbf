"""Captions with copied words through a whole model folder: what is said, how it is explained, what is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchword.checkpoints.facts import ModelFacts
from patchword.composed import CaptionModel, build_tower, reader_preprocessing
from patchword.errors import ConfigError
from patchword.layers.codebook import Codebook
from patchword.models.captioners.caption_transformer import CaptionTransformerConfig, CopyingConfig
from patchword.tasks.caption.copying import copied_ids, set_words, things, with_copied_words, word_vectors
from patchword.tasks.caption.load import load
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.options import DecodingSettings
from patchword.text.words import Vocabulary
from patchword.towers.settings import EfficientNetLiteConfig

TAUGHT = Vocabulary.build(["a dog runs on the beach", "a cat sits on a red mat"], minimum_count=1)
SPACE = 8


def random_vectors(texts):
    return F.normalize(torch.randn(len(texts), SPACE, generator=torch.Generator().manual_seed(1)), dim=-1)


@pytest.fixture(scope="module")
def book():
    words = ["dog", "zebra", "sports car", "running", "joy"]
    return Codebook(words, random_vectors(words), "all-minilm-l6-v2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, book):
    """A tower and a captioner with random weights whose gate is open: it copies all that it says."""
    torch.manual_seed(0)
    tower = EfficientNetLiteConfig(
        kind="efficientnet-lite0", weights="none", grid="last_block", size=64, aligned="class_names",
        names_width=SPACE,
    )  # fmt: skip
    captioner = CaptionTransformerConfig(
        width=16, heads=2, hidden=16, encoder_layers=1, decoder_layers=1, max_positions=10,
        copying=CopyingConfig(words=2, width=4),
    )  # fmt: skip
    vocabulary = with_copied_words(TAUGHT, book)
    model = CaptionModel.over(build_tower(tower), captioner, vocabulary.size, book)
    model.tower.set_names(torch.randn(1000, SPACE))
    copying = model.captioner.copying
    taught_V = torch.arange(vocabulary.size) <= len(TAUGHT.words)
    copying.set_words(word_vectors(vocabulary, random_vectors), copied_ids(vocabulary, book), taught_V)
    torch.nn.init.constant_(copying.sentinel.bias, -30.0)
    settings = ModelSettings(
        tower=tower,
        captioner=captioner,
        preprocessing=reader_preprocessing(model.tower.preprocessing),
        decoding=DecodingSettings(beams=2, max_length=6),
        vocabulary_size=vocabulary.size,
        codebook=book.describe(),
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    CaptioningModel(model, settings, vocabulary, ModelFacts(name="tiny"), torch.device("cpu")).save(path)
    return path


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (80, 70, 3), dtype=np.uint8)


def test_things_come_behind_the_words_that_captions_taught(book):
    vocabulary = with_copied_words(TAUGHT, book)
    assert things(book) == ["dog", "zebra"]  # of ImageNet's classes, in one word
    assert vocabulary.words == (*TAUGHT.words, "dogs", "zebra", "zebras")
    ids_WF = copied_ids(vocabulary, book)
    assert vocabulary.tokens(ids_WF[1].tolist()) == ["zebra", "zebras"]
    assert (ids_WF[[2, 3, 4]] == -1).all()


def test_a_codebook_without_classes_is_copied_whole():
    assert things(Codebook(["joy", "two words", "calm"], torch.randn(3, SPACE), "x")) == ["joy", "calm"]


def test_copied_words_stay_in_the_folder_and_are_explained(folder, picture):
    model = load(folder, "cpu")
    caption = model.caption(picture)
    assert caption.tokens and set(caption.tokens) <= {"dog", "dogs", "zebra", "zebras"}
    assert len(caption.copied) == len(caption.tokens) and all(0 < share <= 1 for share in caption.copied)
    assert caption.map_names == ("copied",) * len(caption.tokens)
    np.testing.assert_allclose(caption.maps_Thw.sum(axis=(1, 2)), 1, rtol=1e-4)
    assert f"by copying ({caption.copied[0] * 100:.0f} %)" in caption._repr_html_().replace("\u202f", " ")
    again = model.caption(picture, trace=False)
    assert again.text == caption.text and again.copied is None


def test_a_stream_copies_too(folder, picture):
    stream, words = load(folder, "cpu").stream(picture, trace=True), []
    while True:
        try:
            words.append(next(stream))
        except StopIteration as end:
            caption = end.value
            break
    assert tuple(words) == caption.tokens and all(share is not None for share in caption.copied)


def test_an_export_copies_as_the_model_does(folder, picture, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from patchword.tasks.caption.export import export_captioner

    model, exported = export_captioner(str(folder), tmp_path / "exported", "onnx")
    assert exported.caption(picture).text == model.caption(picture, trace=False).text


def test_words_that_were_not_copied_are_explained_as_ever(folder, picture):
    model = load(folder, "cpu")
    torch.nn.init.constant_(model.model.captioner.copying.sentinel.bias, 30.0)
    caption = model.caption(picture)
    assert set(caption.copied) == {None} and not caption.map_names
    assert set(caption.tokens) <= set(TAUGHT.words)


def test_the_gate_is_told_which_words_captions_taught(folder, book, monkeypatch):
    class Space:
        name = "all-minilm-l6-v2"
        embed = staticmethod(random_vectors)

    monkeypatch.setattr("patchword.tasks.caption.copying.SentenceSpace", Space)
    model = load(folder, "cpu")
    copying, vocabulary = model.model.captioner.copying, model.vocabulary
    copying.taught_V.zero_()
    set_words(copying, vocabulary, len(TAUGHT.words), book)
    taught = {word for number, word in enumerate(vocabulary.words, start=1) if copying.taught_V[number]}
    assert taught == set(TAUGHT.words)
    assert copying.taught_V[list(vocabulary.special)].all()
    torch.testing.assert_close(copying.vectors_VE.norm(dim=1), torch.ones(vocabulary.size))


def test_pieces_of_words_cannot_be_copied(book):
    with pytest.raises(ConfigError, match="copying points at whole words"):
        with_copied_words(replace(TAUGHT, splitter="characters"), book)


def test_a_codebook_of_another_space_is_refused(folder, book):
    model = load(folder, "cpu")
    other = Codebook(book.words, book.embeddings_WE, "clip")
    with pytest.raises(ConfigError, match="needs a codebook in the space of all-minilm-l6-v2"):
        set_words(model.model.captioner.copying, model.vocabulary, 3, other)
