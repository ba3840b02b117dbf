"""The building blocks of all pages: the frame, sections, tables, tiles.

A page is a single file without scripts, fonts or pictures from elsewhere. Its content policy forbids all of
these, so that a hostile word or file name can do nothing even where escaping failed. The functions escape
their values; `Html` marks what is already HTML.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from importlib import resources

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


class Html(str):
    """A piece of HTML that is already escaped."""


class Best(float):
    """The best number of a table column; it is printed in bold."""


def escape(value: object) -> Html:
    """Returns any value as HTML text that is also safe in attributes.

    Characters that no page may hold become U+FFFD. `Html` passes unchanged.
    """
    return value if isinstance(value, Html) else Html(html.escape(clean(value)))


def clean(value: object) -> str:
    """Returns text that can be written to a file and drawn.

    Lone surrogates (from undecodable file names) and control characters become U+FFFD.
    """
    return _CONTROLS.sub("\ufffd", str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def join(parts: Iterable[object]) -> Html:
    """Joins parts, escaping those that are plain text."""
    return Html("".join(escape(part) for part in parts))


def look() -> Html:
    """Returns the style sheet of all pages."""
    return Html(resources.files("patchword.html").joinpath("look.css").read_text(encoding="utf-8"))


def page(title: object, parts: Iterable[Html], *, lead: object = "", css: str = "") -> str:
    """Builds a whole document. `css` holds further rules and must be built from our own values only."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{look()}{css}</style>\n</head>\n"
        f'<body class="patchword">\n<main>\n<h1>{escape(title)}</h1>\n'
        + (f'<p class="soft">{escape(lead)}</p>\n' if lead else "")
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: object, *parts: object) -> Html:
    """Builds a section with a title."""
    return Html(f"<section>\n<h2>{escape(title)}</h2>\n{join(parts)}\n</section>")


def note(text: object) -> Html:
    """Builds a remark in soft print."""
    return Html(f'<p class="soft">{escape(text)}</p>')


def warning(text: object) -> Html:
    """Builds a remark that stands out."""
    return Html(f'<p class="warning" role="note">{escape(text)}</p>')


def name(value: object) -> Html:
    """Builds a file name or another string from outside.

    It is isolated, so that right-to-left characters in it cannot reorder the text around it.
    """
    return Html(f'<span class="name">{escape(value)}</span>')


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Builds a table that scrolls sideways on a narrow screen. Numbers are right-aligned; None is a dash."""
    rows = [tuple(row) for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows)
        for i in range(len(head))
    ]

    def cell(value: object, i: int) -> str:
        shown = (
            "–"
            if value is None
            else number(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            else value
        )
        if isinstance(value, Best):
            shown = Html(f"<b>{shown}</b>")
        sentence = not numeric[i] and isinstance(value, str) and len(value) > 40
        kind = ' class="number"' if numeric[i] else ' class="sentence"' if sentence else ""
        return f"<td{kind}>{escape(shown)}</td>"

    kinds = [' class="number"' if right else "" for right in numeric]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(title)}</th>' for title, kind in zip(head, kinds, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(cell(value, i) for i, value in enumerate(row)) + "</tr>" for row in rows
    )
    return Html(
        '<div class="scroll" role="region" aria-label="table" tabindex="0"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def tiles(facts: Iterable[tuple[object, object]]) -> Html:
    """Builds large values, each with a small label under it, from (label, value) pairs."""
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in facts
    )
    return Html(f'<div class="tiles">{boxes}</div>')


def number(value: float) -> str:
    """Formats a number with four significant digits and grouped thousands."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


def percent(share: float) -> str:
    """Formats a share as a percentage, with a decimal where it is small.

    A share above zero is never shown as zero.
    """
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
