"""Word pairs that people judged: MEN, SimLex-999, WordSim-353, and files laid out as they are.

A line holds two words and a score, between tabs, commas, semicolons or spaces; a header line may name the
columns. SimLex-999's own file has further columns; its concreteness of both words is read as well. MEN's
lemma form writes the part of speech after a hyphen (dog-n), which is cut off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from patchword.data.formats.complaints import raise_at_once, read_text
from patchword.errors import DataError

PUBLISHED = {
    "men": ("EN-MEN-TR-3k.txt", "MEN_dataset_natural_form_full", "MEN_dataset_lemma_form_full"),
    "simlex": ("EN-SIMLEX-999.txt", "SimLex-999.txt"),
    "wordsim353": ("EN-WS-353-ALL.txt", "combined.csv", "combined.tab"),
}
"""The names of the published files, by the names of the sets."""

_LEMMA = re.compile(r"(.+)-[nvaj]")


class JudgedPair(NamedTuple):
    """Two words and what people said of them."""

    first: str
    second: str
    score: float
    concreteness: tuple[float, float] | None = None
    """Of both words, where the file has it (SimLex-999: 1 to 7)."""


def find_set(name: str, folder: Path | None) -> Path:
    """The file of a published set by its name, or the path itself where it is one.

    Raises DataError where there is neither.
    """
    if name not in PUBLISHED:
        if Path(name).is_file():
            return Path(name)
        raise DataError(
            f"no file {name}, and no set of that name: expected {', '.join(PUBLISHED)}, or a file of pairs"
        )
    names = PUBLISHED[name]
    for place in () if folder is None else (folder / one for one in names):
        if place.is_file():
            return place
    looked = "no --folder is given" if folder is None else f"{folder} has none of {', '.join(names)}"
    raise DataError(
        f"the pairs of {name} were not found, {looked}: name the folder with --folder, or give the file"
    )


def read_pairs(path: Path) -> list[JudgedPair]:
    """The pairs of a file, in its order; words in lower case.

    Raises DataError for a file without pairs, or naming the first line that is none.
    """
    lines = [
        (n, line) for n, line in enumerate(read_text(path, raise_at_once).split("\n"), 1) if line.strip()
    ]
    lines = [(n, line) for n, line in lines if not line.startswith("#")]
    if not lines:
        raise DataError(f"{path} has no pairs: expected lines such as dog<tab>cat<tab>7.4")
    separator = _separator(lines[-1][1], path)
    cells = [_cells(line, separator) for _, line in lines]
    columns = (0, 1, 2)
    concrete: tuple[int, int] | None = None
    if _number(cells[0][2] if len(cells[0]) > 2 else "") is None:
        columns, concrete = _named_columns(cells[0])
        lines, cells = lines[1:], cells[1:]
    found = [
        _pair(row, columns, concrete, f"{path}, line {number}")
        for (number, _), row in zip(lines, cells, strict=True)
    ]
    if not found:
        raise DataError(f"{path} has a header and no pairs: expected lines such as dog<tab>cat<tab>7.4")
    if all(_LEMMA.fullmatch(word) for pair in found for word in pair[:2]):
        found = [pair._replace(first=pair.first[:-2], second=pair.second[:-2]) for pair in found]
    return found


def read_concreteness(path: Path) -> dict[str, float]:
    """A score per word, from a table with a header whose columns are word and concreteness (Brysbaert et al.
    2014: Word and Conc.M), or of two columns without one.

    Raises DataError naming the line that is neither.
    """
    lines = [
        (n, line) for n, line in enumerate(read_text(path, raise_at_once).split("\n"), 1) if line.strip()
    ]
    rows = [(n, _cells(line, "\t" if "\t" in line else ",")) for n, line in lines]
    word, score = 0, 1
    if rows and _number(rows[0][1][1] if len(rows[0][1]) > 1 else "") is None:
        names = [name.lower() for name in rows[0][1]]
        score = next(
            (place for place, name in enumerate(names) if name in ("conc.m", "concreteness", "score")), 1
        )
        rows = rows[1:]
    found = {}
    for number, cells in rows:
        value = _number(cells[score]) if len(cells) > score else None
        if value is None:
            raise DataError(
                f"{path}, line {number}: expected a word and its concreteness, found {cells[:3]!r}"
            )
        found[cells[word].lower()] = value
    if not found:
        raise DataError(f"{path} has no words: expected lines such as dog<tab>4.85")
    return found


def is_concrete(pair: JudgedPair, scores: Mapping[str, float], border: float) -> bool | None:
    """Whether both words lie above the border (True), or both at or below it (False); None for a mixed pair
    or an unknown word."""
    known = [scores.get(pair.first), scores.get(pair.second)]
    if None in known:
        return None
    above = [value > border for value in known if value is not None]
    return above[0] if above[0] == above[1] else None


def _separator(line: str, path: Path) -> str | None:
    """The separator of a line of three cells or more; None for white space."""
    for separator in "\t;,":
        if line.count(separator) >= 2:
            return separator
    if len(line.split()) >= 3:
        return None
    raise DataError(
        f"{path}: {line[:60]!r} is no pair with a score: expected two words and a number, between tabs, "
        "commas, "
        "semicolons or spaces"
    )


def _cells(line: str, separator: str | None) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(separator)]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _named_columns(header: list[str]) -> tuple[tuple[int, int, int], tuple[int, int] | None]:
    names = [name.lower() for name in header]
    score = next(
        (
            place
            for place, name in enumerate(names)
            if name in ("simlex999", "score", "human (mean)", "similarity")
        ),
        2,
    )
    concrete = (
        (names.index("conc(w1)"), names.index("conc(w2)")) if {"conc(w1)", "conc(w2)"} <= set(names) else None
    )
    return (0, 1, score), concrete


def _pair(
    cells: list[str], columns: tuple[int, int, int], concrete: tuple[int, int] | None, where: str
) -> JudgedPair:
    most = max(*columns, *(concrete or (0,)))
    value = _number(cells[columns[2]]) if len(cells) > most else None
    if value is None or not cells[0] or not cells[1]:
        raise DataError(f"{where}: expected two words and a number, found {cells[:4]!r}")
    both = None
    if concrete is not None:
        one, other = _number(cells[concrete[0]]), _number(cells[concrete[1]])
        both = None if one is None or other is None else (one, other)
    return JudgedPair(cells[columns[0]].lower(), cells[columns[1]].lower(), value, both)
