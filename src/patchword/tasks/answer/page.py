"""Pages with a question about a picture, its answers, and the attention of its words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from patchword.html.page import Html, escape, join, name, note, page, percent, section, table
from patchword.tasks.answer.result import Answers
from patchword.tasks.caption.page import concept_figures, picture_style, word_figures
from patchword.tasks.caption.result import Caption

ANSWER = "(the answer)"
"""Caption of the map of the token from which the answer is chosen."""


def answer_page(
    items: Iterable[tuple[object, Image.Image | None, Answers]],
    title: str = "Questions and answers",
    lead: object = "",
) -> str:
    """Builds a self-contained HTML document from (name, picture, question with its answers).

    It needs no scripts. `lead` comes before the rest, for example to say what the model cannot do.
    """
    styles, sections = [], []
    for label, picture, asked in items:
        key, css = picture_style(picture)
        styles.append(css)
        sections.append(section(name(label), _asked(asked, key)))
    parts = sections or [note("Nothing was asked.")]
    return page(title, parts, lead=lead, css="".join(dict.fromkeys(styles)))


def _asked(asked: Answers, key: str) -> Html:
    """Shows the best answer, the others, the maps and, with region alignment, the concepts."""
    best = asked.answers[0] if asked.answers else None
    parts = [
        note(asked.question),
        Html(f'<p class="said">{escape(best.text if best else "(no answer)")}</p>'),
        table(
            ["answer", "probability"],
            [(answer.text, percent(answer.probability)) for answer in asked.answers],
        ),
        Html(f"<h3>{'The picture' if asked.attention_Lhw is None else 'Where the question looked'}</h3>"),
        word_figures(_as_words(asked), key),
    ]
    if asked.attention_Lhw is not None:
        parts.append(
            note(
                "Bright patches are those that a word looked at most; each map is scaled to its own "
                "brightest patch."
            )
        )
    if asked.concepts:
        parts.append(concept_figures(_as_words(asked), key))
    return join(parts)


def _as_words(asked: Answers) -> Caption:
    """Presents a question as a caption with maps, which the figures of captions can draw.

    The map of the answer comes first.
    """
    if asked.attention_Lhw is None or asked.answer_attention_hw is None:
        return Caption(asked.question, 0.0, asked.tokens, concepts=asked.concepts)
    maps_Thw = np.concatenate([asked.answer_attention_hw[None], asked.attention_Lhw])
    return Caption(
        asked.question, 0.0, (ANSWER, *asked.tokens), attention_Thw=maps_Thw, concepts=asked.concepts
    )
