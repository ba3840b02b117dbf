"""Pages and figures that explain labels by the attention of the query prompts of prompt fusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from patchword.html.page import Html, clean, escape, join, note, page, percent, section, table
from patchword.html.pictures import picture_uri, shade_uri, smoothed
from patchword.reports.curves import save_figure
from patchword.reports.figures import blank_figures
from patchword.tasks.label.result import Labels, LayerAttention

_SHOWN = 8  # number of labels in the table


def gathered_page(
    items: Sequence[tuple[object, Image.Image, Labels]], title: str = "Labels, layer by layer"
) -> str:
    """Builds a document from (name, picture, labels).

    It shows probabilities and, for each fused layer, the attention of each query prompt. Pass the part of the
    picture that the model saw.
    """
    lead = (
        "Each query prompt of a fused layer collects from one side what is sent to the other. Bright patches "
        "and marked words are those that it attends to; each map and each row of words is scaled to its own "
        "maximum."
    )
    return page(
        title, [section(name, _explained(picture, labelled)) for name, picture, labelled in items], lead=lead
    )


def _explained(picture: Image.Image, labelled: Labels) -> Html:
    ranked = list(labelled.probabilities.items())[:_SHOWN]
    parts = [
        Html(f'<p class="said">{escape(ranked[0][0])}</p>'),
        table(["label", "probability"], [(n, percent(p)) for n, p in ranked]),
    ]
    if not labelled.layers:
        return join([*parts, note("This model has no query prompts: there is nothing that they gathered.")])
    uri = picture_uri(picture)
    for gathered in labelled.layers:
        parts.append(Html(f"<h3>Layer {gathered.layer}</h3>"))
        figures = [
            _shot(uri, picture, patches_hw, f"prompt {q + 1}")
            for q, patches_hw in enumerate(gathered.patches_Qhw)
        ]
        parts.append(Html('<div class="words">\n' + "\n".join(figures) + "\n</div>"))
        parts.append(_words(gathered, labelled.words))
    return join(parts)


def _shot(uri: str, picture: Image.Image, patches_hw: np.ndarray, label: str) -> str:
    says = f"{label}: {percent(float(patches_hw.sum()))} on patches"
    style = f"background-image: url({uri}); aspect-ratio: {picture.width} / {picture.height}"
    return (
        f'<figure class="word"><div class="shot" style="{style}">'
        f'<img alt="{escape(says)}" src="{shade_uri(patches_hw)}"></div>'
        f"<figcaption>{escape(label)}<span>{percent(float(patches_hw.sum()))} on "
        "patches</span></figcaption></figure>"
    )


def _words(gathered: LayerAttention, words: Sequence[str]) -> Html:
    rows = []
    for q, shares_L in enumerate(gathered.words_QL):
        scaled_L = shares_L / max(float(shares_L.max(initial=0.0)), 1e-12)
        marked = [
            f'<mark style="background: rgba(255,196,77,{scale:.2f}); color: inherit" '
            f'title="{percent(float(share))}">{escape(word)}</mark>'
            for word, share, scale in zip(words, shares_L, scaled_L, strict=True)
        ]
        rows.append((f"prompt {q + 1}", Html(" ".join(marked)), percent(float(shares_L.sum()))))
    return table(["", "words that it looked at", "on words"], rows)


def gathered_figure(picture: Image.Image, labelled: Labels, path: Path | str) -> None:
    """Writes one picture per fused layer as a figure for print.

    It shows the mean attention of the layer's query prompts, with the words below.
    """
    layers, small = labelled.layers, picture.convert("RGB")
    small.thumbnail((480, 480), Image.Resampling.LANCZOS)
    count = max(len(layers), 1)
    height = 1.0 + 0.14 * len(labelled.words) + 2.4 * small.height / small.width
    figure, axes = blank_figures(2.4 * count, height, count)
    best, share = next(iter(labelled.probabilities.items()))
    figure.suptitle(f"{clean(best)} {percent(share)}", fontsize=11, parse_math=False)
    for axis in axes:
        axis.axis("off")
        axis.imshow(small)
    for axis, gathered in zip(axes, layers, strict=False):
        shade = smoothed(gathered.patches_Qhw.mean(0))
        over_HW4 = np.zeros((*shade.shape, 4), dtype=np.float32)
        over_HW4[..., 3] = 0.8 * (1 - shade)
        axis.imshow(
            over_HW4, extent=(-0.5, small.width - 0.5, small.height - 0.5, -0.5), interpolation="bilinear"
        )
        axis.set_title(f"layer {gathered.layer}", fontsize=9)
        said = gathered.words_QL.mean(0)
        lines = [
            f"{clean(word)} {percent(float(part))}" for word, part in zip(labelled.words, said, strict=True)
        ]
        axis.text(
            0.5,
            -0.04,
            "\n".join(lines),
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=7,
            parse_math=False,
        )
    save_figure(figure, path, bbox_inches="tight")
