"""What `patchword explain-check` measured: a table for the terminal, JSON, and a page with examples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from patchword.data.pictures import Preprocessing, open_picture, seen_part
from patchword.errors import counted
from patchword.html.page import Best, Html, escape, join, name, note, page, percent, section, table, tiles
from patchword.html.pictures import blocks_uri, picture_uri
from patchword.tasks.caption.explanations import (
    READ,
    SAID,
    Explanations,
    NamedObject,
    Subject,
    Summary,
)

KINDS = ("pointing", "mass", "deletion", "insertion")
BETTER_LOW = ("deletion",)
_EXPLAINED = (
    "Pointing: how often the strongest cell lies on the object. Mass: the share of the map on it. Deletion "
    "and insertion: the word's mean probability while the strongest cells are taken away (small is better), "
    "or given back (large is better). Means over words, 95 % intervals over pictures."
)
_BY_SOURCE = (
    "Words of references were written by people and read by the model; only those of generated captions are "
    "its own. Pointing, and the mean difference to the map that always points at the middle."
)


def explanations_text(found: Explanations) -> str:
    """The table for a terminal, each value with its interval, and what was left out."""
    lines = [_counted(found), ""]
    lines.append(f"{'map':<22}" + "".join(f"{kind:>24}" for kind in KINDS))
    for method, row in found.summaries().items():
        lines.append(f"{method:<22}" + "".join(f"{_with_interval(row.get(kind)):>24}" for kind in KINDS))
    for source in (SAID, READ):
        rows = found.summaries(source)
        if any(rows.values()):
            shares = ", ".join(
                f"{method} {100 * row['pointing'].value:.1f}" for method, row in rows.items() if row
            )
            lines += ["", f"pointing on words of {source} captions: {shares}"]
    best = best_method(found)
    gains = [(words, gain) for words, gain in _gains(found, best) if gain is not None]
    if gains:
        said = "; ".join(f"{words} {_points(gain)}" for words, gain in gains)
        lines += ["", f"best by pointing: {best}; points over the centre: {said}"]
    return "\n".join([*lines, *_left_out(found)])


def _gains(found: Explanations, method: str) -> list[tuple[str, Summary | None]]:
    """By how much a method points better than the centre: on all words, and apart by their source, for words
    of references are read and not said, and what holds for them need not hold for a model's own words."""
    return [
        ("all words", found.gain(method, "centre")),
        ("words of generated captions", found.gain(method, "centre", source=SAID)),
        ("words of references", found.gain(method, "centre", source=READ)),
    ]


def best_method(found: Explanations) -> str:
    """The method with the highest pointing accuracy over all words, baselines left out."""
    rows = found.summaries()
    return max(found.own_methods, key=lambda method: rows[method]["pointing"].value)


def explanations_json(found: Explanations) -> dict[str, Any]:
    """The same numbers in full precision, over all words and by their source."""

    def shown(source: str | None) -> dict[str, Any]:
        return {
            method: {kind: {"value": one.value, "interval": list(one.interval)} for kind, one in row.items()}
            for method, row in found.summaries(source).items()
        }

    def over_centre(source: str | None) -> dict[str, Any]:
        gains = {method: found.gain(method, "centre", source=source) for method in found.own_methods}
        return {
            method: {"value": gain.value, "interval": list(gain.interval)}
            for method, gain in gains.items()
            if gain is not None
        }

    return {
        "pictures": found.pictures,
        "words": {source: sum(word.source == source for word in found.words) for source in (SAID, READ)},
        "named_in_vain": dict(found.in_vain.most_common()),
        "unknown_words": dict(found.unknown.most_common()),
        "unreadable": list(found.unreadable),
        "all": shown(None),
        SAID: shown(SAID),
        READ: shown(READ),
        "pointing_over_centre": {"all": over_centre(None), SAID: over_centre(SAID), READ: over_centre(READ)},
        "best": best_method(found),
    }


def explanations_page(
    found: Explanations, subjects: Sequence[Subject], model: str, preprocessing: Preprocessing
) -> str:
    """A whole HTML document: the table, the categories, and the maps of the first words."""
    rows = found.summaries()
    best = {
        kind: (min if kind in BETTER_LOW else max)(row[kind].value for row in rows.values() if kind in row)
        for kind in KINDS
        if any(kind in row for row in rows.values())
    }
    body = []
    for method, row in rows.items():
        cells: list[object] = [method]
        for kind in KINDS:
            one = row.get(kind)
            shown = _with_interval(one)
            is_best = one is not None and one.value == best[kind]
            cells.append(Html(f"<b>{escape(shown)}</b>") if is_best else shown)
        body.append(cells)
    categories = _by_category(found)
    pictures = {one.name: one for one in subjects}
    css, examples = _examples([word for word in found.words if word.maps], pictures, preprocessing)
    parts = [
        tiles(
            [
                ("words that name an object", len(found.words)),
                ("pictures", found.pictures),
                ("best by pointing", best_method(found)),
            ]
        ),
        section("Maps against the places of objects", note(_EXPLAINED), table(["map", *KINDS], body)),
        section("Points over the centre, by where the word comes from", note(_BY_SOURCE), _by_source(found)),
        section("By category", table(["category", "words", *found.methods], categories)),
    ]
    if examples:
        parts.append(
            section("Examples", note("The first words; the strongest cell is the brightest."), *examples)
        )
    lines = _left_out(found)
    if lines:
        parts.append(section("Left out", *[note(line) for line in lines if line]))
    return page(f"Explanations of {model}", parts, lead=_counted(found), css=css)


def _by_source(found: Explanations) -> Html:
    """Pointing of every method and its gain over the centre, words of the two sources apart."""
    rows_of = {source: found.summaries(source) for source in (SAID, READ)}
    body = []
    for method in found.methods:
        cells: list[object] = [method]
        for source, rows in rows_of.items():
            gain = found.gain(method, "centre", source=source)
            cells.append(_with_interval(rows[method].get("pointing")))
            cells.append("–" if gain is None or method == "centre" else _points(gain))
        body.append(cells)
    heads = [f"{source}: {what}" for source in rows_of for what in ("pointing", "over the centre")]
    return table(["map", *heads], body)


def _by_category(found: Explanations) -> list[list[object]]:
    """Pointing accuracy of every method for each category, the most frequent first."""
    by_name: dict[str, list[NamedObject]] = {}
    for word in found.words:
        by_name.setdefault(word.category, []).append(word)
    rows: list[list[object]] = []
    for category, words in sorted(by_name.items(), key=lambda pair: -len(pair[1])):
        row: list[object] = [category, len(words)]
        shares = {}
        for method in found.methods:
            hits = [word.hits[method] for word in words if method in word.hits]
            shares[method] = round(sum(hits) / len(hits), 3) if hits else None
        most = max(share for share in shares.values() if share is not None)
        row += [Best(share) if share == most else share for share in shares.values()]
        rows.append(row)
    return rows


def _examples(
    words: Sequence[NamedObject], pictures: dict[str, Subject], preprocessing: Preprocessing
) -> tuple[str, list[Html]]:
    """Style rules with the pictures, and for each word its maps."""
    rules: dict[str, str] = {}
    parts = []
    for word in words:
        subject = pictures[word.subject]
        if word.subject not in rules:
            picture = seen_part(open_picture(subject.picture), preprocessing)
            uri = picture_uri(picture)
            key = "p" + hashlib.sha256(uri.encode()).hexdigest()[:12]
            rules[word.subject] = (
                f".patchword .{key} {{ background-image: url({uri}); "
                f"aspect-ratio: {picture.width} / {picture.height}; }}\n"
            )
        key = rules[word.subject].split(" {", 1)[0].rsplit(".", 1)[1]
        figures = []
        for method, map_hw in word.maps.items():
            says = (
                f"{'hit' if word.hits[method] >= 0.5 else 'miss'}, {percent(word.masses[method])} of the map"
            )
            image = f'<img alt="{escape(f"{method} for {word.phrase}: {says}")}" src="{blocks_uri(map_hw)}">'
            figures.append(
                f'<figure class="word"><div class="shot {key}">{image}</div>'
                f"<figcaption>{escape(method)}<span>{escape(says)}</span></figcaption></figure>"
            )
        title = join(
            [
                f"“{word.phrase}” ({word.category}) in the {word.source} caption “{word.caption}”, ",
                name(word.subject),
            ]
        )
        parts.append(Html(f'<h3>{title}</h3>\n<div class="words">{"".join(figures)}</div>'))
    return "".join(rules.values()), parts


def _counted(found: Explanations) -> str:
    said = sum(word.source == SAID for word in found.words)
    return (
        f"{counted(len(found.words), 'word')} that name an object of their picture: {said} of "
        "generated captions, "
        f"{len(found.words) - said} of references; {counted(found.pictures, 'picture')}"
    )


def _left_out(found: Explanations) -> list[str]:
    lines = [""]
    if found.in_vain:
        names = ", ".join(f"{category} {times}" for category, times in found.in_vain.most_common(10))
        lines.append(f"named by generated captions, and not annotated in the picture: {names}")
    if found.unknown:
        words = ", ".join(f"{word} {times}" for word, times in found.unknown.most_common(10))
        lines.append(f"in references, and not known to the model or beyond its longest caption: {words}")
    if found.unreadable:
        lines.append(f"{counted(len(found.unreadable), 'picture')} could not be used")
    return lines if len(lines) > 1 else []


def _with_interval(one: Summary | None) -> str:
    if one is None:
        return "–"
    low, high = one.interval
    return f"{100 * one.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _points(gain: Summary) -> str:
    low, high = gain.interval
    return f"{100 * gain.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
