"""A corpus of any size: counted in one pass, and kept as word ids on disk that a training reads in parts.

Memory follows distinct words and pairs, not the length of the corpus. The first pass holds one count per
distinct word; where these become more than `MOST_DISTINCT`, the rarest are dropped and the threshold rises
(as word2vec does), and the number of dropped occurrences is kept. The second pass writes ids, four bytes a
word, through a buffer. Pairs of words and contexts are counted in sorted runs: 16 bytes per distinct pair,
and some 115 while two runs are merged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchword.errors import ConfigError, DataError
from patchword.files import whole_folder, write_json
from patchword.text.words import Splitter, split_characters, split_english

END = -1
"""Stands in the ids at the end of every line."""
MOST_DISTINCT = 5_000_000
"""Distinct words that the first pass holds; some 500 MB."""
LONGEST_LINE = 1 << 20
"""Characters of a line that are read at once: a file without line breaks must not come into memory whole."""
_BUFFER = 1 << 20

_SPLIT: dict[str, Callable[[str], list[str]]] = {"english": split_english, "characters": split_characters}


class WordCounts(NamedTuple):
    """The words of a corpus."""

    words: tuple[str, ...]
    """By falling count, equal ones by name."""
    counts_W: np.ndarray
    """Occurrences of each, int64."""
    total: int
    """Words of the corpus, the rare ones included."""
    dropped: int
    """Occurrences of words that were forgotten while counting, because there were too many distinct ones."""


class Corpus(NamedTuple):
    """A corpus as ids."""

    words: tuple[str, ...]
    counts_W: np.ndarray
    ids_P: np.ndarray
    """The words in a row, int32, with `END` after every line; rare words are left out. A memory map."""
    total: int
    """Words that were read, the rare ones included."""


def text_lines(paths: Sequence[Path]) -> Iterator[str]:
    """The lines of text files, one file after the other; a very long line comes in parts.

    Raises DataError for a file that cannot be read or is not UTF-8.
    """
    for path in paths:
        number = 0
        try:
            with open(path, encoding="utf-8-sig") as file:
                while line := file.readline(LONGEST_LINE):
                    number += 1
                    yield line
        except UnicodeDecodeError as error:
            where = f", after line {number}" if number else ""
            raise DataError(
                f"{path}{where}: byte 0x{error.object[error.start]:02x} is not UTF-8: save the file as UTF-8"
            ) from error
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}): give the path of a text file"
            ) from error


def count_words(
    lines: Iterable[str], splitter: Splitter = "english", most: int = MOST_DISTINCT
) -> WordCounts:
    """The first pass. Raises DataError for a corpus without words."""
    split, counts, threshold, dropped = _SPLIT[splitter], Counter[str](), 1, 0
    for line in lines:
        counts.update(split(line))
        while len(counts) > most:
            rare = [word for word, count in counts.items() if count <= threshold]
            dropped += sum(counts.pop(word) for word in rare)
            threshold += 1
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    total = sum(counts.values()) + dropped
    if not total:
        raise DataError(
            "the corpus has no words: found 0 words in its lines; name files with text, or captions"
        )
    return WordCounts(
        tuple(word for word, _ in ranked), np.array([n for _, n in ranked], np.int64), total, dropped
    )


def encode_corpus(
    lines: Callable[[], Iterable[str]],
    folder: Path,
    splitter: Splitter = "english",
    minimum_count: int = 5,
    most_words: int | None = None,
    key: str = "",
) -> Corpus:
    """Both passes; the ids stand in `folder`, and are used again where they were made with the same `key`.

    Args:
        lines: gives the lines anew at each call.
        minimum_count: words that occur less often are left out.
        most_words: the most frequent words that are kept; None for all.
        key: what tells this corpus and its settings from others; "" is never used again.

    Raises:
        ConfigError: `folder` holds other files, which would be gone.
        DataError: no words, or none that is frequent enough (said with numbers).
    """
    about = folder / "corpus.json"
    if key and about.is_file():
        known = json.loads(about.read_text(encoding="utf-8"))
        if known["key"] == key:
            ids_P = np.load(folder / "ids.npy", mmap_mode="r")
            return Corpus(tuple(known["words"]), np.array(known["counts"], np.int64), ids_P, known["total"])
    counted = count_words(lines(), splitter)
    kept = int((counted.counts_W >= minimum_count).sum())
    kept = kept if most_words is None else min(kept, most_words)
    if kept < 2:
        raise DataError(
            f"the corpus has {counted.total} words, {len(counted.words)} different ones, and {kept} occur "
            f"{minimum_count} times or more: lower corpus.minimum_count, or give more text"
        )
    words, counts_W = counted.words[:kept], counted.counts_W[:kept]
    if folder.is_dir() and not {path.name for path in folder.iterdir()} <= {about.name, "ids.npy"}:
        raise ConfigError(
            f"{folder} holds other files than a corpus that was read before, and would be replaced: choose "
            "another folder for `out`"
        )
    with whole_folder(folder, over=True) as aside:
        _write_ids(lines(), aside / "ids.npy", words, splitter, int(counts_W.sum()))
        content = {"key": key, "words": words, "counts": counts_W.tolist(), "total": counted.total}
        write_json(aside / "corpus.json", content)
    return Corpus(words, counts_W, np.load(folder / "ids.npy", mmap_mode="r"), counted.total)


def _write_ids(
    lines: Iterable[str], path: Path, words: Sequence[str], splitter: Splitter, known: int
) -> None:
    """The second pass: ids of the words of the list, in a .npy file whose length is written last."""
    ids, split = {word: number for number, word in enumerate(words)}, _SPLIT[splitter]
    buffer: list[int] = []
    length = 0
    with open(path, "wb") as file:
        header = {"descr": "<i4", "fortran_order": False, "shape": (2 * known + 1,)}
        np.lib.format.write_array_header_1_0(file, header)
        room = file.tell()
        for line in lines:
            found = [ids[word] for word in split(line) if word in ids]
            if found:
                buffer += found
                buffer.append(END)
            if len(buffer) > _BUFFER:
                length += len(buffer)
                np.array(buffer, "<i4").tofile(file)
                buffer.clear()
        length += len(buffer)
        np.array(buffer, "<i4").tofile(file)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (length,)})
        if file.tell() != room:
            raise DataError(
                f"{path}: the header of {length} words has another length; this is a fault of Patchword"
            )


class Pairs(NamedTuple):
    """How often words occur near contexts, one entry per pair that occurs, sorted by word and context."""

    rows_E: np.ndarray
    columns_E: np.ndarray
    counts_E: np.ndarray


def count_pairs(
    ids_P: np.ndarray,
    window: int,
    contexts: int,
    part: int = _BUFFER,
    advance: Callable[[int], None] | None = None,
) -> Pairs:
    """How often each word stands within `window` places of each of the `contexts` most frequent words, in a
    line.

    Parts of the ids are counted one at a time, and sorted runs are merged as their sizes become equal, so
    memory follows the number of distinct pairs, not the length of the corpus.
    """
    runs: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, len(ids_P), part):
        keys_K = _near_keys(
            np.asarray(ids_P[max(0, first - window) : first + part], np.int64),
            window,
            contexts,
            min(first, window),
        )
        keys_U, counts_U = np.unique(keys_K, return_counts=True)
        runs.append((keys_U, counts_U))
        while len(runs) > 1 and len(runs[-2][0]) <= 2 * len(runs[-1][0]):
            runs.append(_merged(runs.pop(), runs.pop()))
        if advance is not None:
            advance(min(part, len(ids_P) - first))
    while len(runs) > 1:
        runs.append(_merged(runs.pop(), runs.pop()))
    keys_U, counts_U = runs[0] if runs else (np.empty(0, np.int64), np.empty(0, np.int64))
    return Pairs(keys_U // contexts, keys_U % contexts, counts_U)


def _near_keys(ids_P: np.ndarray, window: int, contexts: int, before: int) -> np.ndarray:
    """word * contexts + context of all pairs of a part whose later place is not among the first `before`."""
    line_P = np.cumsum(ids_P == END)
    found = []
    for distance in range(1, window + 1):
        skipped = max(0, before - distance)
        early, late = ids_P[skipped:-distance], ids_P[skipped + distance :]
        same = (line_P[skipped:-distance] == line_P[skipped + distance :]) & (early != END) & (late != END)
        early, late = early[same], late[same]
        found.append(early[late < contexts] * contexts + late[late < contexts])
        found.append(late[early < contexts] * contexts + early[early < contexts])
    return np.concatenate(found)


def _merged(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    keys_K, counts_K = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order_K = np.argsort(keys_K, kind="stable")
    keys_K, counts_K = keys_K[order_K], counts_K[order_K]
    starts_U = (
        np.flatnonzero(np.r_[True, keys_K[1:] != keys_K[:-1]]) if len(keys_K) else np.empty(0, np.int64)
    )
    return keys_K[starts_U], np.add.reduceat(counts_K, starts_U) if len(keys_K) else counts_K
