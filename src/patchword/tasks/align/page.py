"""Explanations of patch-word alignment (LAPS, Fu 2024), as a page or as a single figure.

They show which patches of a picture were kept, merged and dropped for a text, and which patches match each
word. The grid is laid over the whole picture, so where the model crops, pass the crop.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from patchword.files import text_digest
from patchword.html.page import Html, clean, escape, join, note, page, percent, section, table, tiles
from patchword.html.pictures import blocks_uri, picture_uri
from patchword.reports.curves import save_figure
from patchword.tasks.align.result import AlignedPair


def pair_page(pair: AlignedPair, picture: Image.Image, name: object) -> str:
    """Builds a self-contained HTML document without scripts."""
    uri = picture_uri(picture)
    key = "p" + text_digest(uri)[:12]
    css = f".patchword .{key} {{ background-image: url({uri}); "
    css += f"aspect-ratio: {picture.width} / {picture.height}; }}\n"
    css += ".patchword .shot .best { position: absolute; border: 3px solid var(--heat); "
    css += "outline: 1px solid #000; border-radius: 3px; }\n"
    kept = int(pair.kept_hw.sum())
    facts = [
        ("similarity, at most 2", f"{pair.similarity:.3f}"),
        ("cosine of the two towers", f"{pair.cosine:.3f}"),
    ]
    facts.append(("patches kept", f"{kept} of {pair.kept_hw.size}"))
    return page(
        pair.text,
        [
            tiles(facts),
            section("What is left of the picture for this text", _maps(pair, key)),
            section("Word by word", _words(pair, key), _table(pair)),
        ],
        lead=f"{clean(name)}: every map shows the weights of the patches; its brightest patch weighs most.",
        css=css,
    )


def pair_figure(pair: AlignedPair, picture: Image.Image, path: Path | str, columns: int = 6) -> None:
    """Writes the same as a figure for print; the suffix of `path` sets the format (.png, .svg, .pdf)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shots: list[tuple[str, np.ndarray | None, tuple[int, int] | None]] = [
        ("the picture", None, None),
        *((title, weights_hw, None) for title, weights_hw, _ in _panels(pair)),
    ]
    shots += [(f"{one.word}  {one.cosine:.2f}\n{one.found}", one.gifts_hw, one.patch) for one in pair.words]
    rows = math.ceil(len(shots) / columns)
    small = picture.convert("RGB")
    small.thumbnail((480, 480), Image.Resampling.LANCZOS)
    height = 1.9 * small.height / small.width
    figure = Figure(
        figsize=(2.0 * columns, (height + 0.5) * rows + 0.5), dpi=150, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{clean(pair.text)}   similarity {pair.similarity:.3f}", fontsize=12, parse_math=False, wrap=True
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (title, weights_hw, patch) in zip(axes, shots, strict=False):
        axis.imshow(small)
        axis.set_title(clean(title), fontsize=8, parse_math=False)
        if weights_hw is None:
            continue
        shade_hw4 = np.zeros((*weights_hw.shape, 4), dtype=np.float32)
        shade_hw4[..., 3] = 0.8 * (1 - weights_hw / max(float(weights_hw.max()), 1e-12))
        axis.imshow(
            shade_hw4, extent=(-0.5, small.width - 0.5, small.height - 0.5, -0.5), interpolation="nearest"
        )
        if patch is not None:
            across, down = small.width / weights_hw.shape[1], small.height / weights_hw.shape[0]
            corner = (patch[1] * across - 0.5, patch[0] * down - 0.5)
            axis.add_patch(Rectangle(corner, across, down, fill=False, edgecolor="#ffc44d", linewidth=2))
    save_figure(figure, path)


def _panels(pair: AlignedPair) -> list[tuple[str, np.ndarray, str]]:
    """Returns title, map and explanation for kept, merged and dropped patches."""
    kept = int(pair.kept_hw.sum())
    panels = [
        (
            "kept",
            pair.kept_hw.astype(np.float32),
            f"{kept} of {pair.kept_hw.size} patches, those of highest score",
        )
    ]
    if pair.merged:
        tokens = len(pair.merged)
        merged_hw = pair.weights_Phw[list(pair.merged)].sum(0)
        panels.append(
            (
                "merged",
                merged_hw,
                f"how much each kept patch gives to the {tokens} tokens made of them, summed",
            )
        )
    if pair.fused is not None:
        panels.append(
            (
                "dropped",
                pair.weights_Phw[pair.fused],
                "how much each other patch gives to the one token that they leave",
            )
        )
    return panels


def _maps(pair: AlignedPair, key: str) -> Html:
    bare = f'<div class="shot {key}" role="img" aria-label="the picture"></div>'
    figures = [f'<figure class="word">{bare}<figcaption>the picture</figcaption></figure>']
    scores_hw = pair.scores_hw - pair.scores_hw.min()
    panels = [
        ("scores", scores_hw, "by which patches are chosen: near to the picture's mean and to the text's"),
        *_panels(pair),
    ]
    for title, weights_hw, says in panels:
        figures.append(
            _shot(key, weights_hw, f"{title}: {says}", Html(f"{escape(title)}<span>{escape(says)}</span>"))
        )
    tokens = [
        _shot(key, pair.weights_Phw[row], f"patches of token {n + 1}", escape(f"token {n + 1}"))
        for n, row in enumerate(pair.merged)
    ]
    parts = [Html(f'<div class="words">\n{"".join(figures)}\n</div>')]
    if tokens and len(tokens) <= 64 and len(tokens) < pair.kept_hw.size // 2:
        parts += [
            Html("<h3>The tokens that the kept patches are merged into</h3>"),
            Html(f'<div class="words">{"".join(tokens)}</div>'),
        ]
    return join(parts)


def _words(pair: AlignedPair, key: str) -> Html:
    figures = []
    for one in pair.words:
        caption = Html(f"{escape(one.word)}<span>{escape(one.found)}, cosine {one.cosine:.2f}</span>")
        figures.append(_shot(key, one.gifts_hw, f"patches behind {one.word}", caption, one.patch))
    told = note(
        "The map under each word shows what the patches contribute to its cosine with its nearest token; "
        "the frame marks the largest contribution."
    )
    return join([told, Html(f'<div class="words">{"".join(figures)}</div>')])


def _shot(
    key: str, weights_hw: np.ndarray, alt: str, caption: Html, best: tuple[int, int] | None = None
) -> str:
    rows, columns = weights_hw.shape
    frame = ""
    if best is not None:
        place = f"left:{100 * best[1] / columns:.2f}%;top:{100 * best[0] / rows:.2f}%"
        frame = f'<i class="best" style="{place};width:{100 / columns:.2f}%;height:{100 / rows:.2f}%"></i>'
    image = f'<img alt="{escape(alt)}" src="{blocks_uri(weights_hw)}">'
    shot = f'<div class="shot {key}">{image}{frame}</div>'
    return f'<figure class="word">{shot}<figcaption>{caption}</figcaption></figure>'


def _table(pair: AlignedPair) -> Html:
    rows = []
    for one in pair.words:
        gives = percent(float(one.gifts_hw[one.patch]))
        fate = "kept" if pair.kept_hw[one.patch] else "dropped"
        rows.append(
            (
                one.word,
                one.found,
                f"{one.cosine:.3f}",
                f"row {one.patch[0] + 1}, column {one.patch[1] + 1}",
                gives,
                fate,
            )
        )
    return table(
        ["word", "nearest token", "cosine", "best patch", "its share of the cosine", "that patch was"], rows
    )
