import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from patchword.data.pictures import Preprocessing, seen_part
from patchword.errors import DataError
from patchword.html.pictures import small_jpeg, smoothed
from patchword.tasks.caption.page import caption_figure, caption_page, caption_strip
from patchword.tasks.caption.result import Caption

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\x00b\udcff",
    "$\\frac{",
    "</style><b>",
)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def one_hot(cells, shape):
    maps_Thw = np.zeros((len(cells), *shape), np.float32)
    for t, cell in enumerate(cells):
        maps_Thw[t][cell] = 1
    return maps_Thw


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))


CELLS = [(0, 0), (2, 4), (1, 3)]
CAPTION = Caption(
    "a red dog",
    -4.5,
    ("a", "red", "dog"),
    attention_Thw=one_hot(CELLS, (3, 5)),
    sentinel=(0.9, 0.25, 0.0),
    concepts=("grass",) * 7 + ("dog",) * 5 + ("sky",) * 3,
    prototypes=(((3, 0.5), (1, 0.2)), ((3, 0.4), (9, 0.0)), ()),
    contexts={3: ("a dog in", "a brown dog")},
    alternatives=(
        Caption("a dog", -4.5, ("a", "dog")),
        Caption("a dog dog dog", -9.0, ("a", "dog"), complete=False),
    ),
)


def test_maps_land_on_their_cells(picture, parse):
    parsed = parse(caption_page([("dog.jpg", picture, CAPTION)]))
    assert len(parsed.images) == 3
    for uri, (row, column) in zip(parsed.images, CELLS, strict=True):
        alpha = np.asarray(decoded(uri).getchannel("A"))
        rows, columns = alpha.shape[0] // 3, alpha.shape[1] // 5
        cells = alpha.reshape(3, rows, 5, columns).mean((1, 3))
        assert np.unravel_index(cells.argmin(), cells.shape) == (row, column)
        assert alpha[row * rows + rows // 2, column * columns + columns // 2] < 20
        cells[row, column] = 255
        assert cells.min() > 100, "patches without attention are dark"


def test_the_page_says_all_that_the_caption_holds(picture, parse):
    text = " ".join(parse(caption_page([("dog.jpg", picture, CAPTION)])).text)
    for part in (
        "dog.jpg",
        "a red dog",
        "3 words, log-probability -4.500",
        "10 % seen",
        "75 % seen",
        "100 % seen",
    ):
        assert part in text
    assert "grass, 7 of 15 patches" in text
    words = text.split("memory prototypes")
    assert "no. 3 50 % near a dog in , a brown dog no. 1 20 %" in " ".join(words[1].split())
    assert "grass 100 %" in " ".join(words[0].split()) and "sky 100 %" in " ".join(words[1].split()), (
        "the concept of the cell it looked at"
    )
    assert len(words) == 3 and "no. 9" not in text, (
        "a word without memory has no list, a prototype without a part is not named"
    )
    assert re.search(r"a dog dog dog\s.*no", text, re.S) and text.count("50 %") >= 2, (
        "two equal hypotheses share"
    )
    strip = caption_strip(CAPTION)
    assert strip == CAPTION._repr_html_() and len(parse(strip).images) == 3
    assert strip.startswith('<div class="patchword strip"><style>')


def test_a_caption_shows_itself_over_the_picture_that_it_carries(picture, parse, tmp_path):
    carried = replace(CAPTION, picture=small_jpeg(picture))
    assert carried == CAPTION, "the picture is for showing, not for comparing"
    assert "url(data:image/jpeg" in carried._repr_html_() and "url(" not in CAPTION._repr_html_()
    assert len(parse(caption_page([("dog.jpg", None, carried)])).images) == 3
    caption_figure(None, carried, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "prototype 3 50 %" in drawn and "a dog in" in drawn and "grass 100 %" in drawn
    with pytest.raises(DataError, match="carries no picture: give one, or caption with trace=True"):
        caption_figure(None, CAPTION, tmp_path / "b.svg")


def test_subwords_are_spelled_without_their_marks(picture, parse):
    caption = Caption("a dog", -1.0, ("a</w>", "dog</w>"), attention_Thw=np.ones((2, 1, 1), np.float32))
    assert "</w>" not in " ".join(parse(caption_page([("x", picture, caption)])).text)


def test_the_picture_is_embedded_once_and_small():
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8))
    html = caption_page([("a", large, CAPTION), ("b", large, CAPTION)])
    uris = re.findall(r"url\((data:image/jpeg[^)]*)\)", html)
    assert len(uris) == 1 and decoded(uris[0]).size == (360, 270)
    clear = caption_page([("a", Image.new("RGBA", (8, 8), (255, 0, 0, 0)), CAPTION)])
    seen = decoded(re.search(r"url\((data:[^)]*)\)", clear).group(1))
    assert min(seen.getpixel((4, 4))) > 240, "what is transparent is white"


def test_hostile_words_and_names_stay_text(picture, parse):
    caption = Caption(
        " ".join(HOSTILE),
        -1.0,
        HOSTILE,
        attention_Thw=np.full((5, 2, 2), 0.25, np.float32),
        concepts=HOSTILE[:4],
        alternatives=(Caption(HOSTILE[0], -2, ()),),
    )
    html = caption_page([(HOSTILE[1], picture, caption)], title=HOSTILE[0])
    parsed = parse(html)
    assert {"script", "b"}.isdisjoint(parsed.tags)
    assert "<script>alert(1)</script>" in "".join(parsed.text) and "a\ufffdb\ufffd" in "".join(parsed.text)
    html.encode("utf-8")
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "attention", [None, np.zeros((1, 7, 7), np.float32), np.full((1, 1, 1), np.nan, np.float32)]
)
def test_captions_without_maps_or_with_empty_ones(attention, picture, parse):
    caption = Caption("dog", -1.0, ("dog",), attention_Thw=attention, complete=False)
    assert "cut off at the length limit" in caption_page([("x", picture, caption)])
    assert ("There are no attention maps" in caption_strip(caption)) == (attention is None)
    parse(caption_page([("x", picture, Caption("", -1.0, ()))]))
    assert "No picture was captioned" in caption_page([])


def test_an_even_map_is_evenly_bright():
    np.testing.assert_allclose(smoothed(np.full((7, 7), 1 / 49)), 1, atol=1e-6)
    peak = smoothed(np.array([[0, 0, 0], [0, 0.5, 0], [0, 0, 0]]), 9)
    assert peak.shape == (9, 9) and np.unravel_index(peak.argmax(), peak.shape) == (4, 4)


def test_a_cut_out_middle_is_what_is_shown():
    wide = Image.new("RGB", (100, 40))
    assert seen_part(wide, Preprocessing(size=224)).size == (100, 40)
    cut = Preprocessing(size=224, fit="short_side_center_crop")
    assert seen_part(wide, cut).size == (40, 40)
    wide.putpixel((30, 0), (255, 255, 255))
    assert seen_part(wide, cut).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sentinel": (0.1,)}, "3 tokens but 1 entries in sentinel"),
        ({"attention_Thw": np.zeros((2, 3, 3))}, "3 tokens but 2 entries in attention_Thw"),
        ({"attention_Thw": np.zeros((3, 9))}, r"has 2 axes; expected \(tokens, rows, columns\)"),
    ],
)
def test_sequences_of_another_length_are_refused(change, message, picture, tmp_path):
    caption = Caption("a red dog", -1.0, ("a", "red", "dog"), **change)
    with pytest.raises(DataError, match=message):
        caption_strip(caption)
    with pytest.raises(DataError, match=message):
        caption_figure(picture, caption, tmp_path / "x.png")


def test_figures_open_and_light_the_right_cell(tmp_path):
    white = Image.new("RGB", (100, 60), "white")
    caption = Caption(
        "$\\frac{ dog",
        -1.0,
        ("$\\frac{", "dog"),
        attention_Thw=one_hot([(0, 0), (2, 4)], (3, 5)),
        sentinel=(0.5, 0.2),
    )
    caption_figure(white, caption, tmp_path / "figure.png", columns=3)
    with Image.open(tmp_path / "figure.png") as opened:
        figure = np.asarray(opened.convert("L"))
    dark = np.argwhere(figure < 90)
    left, right = dark[:, 1].min(), dark[:, 1].max()
    assert figure.shape[1] == 900 and right > 600 > left > 290, "the first picture of three is not shaded"
    shaded = [slice(300, 600), slice(600, 900)]
    rows = np.flatnonzero((figure[:, 350:880] < 90).mean(1) > 0.3)
    top, bottom = rows.min(), rows.max()
    first, second = figure[top:bottom, shaded[0]], figure[top:bottom, shaded[1]]
    assert first[8:20, 15:30].mean() > 150 > first[-20:-8, -40:-20].mean()
    assert second[-12:-6, -25:-12].mean() > 150 > second[8:20, 15:30].mean()
    caption_figure(white, Caption("", -1.0, ()), tmp_path / "plain.svg")
    assert "<svg" in (tmp_path / "plain.svg").read_text()


def test_kind_9_a_share_among_captions_is_not_shown_as_certainty():
    from importlib import resources

    said = "which one the search prefers, not how likely it is to be true"
    served = resources.files("patchword.serve").joinpath("page.html").read_text(encoding="utf-8")
    assert said in served.split("Captions considered")[1].split("<ol")[0]
    assert said in caption_strip(CAPTION)


def test_captions_that_do_not_stand_by_their_shares_say_why():
    said = "Their order also counts what people say of pictures like this one."
    assert said not in caption_strip(CAPTION)
    assert said in caption_strip(replace(CAPTION, log_probability=-6.0))


def test_the_map_that_is_shown_is_named_under_each_word(picture, parse, tmp_path):
    shown = replace(
        CAPTION,
        maps_Thw=one_hot([(2, 2), (0, 1), (1, 0)], (3, 5)),
        map_names=("attention", "attention", "class_activation"),
    )
    parsed = parse(caption_page([("dog.jpg", picture, shown)]))
    text = " ".join(parsed.text)
    assert text.count("by attention") == 2 and text.count("by class activation") == 1
    assert "class activation" in text and "strongest patch" in caption_page([("dog.jpg", picture, shown)])
    assert "row 2 of 3, column 1 of 5" in caption_page([("dog.jpg", picture, shown)])
    assert "by attention" not in " ".join(parse(caption_page([("dog.jpg", picture, CAPTION)])).text)
    with_names, without = tmp_path / "with.png", tmp_path / "without.png"
    caption_figure(picture, shown, with_names)
    caption_figure(picture, replace(shown, map_names=()), without)
    with Image.open(with_names) as named, Image.open(without) as bare:
        assert named.height > bare.height, "a line more stands under each word"


def test_maps_must_have_one_entry_per_token(picture):
    wrong = replace(CAPTION, maps_Thw=one_hot([(0, 0)], (3, 5)), map_names=("attention",))
    with pytest.raises(DataError, match="maps_Thw"):
        caption_page([("dog.jpg", picture, wrong)])
