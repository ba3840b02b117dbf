"""Captions that must say words, and pictures that no training picture is like, through a whole model folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.checkpoints.facts import ModelFacts
from patchword.composed import CaptionModel, build_tower, reader_preprocessing
from patchword.errors import DataError
from patchword.layers.familiarity import mean_patch
from patchword.models.captioners.show_attend_tell import ShowAttendTellConfig
from patchword.tasks.caption.load import load
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.options import ConceptSettings, DecodingOptions, DecodingSettings, DoubtSettings
from patchword.text.imagenet import common_words
from patchword.text.words import Vocabulary
from patchword.towers.settings import EfficientNetLiteConfig

VOCABULARY = Vocabulary.build(["a dog runs on the beach", "a cat sits on a red mat"], minimum_count=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An ImageNet tower and a captioner, both with random weights, and concepts as `patchword concepts`
    writes them.
    """
    torch.manual_seed(0)
    tower = EfficientNetLiteConfig(kind="efficientnet-lite0", weights="none", grid="last_block", size=64)
    captioner = ShowAttendTellConfig(word_width=8, width=12, attention_width=6)
    model = CaptionModel.over(build_tower(tower), captioner, VOCABULARY.size, None, familiar=True)
    settings = ModelSettings(
        tower=tower,
        captioner=captioner,
        preprocessing=reader_preprocessing(model.tower.preprocessing),
        decoding=DecodingSettings(beams=2, max_length=9),
        vocabulary_size=VOCABULARY.size,
        concepts=ConceptSettings(slope=1.0, intercept=0.0, hosts={"zebra": "dog"}, mention="never"),
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    CaptioningModel(model, settings, VOCABULARY, ModelFacts(name="tiny"), torch.device("cpu")).save(path)
    return path


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (80, 70, 3), dtype=np.uint8)


def with_concepts(model, **changes):
    model.settings = model.settings.model_copy(
        update={"concepts": model.settings.concepts.model_copy(update=changes)}
    )
    return model


def see_only(model, word):
    """The classifier is sure of one class, whatever it sees."""
    with torch.no_grad():
        model.model.tower.classifier.weight.zero_()
        model.model.tower.classifier.bias.zero_()
        model.model.tower.classifier.bias[common_words()[word][0]] = 20.0
    return model


def strange_to(model):
    """Every picture is at a distance of one from the training pictures, and the limit lies below that."""
    with torch.no_grad():
        model.model.familiarity.whiten_CC.copy_(torch.eye(len(model.model.familiarity.mean_C)))
        model.model.familiarity.mean_C.add_(1.0)
        model.model.familiarity.limit.fill_(1e-3)
    return model


def test_every_caption_says_the_words_that_are_asked_for(folder, picture):
    captions = load(folder, "cpu").caption(
        [picture, picture[::-1]],
        options=DecodingOptions(
            mention=(
                "cat",
                "beach",
            )
        ),
    )
    for caption in captions:
        assert "cat" in caption.tokens and "beach" in caption.tokens
        assert caption.attention_Thw.shape[0] == len(caption.tokens)
        assert "cat" not in caption.alternatives[0].tokens or "beach" not in caption.alternatives[0].tokens


def test_a_word_beyond_the_vocabulary_is_said_in_its_hosts_place(folder, picture):
    caption = load(folder, "cpu").caption(picture, options=DecodingOptions(mention=("zebra",)))
    assert "zebra" in caption.tokens and "zebra" in caption.text


def test_a_word_that_cannot_be_said_is_an_error(folder, picture):
    with pytest.raises(DataError, match="never learnt"):
        load(folder, "cpu").caption(picture, options=DecodingOptions(mention=("xylophone",)))


@pytest.mark.parametrize(("mention", "is_said"), [("confident", True), ("never", False)])
def test_what_the_eyes_are_sure_of_is_said_where_the_model_is_set_so(folder, picture, mention, is_said):
    model = with_concepts(see_only(load(folder, "cpu"), "zebra"), mention=mention)
    caption = model.caption(picture)
    assert caption.unsure is False and caption.named[0].word == "zebra"
    assert ("zebra" in caption.tokens) == is_said


@pytest.mark.parametrize(("confident", "untaught", "is_said"), [(0.9, 0.1, True), (0.1, 0.9, False)])
def test_words_that_no_caption_taught_have_a_limit_of_their_own(
    folder, picture, confident, untaught, is_said
):
    model = see_only(load(folder, "cpu"), "zebra")
    with torch.no_grad():
        model.model.tower.classifier.bias[common_words()["zebra"][0]] = 7.0  # about even against the others
    changes = {"mention": "confident", "confident": confident, "untaught": untaught}
    caption = with_concepts(model, **changes).caption(picture)
    assert caption.named[0].word == "zebra" and 0.1 < caption.named[0].probability < 0.9
    assert ("zebra" in caption.tokens) == is_said


def test_a_strange_picture_gets_a_guess_and_no_invention(folder, picture):
    model = strange_to(see_only(load(folder, "cpu"), "zebra"))
    caption = model.caption(picture)
    assert caption.unsure is True and caption.text == "perhaps a zebra" and caption.attention_Thw is None
    assert caption.alternatives[0].attention_Thw is not None


@pytest.mark.parametrize(("distance_over_limit", "is_said"), [(1.2, True), (0.8, False)])
def test_beyond_the_limit_a_caption_says_what_is_likely_and_is_no_template(
    folder, picture, distance_over_limit, is_said
):
    doubt = DoubtSettings(bias=5.0, distance=0, log_probability=0, unsaid=0, limit=0.1, far=2.0, likely=0.2)
    model = strange_to(see_only(load(folder, "cpu"), "zebra"))
    with_concepts(model, mention="confident", confident=1, doubt=doubt)
    features = model.look(model.settings.preprocessing.apply(Image.fromarray(picture))[None]).features
    distance = model.model.familiarity.distance(mean_patch(features))[0]
    model.model.familiarity.limit.copy_(distance / distance_over_limit)
    with torch.no_grad():
        model.model.tower.classifier.bias[common_words()["zebra"][0]] = 6.9  # about a half
    caption = model.caption(picture)
    assert caption.unsure is False and ("zebra" in caption.tokens) == is_said
    assert "perhaps" not in caption.text


def test_a_strange_picture_is_captioned_where_words_are_asked_for(folder, picture):
    model = load(folder, "cpu")
    strange_to(model)
    assert "cat" in model.caption(picture, options=DecodingOptions(mention=("cat",))).tokens


def test_the_command_says_unsure_and_lists_concepts(folder, picture, tmp_path, patchword):
    Image.fromarray(picture).save(tmp_path / "photo.png")
    model = see_only(load(folder, "cpu"), "zebra")
    strange_to(model)
    model.save(tmp_path / "strange")
    status, out, _ = patchword(
        "caption", tmp_path / "photo.png", "--model", tmp_path / "strange", "--device", "cpu"
    )
    assert status == 0 and out.strip().endswith("unsure: perhaps a zebra")
    _, out, _ = patchword("caption", tmp_path / "photo.png", "--model", tmp_path / "strange", "--json")
    row = json.loads(out)
    assert row["unsure"] is True and row["concepts"][0]["word"] == "zebra"
    status, out, _ = patchword("caption", tmp_path / "photo.png", "--model", folder, "--mention", "cat")
    assert status == 0 and "cat" in out
