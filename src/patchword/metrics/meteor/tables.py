"""The tables of METEOR 1.5: how they are found, and the paraphrase index that is built from them once.

None of them ships with Patchword. The program's archive holds function words, abbreviations and WordNet 3.0
synonym sets. The paraphrase table (5.3 million pairs, 272 MB of text) is turned into three sorted arrays in
the cache directory, which are memory-mapped afterwards, so that scoring reads only the pages it needs.

Index: phrases_P (uint64, sorted hashes of all phrases), starts (int64, P+1) and partners (uint32, positions
in phrases_P): phrase p is listed with partners[starts[p] : starts[p + 1]]. A phrase's hash is the sum of its
words' 64-bit hashes times powers of an odd number.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import itertools
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchword.errors import DataError, MetricUnavailable

ARCHIVE, PARAPHRASES = "meteor-1.5.jar", "paraphrase-en.gz"
LONGEST_PHRASE = 7
PAIRS_EXPECTED = 5_300_000
_PART = 100_000
"""Number of pairs looked up at once, and between two updates of the progress bar; it bounds memory."""
_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
POWERS = tuple(pow(_MULTIPLIER, i, 1 << 64) for i in range(LONGEST_PHRASE))


class Tables(NamedTuple):
    """The facts about English that the metric uses."""

    function_words: frozenset[str]
    prefixes: dict[str, bool]
    """Abbreviations that keep their dot; True where they keep it only before a number."""
    synsets: dict[str, str]
    """WordNet lemma -> ids of its synonym sets, separated by spaces."""
    exceptions: dict[str, list[str]]
    """Irregular form -> lemmas."""
    phrases_P: np.ndarray
    starts: np.ndarray
    partners: np.ndarray


def word_hash(word: str) -> int:
    """Hash of a word in the paraphrase table: eight bytes."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def load_tables(folder: Path | None = None) -> Tables:
    """Reads the tables of `folder`, or of the installed pycocoevalcap.

    It builds the paraphrase index where the cache has none yet. folder: holds meteor-1.5.jar and
    paraphrase-en.gz (there or under data/). Raises MetricUnavailable where they are missing.
    """
    archive, paraphrases = _find(folder)
    with zipfile.ZipFile(archive) as jar:
        lines = {name: jar.read(path).decode("utf-8").splitlines() for name, path in _MEMBERS.items()}
    synsets = dict(zip(lines["synsets"][::2], lines["synsets"][1::2], strict=True))
    exceptions: dict[str, list[str]] = {}
    for lemma, forms in zip(lines["exceptions"][::2], lines["exceptions"][1::2], strict=True):
        for form in forms.split():
            exceptions.setdefault(form, []).append(lemma)
    prefixes = {}
    for line in lines["prefixes"]:
        if line.strip() and not line.startswith("#"):
            prefix, *rest = line.split()
            prefixes[prefix] = bool(rest)
    index = _index(paraphrases)
    # Plain-array views of the memory map are cheaper to index.
    arrays = (
        np.asarray(np.load(index / f"{name}.npy", mmap_mode="r"))
        for name in ("phrases", "starts", "partners")
    )
    return Tables(
        frozenset(line.strip() for line in lines["function"]), prefixes, synsets, exceptions, *arrays
    )


_MEMBERS = {
    "function": "function/english.words",
    "prefixes": "nonbreaking/english.prefixes",
    "synsets": "synonym/english.synsets",
    "exceptions": "synonym/english.exceptions",
}


def _find(folder: Path | None) -> tuple[Path, Path]:
    advice = 'install them with: pip install "patchword[meteor]"'
    if folder is None:
        package = importlib.util.find_spec("pycocoevalcap")
        if package is None or not package.submodule_search_locations:
            raise MetricUnavailable(
                f"METEOR needs its tables, and pycocoevalcap, which carries them, is not installed; {advice}"
            )
        folder = Path(next(iter(package.submodule_search_locations))) / "meteor"
    folder = Path(folder)
    archive = folder / ARCHIVE
    paraphrases = next(
        (path for path in (folder / "data" / PARAPHRASES, folder / PARAPHRASES) if path.is_file()), None
    )
    if not archive.is_file() or paraphrases is None:
        missing = PARAPHRASES if archive.is_file() else ARCHIVE
        raise MetricUnavailable(
            f"METEOR needs {ARCHIVE} and {PARAPHRASES}; {missing} is not in {folder}; {advice}"
        )
    return archive, paraphrases


def cache_directory() -> Path:
    """$PATCHWORD_CACHE, or patchword under $XDG_CACHE_HOME, or ~/.cache/patchword."""
    if os.environ.get("PATCHWORD_CACHE"):
        return Path(os.environ["PATCHWORD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchword"


def _index(paraphrases: Path) -> Path:
    """Returns the folder of the index of this table; its name comes from the table's size and first bytes.

    A missing index is built in a temporary folder, which is then renamed.
    """
    with paraphrases.open("rb") as file:
        mark = hashlib.sha256(str(paraphrases.stat().st_size).encode() + file.read(1 << 20)).hexdigest()[:16]
    folder = cache_directory() / "meteor" / f"v1-{mark}"
    if (folder / "partners.npy").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "index"
        made.mkdir()
        _build(paraphrases, made)
        try:
            made.rename(folder)
        # Another process was first, or an interrupted build left an incomplete folder.
        except OSError:
            if not (folder / "partners.npy").is_file():
                shutil.rmtree(folder)
                made.rename(folder)
    return folder


def _build(paraphrases: Path, folder: Path) -> None:
    firsts_R, counts_R, seconds_X = _read_pairs(paraphrases)
    sorted_P = np.concatenate((firsts_R, seconds_X))
    sorted_P.sort()
    phrases_P = sorted_P[np.append(True, sorted_P[1:] != sorted_P[:-1])]
    del sorted_P
    partners_X = np.empty(len(seconds_X), dtype=np.uint32)
    for at in range(0, len(seconds_X), _PART):
        partners_X[at : at + _PART] = np.searchsorted(phrases_P, seconds_X[at : at + _PART])
    del seconds_X
    order_R = np.argsort(firsts_R, kind="stable")
    ends_R = np.cumsum(counts_R[order_R])
    starts = np.append(0, ends_R)[np.searchsorted(firsts_R[order_R], phrases_P)]
    shift_R = (np.cumsum(counts_R) - counts_R)[order_R] - (ends_R - counts_R[order_R])
    partners_X = partners_X[np.arange(len(partners_X)) + np.repeat(shift_R, counts_R[order_R])]
    np.save(folder / "phrases.npy", phrases_P)
    np.save(folder / "starts.npy", np.append(starts, len(partners_X)).astype(np.int64))
    np.save(folder / "partners.npy", partners_X)


def _read_pairs(paraphrases: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the pairs; an entry is three lines: probability, phrase, phrase.

    Returns the hashes of first phrases, once for each run of equal ones; the length of each run; and the
    hashes of the second phrases of all entries.
    """
    from array import array

    from rich.console import Console
    from rich.progress import Progress

    firsts, counts, seconds = array("Q"), array("q"), array("Q")
    hashes: dict[str, int] = {}

    def phrase_hash(phrase: str) -> int:
        total = 0
        for word, power in zip(phrase.split(), POWERS, strict=False):
            value = hashes.get(word)
            if value is None:
                value = hashes[word] = word_hash(word)
            total += value * power
        return total & _MASK

    with (
        gzip.open(paraphrases, "rt", encoding="utf-8") as file,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("METEOR: indexing paraphrases (once)", total=PAIRS_EXPECTED)
        previous = None
        for probability, one, two in itertools.zip_longest(file, file, file):
            if two is None:
                raise DataError(
                    f"{paraphrases} ends within an entry (after {len(seconds)} pairs, "
                    f"{probability.strip()!r}); fetch it again"
                )
            if one != previous:
                previous = one
                firsts.append(phrase_hash(one))
                counts.append(0)
            counts[-1] += 1
            seconds.append(phrase_hash(two))
            if len(seconds) % _PART == 0:
                progress.update(task, completed=len(seconds))
    return (
        np.frombuffer(firsts, dtype=np.uint64),
        np.frombuffer(counts, dtype=np.int64),
        np.frombuffer(seconds, dtype=np.uint64),
    )
