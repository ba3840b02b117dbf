"""Painted pictures as a page: a sheet with seeds and scores, and where each word lies on each picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from patchword.html.page import Html, escape, join, note, page, section, tiles
from patchword.html.pictures import shade_uri
from patchword.tasks.paint.marks import SOURCE_TYPE
from patchword.tasks.paint.paint import PaintedPicture
from patchword.tasks.paint.sheet import CELL, png_of

_CSS = """
.painted { display: flex; flex-wrap: wrap; gap: 1rem; }
.painted figure { margin: 0; }
.painted img { display: block; image-rendering: pixelated; }
.word { position: relative; display: inline-block; }
.word img + img { position: absolute; inset: 0; image-rendering: auto; }
"""


def painted_page(
    prompt: str,
    painted: Sequence[PaintedPicture],
    facts: Sequence[tuple[str, object]],
    remarks: Sequence[str],
    words: Sequence[str] = (),
    maps: np.ndarray | None = None,
) -> str:
    """The page of a command.

    `maps` (n, words, h, w) are the attention of each picture on each word, in the order of `painted`.
    """
    figures = [_figure(one) for one in painted]
    parts = [
        tiles(facts),
        *(note(remark) for remark in remarks),
        section("Pictures", Html(f'<div class="painted">{join(figures)}</div>')),
    ]
    if maps is not None:
        parts.append(
            section(
                "Which word lies where",
                note(
                    "Bright: cells that attended to the word more than elsewhere, over all steps and layers."
                ),
                *(_words(one, words, maps[place]) for place, one in enumerate(painted)),
            )
        )
    parts.append(note(f"These pictures are generated. Every file says so in its metadata ({SOURCE_TYPE})."))
    return page(f"Painted: {prompt}", parts, css=_CSS)


def _figure(one: PaintedPicture) -> Html:
    score = "" if one.score is None else f", score {one.score:.3f}"
    return Html(
        f"<figure>{_image(one.pixels_HWC, f'seed {one.seed}')}"
        f"<figcaption>seed {one.seed}{score}<br>{escape(one.path.name)}</figcaption></figure>"
    )


def _words(one: PaintedPicture, words: Sequence[str], maps_Lhw: np.ndarray) -> Html:
    figures = []
    for word, map_hw in zip(words, maps_Lhw, strict=True):
        lifted = map_hw - map_hw.min()
        shade = f'<img src="{shade_uri(lifted)}" {_sides(one.pixels_HWC)} alt="">'
        figures.append(
            f'<figure><span class="word">{_image(one.pixels_HWC, f"where {word!r} lies")}{shade}</span>'
            f"<figcaption>{escape(word)}, {map_hw.mean():.0%} of the words' share</figcaption></figure>"
        )
    return Html(f'<p>seed {one.seed}</p><div class="painted">{join(map(Html, figures))}</div>')


def _image(pixels_HWC: np.ndarray, alt: str) -> Html:
    import base64

    uri = "data:image/png;base64," + base64.b64encode(png_of(Image.fromarray(pixels_HWC))).decode("ascii")
    return Html(f'<img src="{uri}" {_sides(pixels_HWC)} alt="{escape(alt)}">')


def _sides(pixels_HWC: np.ndarray) -> str:
    height, width = pixels_HWC.shape[:2]
    factor = max(1, -(-CELL // max(height, width)))
    return f'width="{width * factor}" height="{height * factor}"'
