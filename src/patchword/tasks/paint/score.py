"""What `patchword score-images` does: compares a folder of generated pictures with a folder of real ones.

Features are read batch by batch; means and covariances see every picture in memory that does not grow, and
what compares pictures one by one (neighbours, kernels) sees at most `MOST` of either side, which is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchword.data.decoding import read_header
from patchword.data.formats.readers import read_captions
from patchword.data.headers import Bounds
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Preprocessing, read_content
from patchword.data.sources import PictureListing, SkippedFile, walk
from patchword.errors import DataError, counted
from patchword.metrics import painting
from patchword.metrics.clipscore import clip_score
from patchword.tasks.paint.extractors import Extractor
from patchword.tasks.paint.marks import read_facts

AT_ONCE = 64
MOST = 10_000
SHEET = "sheet that Patchword painted"
_SHEETS = re.compile(r"sheet\.png|words-\d+\.png")


class Row(NamedTuple):
    """One number of the report."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    """95 %, by the bootstrap over generated pictures."""


class Report(NamedTuple):
    """What was measured, and what a person must know about it."""

    rows: list[Row]
    remarks: list[str]
    counts: tuple[int, int]
    features: str
    left_out: PictureListing
    """What lies in both folders and was not compared, with the reason."""


class Set(NamedTuple):
    """The pictures of one folder."""

    files: list[Path]
    side: tuple[int, int]
    """Width and height, upright."""
    kinds: frozenset[str]
    left_out: list[SkippedFile]


class ScoreOptions(NamedTuple):
    """How two folders are compared, and what they are compared with beside each other."""

    captions: Path | None = None
    """What the generated pictures were asked for, by file; None reads the marks of files that Patchword
    painted."""
    towers: Any = None
    """Two towers for CLIPScore and R-precision."""
    truth: Callable[[Sequence[np.ndarray], Sequence[str]], list[float]] | None = None
    """Says which share of a caption holds in a picture (the oracle of drawn scenes)."""
    resize: int | None = None
    """Side to which everything is cut and scaled; None refuses pictures of different sizes."""
    neighbours: int = 3
    """k of precision, recall, density and coverage."""
    any_format: bool = False
    """Whether the two sides may be of different file formats."""


def score_images(
    generated: Path,
    real: Path,
    extractor: Extractor,
    options: ScoreOptions,
    watch: Callable[[int, int], None] = lambda count, total: None,
) -> Report:
    """All metrics that what is given allows.

    Args:
        extractor: what makes the features; every distance is named after it.
        watch: called with the number of pictures that were read since the last call, and how many there are.

    Raises:
        DataError: pictures of mixed sizes or formats, too few of them, or a caption that is missing.
        PictureError: a picture that cannot be decoded.
    """
    resize = options.resize
    sets = [read_set(folder, resize) for folder in (generated, real)]
    _refuse_mixed(sets, (generated, real), resize, options.any_format)
    for name, one in zip(("generated", "real"), sets, strict=True):
        painting.refuse_few(name, len(one.files), options.neighbours)
    total = sum(len(one.files) for one in sets)
    found = [_features(one.files, extractor, resize, lambda count: watch(count, total)) for one in sets]
    rows, remarks = _distances(found[0], found[1], extractor, options.neighbours)
    asked = captions_of(sets[0].files, generated, options.captions)
    if asked is not None:
        more, said = _agreement(sets[0].files, asked, options.towers, options.truth, resize)
        rows += more
        remarks += said
    elif options.towers is not None or options.captions is not None:
        remarks.append(
            "the generated pictures carry no prompts and --captions was not given: nothing about texts"
        )
    left_out = PictureListing([], [skipped for one in sets for skipped in one.left_out])
    return Report(rows, remarks, (len(sets[0].files), len(sets[1].files)), extractor.name, left_out)


def read_set(folder: Path, resize: int | None) -> Set:
    """The pictures of a folder; their sides are read from the headers. Sheets that `patchword paint` put
    beside them are left out.

    Raises DataError for no folder, no picture in it, and mixed sizes where they are not resized; PictureError
    for what cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name one of pictures")
    listed = walk(folder)
    pictures = [Path(file) for file in listed.pictures]
    sheets = {file for file in pictures if _SHEETS.fullmatch(file.name) and read_facts(file) is not None}
    files = [file for file in pictures if file not in sheets]
    if not files:
        raise DataError(f"{folder} holds no picture beside sheets: name the folder of the pictures")
    left_out = [*listed.left_out, *(SkippedFile(file, SHEET) for file in sorted(sheets))]
    sides: dict[tuple[int, int], Path] = {}
    kinds = set()
    for file in files:
        kind, side = read_header(read_content(file, str(file), Bounds()), str(file))
        sides.setdefault(side, file)
        kinds.add(kind)
    if len(sides) > 1 and resize is None:
        (a, first), (b, second) = list(sides.items())[:2]
        raise DataError(
            f"{folder} holds pictures of {counted(len(sides), 'size')}, such as {first.name} "
            f"({a[0]} x {a[1]}) and "
            f"{second.name} ({b[0]} x {b[1]}): distances between sizes measure the size; "
            "--resize SIDE brings all of them to one"
        )
    return Set(files, next(iter(sides)), frozenset(kinds), left_out)


def _refuse_mixed(sets: Sequence[Set], folders: Sequence[Path], resize: int | None, any_format: bool) -> None:
    """Raises DataError where the two sides differ in size or file format, which would be measured instead."""
    one, two = sets
    if resize is None and one.side != two.side:
        raise DataError(
            f"{folders[0]} holds pictures of {one.side[0]} x {one.side[1]} and {folders[1]} of "
            f"{two.side[0]} x "
            f"{two.side[1]}: --resize SIDE brings both to one size"
        )
    kinds = one.kinds | two.kinds
    if len(kinds) > 1 and not any_format:
        raise DataError(
            f"{folders[0]} and {folders[1]} hold {' and '.join(sorted(kinds))}: traces of compression "
            "would be "
            "measured as well; write both in one format, or compare them all the same with --any-format"
        )


@dataclass(frozen=True)
class _Features:
    moments: painting.Moments
    kept_ND: np.ndarray
    probabilities_NY: np.ndarray | None
    count: int


def opened(files: Sequence[Path], resize: int | None) -> Iterator[list[np.ndarray]]:
    """Pictures uint8 (H, W, 3) in batches."""
    cut = None if resize is None else Preprocessing(size=resize, fit="short_side_center_crop")
    with PictureReader() as reader:
        for first in range(0, len(files), AT_ONCE):
            pictures = [reader.open(file) for file in files[first : first + AT_ONCE]]
            yield [np.asarray(picture) if cut is None else cut.apply(picture) for picture in pictures]


def _features(
    files: Sequence[Path], extractor: Extractor, resize: int | None, watch: Callable[[int], None]
) -> _Features:
    kept: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    held = 0

    def batches() -> Iterator[np.ndarray]:
        nonlocal held
        for pictures in opened(files, resize):
            features_ND, probabilities_NY = extractor.see(pictures)
            if held < MOST:
                kept.append(features_ND[: MOST - held])
                held += len(kept[-1])
            if probabilities_NY is not None:
                shares.append(probabilities_NY)
            watch(len(pictures))
            yield features_ND

    moments = painting.moments(batches())
    return _Features(moments, np.concatenate(kept), np.concatenate(shares) if shares else None, len(files))


def _distances(made: _Features, real: _Features, extractor: Extractor, k: int) -> tuple[list[Row], list[str]]:
    remarks = []
    rows = [Row(extractor.distance, painting.frechet_distance(made.moments, real.moments))]
    few = painting.too_few(made.moments, real.moments)
    if few is not None:
        remarks.append(few)
    mean, spread = painting.kernel_distance(made.kept_ND, real.kept_ND)
    # Where every subset is the whole set there is no spread to tell.
    whole = math.isclose(spread, 0, abs_tol=1e-12)
    interval = None if whole else (mean - 1.96 * spread, mean + 1.96 * spread)
    rows.append(Row(f"KID ({extractor.name})", mean, interval))
    near = painting.neighbourhood(made.kept_ND, real.kept_ND, k)
    rows += [Row(f"{name} (k = {k})", value) for name, value in near._asdict().items()]
    if made.probabilities_NY is not None and len(made.probabilities_NY) >= 10:
        mean, spread = painting.inception_score(made.probabilities_NY)
        rows.append(Row(extractor.classes, mean, (mean - spread, mean + spread)))
    most = max(made.count, real.count)
    if most > MOST:
        remarks.append(
            f"KID, precision, recall, density and coverage are of the first {MOST:,} pictures of a side"
        )
    return rows, remarks


def captions_of(files: Sequence[Path], folder: Path, captions: Path | None) -> list[str] | None:
    """What the pictures were asked for: from a file of captions, or from the marks of painted files.

    None where there is no such file and a picture carries no mark. Raises DataError for a file without a
    caption.
    """
    if captions is None:
        marks = [read_facts(file) for file in files]
        prompts = [mark["prompt"] for mark in marks if mark is not None and "prompt" in mark]
        return prompts if len(prompts) == len(files) else None
    known = {record.file: record.captions for record in read_captions(captions)}
    found = []
    for file in files:
        said = known.get(file.relative_to(folder).as_posix()) or known.get(file.name)
        if not said:
            raise DataError(f"{captions} has no caption of {file.name}: add it, or remove the picture")
        found.append(said[0])
    return found


def _agreement(
    files: Sequence[Path], captions: list[str], towers, truth, resize: int | None
) -> tuple[list[Row], list[str]]:
    rows, remarks = [], []
    if truth is not None:
        shares = np.array(
            [
                share
                for place, pictures in enumerate(opened(files, resize))
                for share in truth(pictures, captions[place * AT_ONCE : place * AT_ONCE + len(pictures)])
            ]
        )
        said = shares[~np.isnan(shares)]
        if len(said):
            rows += [_mean("statements that hold", said), _mean("pictures in which all hold", said == 1.0)]
        if len(said) < len(shares):
            remarks.append(
                f"{counted(len(shares) - len(said), 'caption is', 'captions are')} outside the "
                "grammar of scenes and not judged"
            )
    if towers is not None:
        pictures_NE = np.concatenate([towers.embed_images(batch) for batch in opened(files, resize)])
        texts_NE = towers.embed_texts(captions)
        values = np.array([*clip_score(pictures_NE, texts_NE)["CLIPScore"].values_per_item().values()])
        rows.append(_mean("CLIPScore", values))
        if len(set(captions)) > 1:
            won = painting.r_precision(pictures_NE, texts_NE, captions)
            others = min(99, len(set(captions)) - 1)
            rows.append(_mean(f"R-precision (1 of {others + 1})", won))
        else:
            remarks.append("R-precision needs different captions, and all of them are the same")
    return rows, remarks


def _mean(name: str, values: np.ndarray) -> Row:
    values = np.asarray(values, np.float64)
    low, high = painting.interval(lambda places: float(values[places].mean()), len(values))
    value = float(values.mean())
    return Row(name, value, None if math.isclose(low, high) else (low, high))
