"""A caption and what made it: the picture under each word's attention map, as in the figures of Xu 2015
(Show, Attend and Tell), the visual sentinel per word (Lu 2017), the concept of each patch, the memory
prototypes that spoke, and the other hypotheses.

An attention grid is laid over the whole picture: the copy that the caption carries, or another one that is
given, as the model saw it.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from patchword.errors import DataError, counted
from patchword.files import text_digest
from patchword.html.page import Html, clean, escape, join, look, name, note, page, percent, section, table
from patchword.html.pictures import opened, picture_uri, shade_uri, smoothed
from patchword.reports.curves import save_figure
from patchword.tasks.caption.result import Caption

LEAD = "Bright patches are those that the model looked at when it wrote the word"
LEAD_OF_MAPS = (
    "Bright patches are, under a word that names a thing, those where the classes that are like the word "
    "are active in the "
    "model's eyes (class activation), and under other words those that the model looked at (attention)"
)
_CONCEPTS_SHOWN = 8
_CONTEXTS_SHOWN = 3


def caption_strip(caption: Caption, picture: Image.Image | None = None) -> Html:
    """One caption as an HTML fragment that carries its own style (a notebook shows it as it stands), over the
    picture that it carries where none is given. Without any picture the attention maps stand alone.

    Raises DataError where the caption's sequences do not have one entry per token.
    """
    css, body = _explained(caption, picture)
    return Html(f'<div class="patchword strip"><style>\n{look()}{css}</style>\n{body}\n</div>')


def caption_strips(captions: Sequence[Caption], count: int) -> Html:
    """The captions one under another as one HTML fragment, and how many of `count` are not among them."""
    parts = [_explained(caption, None) for caption in captions]
    css = "".join(dict.fromkeys(css for css, _ in parts))
    bodies = [Html(f'<div class="strip">\n{body}\n</div>') for _, body in parts]
    if count > len(captions):
        bodies.append(
            note(
                f"{counted(count - len(captions), 'more caption is', 'more captions are')} not "
                "shown: show some by their place in the list"
            )
        )
    return Html(f'<div class="patchword"><style>\n{look()}{css}</style>\n{join(bodies)}\n</div>')


def caption_page(
    items: Iterable[tuple[object, Image.Image | None, Caption]], title: str = "Captions, word by word"
) -> str:
    """A whole HTML document of (name, picture, caption) triples, self-contained and readable without
    scripts."""
    styles, sections, mapped = [], [], False
    for label, picture, caption in items:
        css, body = _explained(caption, picture)
        styles.append(css)
        sections.append(section(name(label), body))
        mapped = mapped or bool(caption.map_names)
    lead = f"{LEAD_OF_MAPS if mapped else LEAD}; each map is scaled to its own brightest patch."
    return page(
        title,
        sections or [note("No picture was captioned.")],
        lead=lead if sections else "",
        css="".join(dict.fromkeys(styles)),
    )


def caption_figure(picture: Image.Image | None, caption: Caption, path: Path | str, columns: int = 5) -> None:
    """Write the picture under each word's map as a figure for print; the suffix of `path` says which kind
    (.png, .svg, .pdf). Without `picture` it is the one that the caption carries. Under a word stand, where
    the model has them, the share that was seen, the concept of its patches, and the nearest context of its
    memory prototype.

    Raises DataError where the caption's sequences do not have one entry per token, and where there is no
    picture.
    """
    _check(caption)
    if picture is None:
        if caption.picture is None:
            raise DataError(
                f"the caption {caption.text!r} carries no picture: give one, or caption with trace=True"
            )
        picture = opened(caption.picture)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps_Thw = () if caption.shown_Thw is None else caption.shown_Thw
    shots = [(None, ""), *zip(maps_Thw, caption.tokens, strict=len(maps_Thw) > 0)]
    columns = min(columns, len(shots))
    rows = math.ceil(len(shots) / columns)
    small = picture.convert("RGB")
    small.thumbnail((480, 480), Image.Resampling.LANCZOS)
    lines = max((len(_beneath(caption, t)) for t in range(len(maps_Thw))), default=0)
    height = 1.9 * small.height / small.width
    size = (2.0 * columns, (height + 0.35 + 0.14 * lines) * rows + 0.45)
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(clean(caption.text), fontsize=12, parse_math=False, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for t, (axis, (weights_hw, word)) in enumerate(zip(axes, shots, strict=False), -1):
        axis.imshow(small)
        if weights_hw is not None:
            shade_HW4 = np.zeros((*(large := smoothed(weights_hw)).shape, 4), dtype=np.float32)
            shade_HW4[..., 3] = 0.8 * (1 - large)
            axis.imshow(
                shade_HW4,
                extent=(-0.5, small.width - 0.5, small.height - 0.5, -0.5),
                interpolation="bilinear",
            )
            seen = "" if caption.sentinel is None else f"  {percent(1 - caption.sentinel[t])} seen"
            axis.set_title(spelled(word) + seen, fontsize=9, parse_math=False)
            says = "\n".join(_beneath(caption, t))
            axis.text(
                0.5,
                -0.03,
                says,
                transform=axis.transAxes,
                ha="center",
                va="top",
                fontsize=6,
                parse_math=False,
            )
    save_figure(figure, path)


def _beneath(caption: Caption, t: int) -> list[str]:
    """What stands under a word of a figure: its concepts and the prototype that spoke loudest."""
    lines = [f"by {map_of(caption, t)}"] if caption.map_names else []
    lines += [clean(f"{concept} {percent(share)}") for concept, share in concepts_behind(caption, t)[:2]]
    for index, share in _spoke(caption, t)[:1]:
        near = textwrap.shorten(clean(next(iter(caption.contexts.get(index, ())), "")), 34, placeholder=" …")
        lines += [f"prototype {index} {percent(share)}", *([near] if near else [])]
    return lines


def map_of(caption: Caption, t: int) -> str:
    """Name of the map that is shown under word t, as a reader knows it; of a copied word how surely it was
    copied, and then the map shows from where."""
    share = caption.copied[t] if caption.copied else None
    return caption.shown_name(t).replace("_", " ") if share is None else f"copying ({percent(share)})"


def _check(caption: Caption) -> None:
    said = f"the caption {caption.text!r}"
    if caption.attention_Thw is not None and np.ndim(caption.attention_Thw) != 3:
        raise DataError(
            f"attention_Thw of {said} has {np.ndim(caption.attention_Thw)} axes; expected (tokens, rows, "
            "columns)"
        )
    words = len(caption.tokens)
    for what in ("attention_Thw", "maps_Thw", "sentinel", "copied", "prototypes"):
        sequence = getattr(caption, what)
        if sequence is not None and len(sequence) != words:
            raise DataError(
                f"{said} has {counted(words, 'token')} but {len(sequence)} entries in {what}; "
                "expected one per token"
            )


def _explained(caption: Caption, picture: Image.Image | None) -> tuple[str, Html]:
    """The style rules (they hold the picture, once) and the body of one caption."""
    _check(caption)
    if picture is None and caption.picture is not None:
        picture = opened(caption.picture)
    key, css = picture_style(picture)
    end = "" if caption.complete else ", cut off at the length limit"
    doubt = "unsure, " if caption.unsure else ""
    facts = (
        f"{doubt}{counted(len(caption.tokens), 'word')}, log-probability {caption.log_probability:.3f}{end}"
    )
    parts = [
        Html(f'<p class="said">{escape(caption.text or "(an empty caption)")}</p>'),
        note(facts),
        word_figures(caption, key),
    ]
    if caption.concepts:
        parts.append(concept_figures(caption, key))
    if caption.alternatives:
        parts.append(_hypotheses(caption))
    return css, join(parts)


def picture_style(picture: Image.Image | None) -> tuple[str, str]:
    """A class name and its style rule, which holds the picture, once; both empty without a picture."""
    if picture is None:
        return "", ""
    uri = picture_uri(picture)
    key = "p" + text_digest(uri)[:12]
    return (
        key,
        f".patchword .{key} "
        f"{{ background-image: url({uri}); aspect-ratio: {picture.width} / {picture.height}; }}\n",
    )


def word_figures(caption: Caption, key: str) -> Html:
    """The picture alone, then once per word under its map; without a picture the maps over plain colour.

    Below each word what it was made of beside the patches: concepts and memory prototypes, where the model
    has them.
    """
    figures = []
    if key:
        shot = f'<div class="shot {key}" role="img" aria-label="{escape(caption.text)}"></div>'
        figures.append(
            f'<figure class="word">{shot}<figcaption><span>the picture</span></figcaption></figure>'
        )
    has_maps = caption.shown_Thw is not None
    for t in range(len(caption.tokens) if has_maps or caption.prototypes else 0):
        shot = "" if caption.shown_Thw is None else _shot(caption, caption.shown_Thw[t], t, key)
        by = f"<span>by {escape(map_of(caption, t))}</span>" if caption.map_names else ""
        behind = f"{by}{_seen(caption, t)}{_concepts_of(caption, t)}{_prototypes_of(caption, t)}"
        figures.append(
            f'<figure class="word">{shot}<figcaption>{escape(spelled(caption.tokens[t]))}{behind}</figcaption></figure>'  # noqa: E501
        )
    kind = "words told" if caption.concepts or caption.prototypes else "words"
    shown = [Html(f'<div class="{kind}">\n' + "\n".join(figures) + "\n</div>")] if figures else []
    return join(
        shown
        if has_maps
        else [*shown, note("There are no attention maps: the model keeps none, or none were asked for.")]
    )


def _shot(caption: Caption, map_hw: np.ndarray, t: int, key: str) -> str:
    weights_hw = np.nan_to_num(map_hw)
    rows, columns = weights_hw.shape
    row, column = divmod(int(weights_hw.argmax()), columns)
    says = f"strongest patch: row {row + 1} of {rows}, column {column + 1} of {columns}, {percent(float(weights_hw.max()))}"  # noqa: E501
    ratio = "" if key else f' style="aspect-ratio: {columns} / {rows}"'
    alt = f"patches behind the word {spelled(caption.tokens[t])}; {says}"
    return (
        f'<div class="shot {key}"{ratio} title="{says}"><img alt="{escape(alt)}" '
        f'src="{shade_uri(weights_hw)}"></div>'
    )


def spelled(token: str) -> str:
    """A token as a reader knows it: subword vocabularies mark the end of a word, which is no part of it."""
    return clean(token.removesuffix("</w>"))


def _share_line(head: object, share: float) -> str:
    bar = f'<span class="share" aria-hidden="true"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></span>'  # noqa: E501
    return f'<span class="line">{escape(head)} <em>{percent(share)}</em></span>{bar}'


def _concepts_of(caption: Caption, t: int) -> str:
    """The concepts of the patches that a word looked at."""
    behind = concepts_behind(caption, t)
    lines = "".join(f"<li>{_share_line(concept, share)}</li>" for concept, share in behind)
    return (
        f'<span class="what">concepts of its patches</span><ul class="behind">{lines}</ul>' if behind else ""
    )


def _prototypes_of(caption: Caption, t: int) -> str:
    """The memory prototypes that a word listened to, with the training contexts nearest to each."""
    lines = []
    for index, share in _spoke(caption, t):
        nearest = ", ".join(
            f"<q>{escape(context)}</q>" for context in caption.contexts.get(index, ())[:_CONTEXTS_SHOWN]
        )
        lines.append(
            f"<li>{_share_line(f'no. {index}', share)}{f'<small>near {nearest}</small>' if nearest else ''}</li>"  # noqa: E501
        )
    return (
        f'<span class="what">memory prototypes</span><ul class="behind">{"".join(lines)}</ul>'
        if lines
        else ""
    )


def _spoke(caption: Caption, t: int) -> list[tuple[int, float]]:
    """Prototypes without a part in the word (dead ones fill up the list of a small memory) are left out."""
    return [
        (index, share) for index, share in (caption.prototypes[t] if caption.prototypes else ()) if share > 0
    ]


def _seen(caption: Caption, t: int) -> str:
    if caption.sentinel is None:
        return ""
    seen = min(max(1 - caption.sentinel[t], 0.0), 1.0)
    title = f"{percent(1 - seen)} of this word came from language alone (the visual sentinel)"
    bar = f'<span class="share" aria-hidden="true"><i style="width:{100 * seen:.1f}%"></i></span>'
    return f'<span title="{title}">{percent(seen)} seen</span>{bar}'


def concept_figures(caption: Caption, key: str) -> Html:
    """The most frequent codebook words, coloured over the picture."""
    concepts = caption.concepts or ()
    counts = Counter(concepts).most_common()
    shown, hidden = counts[:_CONCEPTS_SHOWN], counts[_CONCEPTS_SHOWN:]
    colour = {concept: f"s{i}" for i, (concept, _) in enumerate(shown)}
    rows, columns = _grid(caption)
    cells = "".join(
        f'<span class="{colour.get(concept, "")}" title="{escape(concept)}"></span>' for concept in concepts
    )
    style = f"grid-template: repeat({rows}, 1fr) / repeat({columns}, 1fr)" + (
        "" if key else f"; aspect-ratio: {columns} / {rows}"
    )
    mosaic = f'<div class="concepts {key}" style="{style}" role="img" aria-label="the concept of each patch, by colour">{cells}</div>'  # noqa: E501
    patches = len(concepts)
    legend = [
        f'<li class="{colour[c]}"><span class="swatch"></span> {escape(c)}, {n} of {patches} patches</li>'
        for c, n in shown
    ]
    if hidden:
        legend.append(
            f"<li>{counted(len(hidden), 'more concept')} on {sum(n for _, n in hidden)} patches, "
            "not coloured</li>"
        )
    listed = f'<ul class="legend column">{"".join(legend)}</ul>'
    return Html(f'<h3>Concepts of the patches</h3>\n<div class="beside">{mosaic}{listed}</div>')


def _grid(caption: Caption) -> tuple[int, int]:
    patches = len(caption.concepts or ())
    if caption.shown_Thw is not None and _maps_fit_concepts(caption):
        _, rows, columns = caption.shown_Thw.shape
        return rows, columns
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else (1, patches)


def _maps_fit_concepts(caption: Caption) -> bool:
    return caption.shown_Thw is not None and math.prod(caption.shown_Thw.shape[1:]) == len(
        caption.concepts or ()
    )


def concepts_behind(caption: Caption, t: int) -> list[tuple[str, float]]:
    """Up to three concepts of the patches that word t looked at, with their shares of its attention, the
    largest first; none where the model has no concepts, or where its attention is over another grid.
    """
    if not caption.concepts or caption.shown_Thw is None or not _maps_fit_concepts(caption):
        return []
    shares: dict[str, float] = {}
    for concept, share in zip(caption.concepts, np.nan_to_num(caption.shown_Thw[t]).ravel(), strict=True):
        shares[concept] = shares.get(concept, 0.0) + float(share)
    return [(concept, share) for concept, share in Counter(shares).most_common(3) if share > 0]


def shares(hypotheses: Sequence[Caption]) -> list[float]:
    """The probability of each among these alone: the sum over all sentences is out of reach.

    One without a probability has no share.
    """
    known = [one.log_probability for one in hypotheses if math.isfinite(one.log_probability)]
    weights = [
        math.exp(one.log_probability - max(known)) if math.isfinite(one.log_probability) else 0.0
        for one in hypotheses
    ]
    return [weight / max(sum(weights), 1e-12) for weight in weights]


def _hypotheses(caption: Caption) -> Html:
    everyone = [caption, *caption.alternatives]
    of_each = shares(everyone)
    rows = [
        (str(i + 1), one.text, f"{one.log_probability:.3f}", percent(share), "yes" if one.complete else "no")
        for i, (one, share) in enumerate(zip(everyone, of_each, strict=True))
    ]
    head = ["rank", "caption", "log-probability", "share among these", "ended by itself"]
    said = (
        "The share of each among these captions: which one the search prefers, not how likely it is to "
        "be true."
    )
    if of_each != sorted(of_each, reverse=True):
        said += " Their order also counts what people say of pictures like this one."
    return Html(f"<h3>The hypotheses of the search</h3>\n{note(said)}\n{table(head, rows)}")
