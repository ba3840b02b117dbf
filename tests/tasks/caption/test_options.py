"""Kinds 11 and 14: lengths, repetition and precision of a caption are asked for; what is cut says so; streams
are captioned as they come."""

import json

import numpy as np
import pytest
import skimage.data

import patchword
from patchword.tasks.caption.options import DecodingOptions

ASTRONAUT = skimage.data.astronaut()


@pytest.fixture(scope="module")
def model():
    """The shipped captioner, which here captions strange pictures too, whatever its eyes are sure of."""
    loaded = patchword.load("flickr8k", device="cpu")
    loaded.model.familiarity.limit.fill_(float("inf"))
    concepts = loaded.settings.concepts.model_copy(update={"mention": "never"})
    loaded.settings = loaded.settings.model_copy(update={"concepts": concepts})
    return loaded


def said(model, **options):
    return model.caption(ASTRONAUT, trace=False, options=DecodingOptions(**options))


def test_kind_14_a_caption_is_as_long_as_it_is_asked_to_be(model):
    own = said(model)
    short = said(model, max_length=4)
    assert own.complete and len(short.tokens) == 4 and not short.complete
    at_least = len(own.tokens) + 4
    assert len(said(model, min_length=at_least).tokens) >= at_least
    assert said(model, min_length=1) == own


def test_kind_14_no_words_occur_twice(model):
    for n in (1, 2):
        tokens = said(model, no_repeat=n, min_length=10).tokens
        grams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
        assert len(set(grams)) == len(grams)


def test_kind_14_a_length_penalty_never_makes_a_shorter_caption(model):
    lengths = [len(said(model, beams=5, length_penalty=penalty).tokens) for penalty in (0, 1, 3)]
    assert lengths == sorted(lengths)


def test_kind_14_a_shorter_format_gives_nearly_the_same(model):
    for dtype in ("bfloat16", "float16"):
        found = said(model, dtype=dtype)
        assert found.log_probability == pytest.approx(said(model).log_probability, rel=0.1)
        assert (
            model.caption(ASTRONAUT, options=DecodingOptions(dtype=dtype)).attention_Thw.dtype == np.float32
        )
    assert said(model, dtype="float32") == said(model)


@pytest.mark.parametrize(
    "options",
    [{"beams": 0}, {"beams": 101}, {"beams": -2}, {"max_length": 1}, {"min_length": -1},
     {"length_penalty": -0.5}, {"no_repeat": -1}, {"dtype": "int8"}, {"min_length": 5, "max_length": 5}],
)  # fmt: skip
def test_kind_12_options_out_of_range_are_refused(options):
    with pytest.raises(patchword.ConfigError, match="expected|no caption fits"):
        DecodingOptions(**options)


def test_kind_12_what_the_model_has_no_positions_for_is_refused(model):
    most = model.settings.captioner.max_positions
    assert said(model, max_length=most).complete
    with pytest.raises(patchword.ConfigError, match=f"positions for {most} tokens: ask for {most} at most"):
        said(model, max_length=most + 1)
    with pytest.raises(patchword.ConfigError, match="give max_length as well"):
        said(model, min_length=model.settings.decoding.max_length)
    with pytest.raises(patchword.ConfigError, match="beams is 0"):
        model.caption(ASTRONAUT, beams=0)


def test_kind_14_a_stream_is_captioned_as_it_comes(model):
    asked = []

    def pictures():
        for number in range(5):
            asked.append(number)
            yield np.roll(ASTRONAUT, 40 * number, axis=1)

    stream = model.captions(pictures(), batch=2)
    assert asked == []
    first = next(stream)
    assert asked == [0, 1]
    together = model.caption(list(pictures()), trace=False, batch=2)
    assert [first, *stream] == list(together)


def test_kind_14_a_picture_of_a_stream_that_cannot_be_read_takes_no_other_along(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pictures = [ASTRONAUT, tmp_path / "broken.jpg", ASTRONAUT]
    lost = []
    found = list(model.captions(pictures, batch=3, unreadable=lambda picture, error: lost.append(picture)))
    assert len(found) == 2 and lost == [tmp_path / "broken.jpg"]
    with pytest.raises(patchword.PictureError, match="broken.jpg"):
        list(model.captions(pictures))


def test_kind_11_a_caption_that_is_cut_says_so(patchword, photos, tmp_path):
    status, out, err = patchword("caption", photos / "red.png", "--max-length", "3", "--json")
    assert status == 0 and json.loads(out)["complete"] is False
    assert err == "patchword: 1 caption was cut off at the longest length: --max-length makes it longer\n"
    (tmp_path / "mine.csv").write_text("image,caption,split\nred.png,a red square,test\n")
    call = ("predict", "flickr8k", "--data", tmp_path / "mine.csv", "--images", photos, "--out")
    status, out, err = patchword(*call, tmp_path / "cut.json", "--max-length", "3")
    assert status == 0 and "1 caption was cut off" in err
    assert len(json.loads((tmp_path / "cut.json").read_text())[0]["caption"].split()) == 3
    status, out, err = patchword(*call, tmp_path / "whole.json")
    assert status == 0 and "cut off" not in err


def test_kind_11_options_that_a_model_cannot_use_are_not_passed_over(patchword, photos, tmp_path):
    (tmp_path / "asked.csv").write_text("image,question,answer,split\nred.png,what?,red,test\n")
    status, _, err = patchword(
        "predict", "easy-vqa", "--data", tmp_path / "asked.csv", "--images", photos,
        "--out", tmp_path / "a.json", "--beam", "3",
    )  # fmt: skip
    assert status == 2 and "gives answers, and --beam" in err


def test_looking_at_a_few_pictures_at_a_time_makes_no_difference(model, monkeypatch):
    """Captions, concepts and maps of six pictures that the tower saw in one pass, and in passes of two."""
    named = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
    pictures = [ASTRONAUT, *named, ASTRONAUT[:, ::-1].copy(), named[0][:, ::-1].copy()]
    found = {}
    for count in (6, 2):
        monkeypatch.setattr("patchword.tasks.caption.model._LOOKED_AT_ONCE", count)
        found[count] = model.caption(pictures)
    for whole, parts in zip(found[6], found[2], strict=True):
        assert (whole.text, whole.unsure) == (parts.text, parts.unsure)
        assert [one.word for one in whole.named] == [one.word for one in parts.named]
        np.testing.assert_allclose(whole.attention_Thw, parts.attention_Thw, atol=1e-4)
