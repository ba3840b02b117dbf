"""A caption and what made it: the picture under each word's attention map, as in the figures of Xu 2015 (Show, Attend and Tell), the
visual sentinel per word (Lu 2017), the concept of each patch, the memory prototypes that spoke, and the other hypotheses.

An attention grid is laid over the whole picture it is given: give the picture as the model saw it where the model crops.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from patchword.errors import DataError
from patchword.explain.curves import undated
from patchword.explain.page import Html, clean, escape, join, look, name, note, page, percent, section, table
from patchword.explain.pictures import picture_uri, shade_uri, smoothed
from patchword.results import Caption

_CONCEPTS_SHOWN = 8


def caption_strip(caption: Caption, picture: Image.Image | None = None) -> Html:
    """One caption as an HTML fragment that carries its own style (a notebook shows it as it stands). Without a picture the attention
    maps stand alone.

    Raises DataError where the caption's sequences do not have one entry per token."""
    css, body = _explained(caption, picture)
    return Html(f'<div class="patchword strip"><style>\n{look()}{css}</style>\n{body}\n</div>')


def caption_page(items: Iterable[tuple[object, Image.Image | None, Caption]], title: str = "Captions, word by word") -> str:
    """A whole HTML document of (name, picture, caption) triples, self-contained and readable without scripts."""
    styles, sections = [], []
    for label, picture, caption in items:
        css, body = _explained(caption, picture)
        styles.append(css)
        sections.append(section(name(label), body))
    lead = "Bright patches are those that the model looked at when it wrote the word; each map is scaled to its own brightest patch."
    return page(title, sections or [note("No picture was captioned.")], lead=lead if sections else "", css="".join(dict.fromkeys(styles)))


def caption_figure(picture: Image.Image, caption: Caption, path: Path | str, columns: int = 5) -> None:
    """Write the picture under each word's map as a figure for print; the suffix of `path` says which kind (.png, .svg, .pdf).

    Raises DataError where the caption's sequences do not have one entry per token."""
    _check(caption)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps_Thw = () if caption.attention_Thw is None else caption.attention_Thw
    shots = [(None, ""), *zip(maps_Thw, caption.tokens, strict=len(maps_Thw) > 0)]
    columns = min(columns, len(shots))
    rows = math.ceil(len(shots) / columns)
    small = picture.convert("RGB")
    small.thumbnail((480, 480), Image.Resampling.LANCZOS)
    height = 1.9 * small.height / small.width
    figure = Figure(figsize=(2.0 * columns, (height + 0.35) * rows + 0.45), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(clean(caption.text), fontsize=12, parse_math=False, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for i, (axis, (weights_hw, word)) in enumerate(zip(axes, shots, strict=False)):
        axis.imshow(small)
        if weights_hw is not None:
            shade_HW4 = np.zeros((*(large := smoothed(weights_hw)).shape, 4), dtype=np.float32)
            shade_HW4[..., 3] = 0.8 * (1 - large)
            axis.imshow(shade_HW4, extent=(-0.5, small.width - 0.5, small.height - 0.5, -0.5), interpolation="bilinear")
            seen = "" if caption.sentinel is None else f"  {percent(1 - caption.sentinel[i - 1])} seen"
            axis.set_title(clean(word) + seen, fontsize=9, parse_math=False)
    figure.savefig(path, metadata=undated(path))


def _check(caption: Caption) -> None:
    said = f"the caption {caption.text!r}"
    if caption.attention_Thw is not None and np.ndim(caption.attention_Thw) != 3:
        raise DataError(f"attention_Thw of {said} has {np.ndim(caption.attention_Thw)} axes; expected (tokens, rows, columns)")
    words = len(caption.tokens)
    for what in ("attention_Thw", "sentinel", "prototypes"):
        sequence = getattr(caption, what)
        if sequence is not None and len(sequence) != words:
            raise DataError(f"{said} has {words} tokens but {len(sequence)} entries in {what}; expected one per token")


def _explained(caption: Caption, picture: Image.Image | None) -> tuple[str, Html]:
    """The style rules (they hold the picture, once) and the body of one caption."""
    _check(caption)
    key, css = "", ""
    if picture is not None:
        uri = picture_uri(picture)
        key = "p" + hashlib.sha256(uri.encode()).hexdigest()[:12]
        css = f".patchword .{key} {{ background-image: url({uri}); aspect-ratio: {picture.width} / {picture.height}; }}\n"
    end = "" if caption.complete else ", cut off at the length limit"
    facts = f"{len(caption.tokens)} words, log-probability {caption.log_probability:.3f}{end}"
    parts = [Html(f'<p class="said">{escape(caption.text or "(an empty caption)")}</p>'), note(facts), _word_figures(caption, key)]
    if caption.concepts:
        parts.append(_concepts(caption, key))
    parts.append(_word_table(caption))
    if caption.alternatives:
        parts.append(_hypotheses(caption))
    return css, join(parts)


def _word_figures(caption: Caption, key: str) -> Html:
    """The picture alone, then once per word under its map; without a picture the maps over plain colour."""
    figures = []
    if key:
        shot = f'<div class="shot {key}" role="img" aria-label="{escape(caption.text)}"></div>'
        figures.append(f'<figure class="word">{shot}<figcaption><span>the picture</span></figcaption></figure>')
    maps_Thw = () if caption.attention_Thw is None else np.nan_to_num(caption.attention_Thw)
    for t, weights_hw in enumerate(maps_Thw):
        rows, columns = weights_hw.shape
        row, column = divmod(int(weights_hw.argmax()), columns)
        says = f"strongest patch: row {row + 1} of {rows}, column {column + 1} of {columns}, {percent(float(weights_hw.max()))}"
        ratio = "" if key else f' style="aspect-ratio: {columns} / {rows}"'
        alt = f"patches behind the word {clean(caption.tokens[t])}; {says}"
        figures.append(
            f'<figure class="word"><div class="shot {key}"{ratio} title="{says}">'
            f'<img alt="{escape(alt)}" src="{shade_uri(weights_hw)}"></div>'
            f"<figcaption>{escape(caption.tokens[t])}{_seen(caption, t)}</figcaption></figure>"
        )
    shown = [Html('<div class="words">\n' + "\n".join(figures) + "\n</div>")] if figures else []
    return join(shown if len(maps_Thw) else [*shown, note("There are no attention maps: the model keeps none, or none were asked for.")])


def _seen(caption: Caption, t: int) -> str:
    if caption.sentinel is None:
        return ""
    seen = min(max(1 - caption.sentinel[t], 0.0), 1.0)
    title = f"{percent(1 - seen)} of this word came from language alone (the visual sentinel)"
    bar = f'<span class="share" aria-hidden="true"><i style="width:{100 * seen:.1f}%"></i></span>'
    return f'<span title="{title}">{percent(seen)} seen</span>{bar}'


def _concepts(caption: Caption, key: str) -> Html:
    """The most frequent codebook words, coloured over the picture."""
    counts = Counter(caption.concepts).most_common()
    shown, hidden = counts[:_CONCEPTS_SHOWN], counts[_CONCEPTS_SHOWN:]
    colour = {concept: f"s{i}" for i, (concept, _) in enumerate(shown)}
    rows, columns = _grid(caption)
    cells = "".join(f'<span class="{colour.get(concept, "")}" title="{escape(concept)}"></span>' for concept in caption.concepts)
    style = f"grid-template: repeat({rows}, 1fr) / repeat({columns}, 1fr)" + ("" if key else f"; aspect-ratio: {columns} / {rows}")
    mosaic = f'<div class="concepts {key}" style="{style}" role="img" aria-label="the concept of each patch, by colour">{cells}</div>'
    patches = len(caption.concepts)
    legend = [f'<li class="{colour[c]}"><span class="swatch"></span> {escape(c)}, {n} of {patches} patches</li>' for c, n in shown]
    if hidden:
        legend.append(f"<li>{len(hidden)} more concepts on {sum(n for _, n in hidden)} patches, not coloured</li>")
    listed = f'<ul class="legend column">{"".join(legend)}</ul>'
    return Html(f'<h3>Concepts of the patches</h3>\n<div class="beside">{mosaic}{listed}</div>')


def _grid(caption: Caption) -> tuple[int, int]:
    if _maps_fit_concepts(caption):
        return caption.attention_Thw.shape[1:]
    side = math.isqrt(len(caption.concepts))
    return (side, side) if side * side == len(caption.concepts) else (1, len(caption.concepts))


def _maps_fit_concepts(caption: Caption) -> bool:
    return caption.attention_Thw is not None and math.prod(caption.attention_Thw.shape[1:]) == len(caption.concepts or ())


def _word_table(caption: Caption) -> Html:
    """Per word the concepts of the patches it looked at and the memory prototypes it listened to, where the model has them."""
    columns: dict[str, list[str]] = {}
    if caption.concepts and _maps_fit_concepts(caption):
        columns["concepts of its patches"] = [_looked(caption, t) for t in range(len(caption.tokens))]
    if caption.prototypes:
        columns["memory prototypes"] = [", ".join(f"no. {i} {percent(share)}" for i, share in pairs) for pairs in caption.prototypes]
    if not columns:
        return Html()
    return Html("<h3>Word by word</h3>\n" + table(["word", *columns], zip(caption.tokens, *columns.values(), strict=True)))


def _looked(caption: Caption, t: int) -> str:
    shares: Counter[str] = Counter()
    for concept, share in zip(caption.concepts, np.nan_to_num(caption.attention_Thw[t]).ravel(), strict=True):
        shares[concept] += float(share)
    return ", ".join(f"{concept} {percent(share)}" for concept, share in shares.most_common(3) if share > 0)


def shares(hypotheses: Sequence[Caption]) -> list[float]:
    """The probability of each among these alone: the sum over all sentences is out of reach. One without a probability has no share."""
    known = [one.log_probability for one in hypotheses if math.isfinite(one.log_probability)]
    weights = [math.exp(one.log_probability - max(known)) if math.isfinite(one.log_probability) else 0.0 for one in hypotheses]
    return [weight / max(sum(weights), 1e-12) for weight in weights]


def _hypotheses(caption: Caption) -> Html:
    everyone = [caption, *caption.alternatives]
    rows = [
        (str(i + 1), one.text, f"{one.log_probability:.3f}", percent(share), "yes" if one.complete else "no")
        for i, (one, share) in enumerate(zip(everyone, shares(everyone), strict=True))
    ]
    head = ["", "caption", "log-probability", "share among these", "ended by itself"]
    return Html(f"<h3>The hypotheses of the search</h3>\n{table(head, rows)}")
