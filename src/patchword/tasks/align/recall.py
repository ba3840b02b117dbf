"""Recall of retrieval on a split of a data set.

Pairs are ranked by the cosines of two towers, by patch-word alignment, or by alignment on a shortlist.

pictures, captions -> each encoded once -> similarities (all pairs, or two stages) -> metrics/retrieval
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from rich.progress import Progress

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import find_model
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.records import CaptionRecord
from patchword.device import peak_mebibytes
from patchword.errors import DataError, counted
from patchword.hub import is_hub
from patchword.layers.all_pairs import two_stage
from patchword.metrics.retrieval import RECALLS_AT, retrieval, retrieval_ranks
from patchword.tasks.align.model import load_alignment
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel

Protocol = Literal["flickr", "coco-1k", "coco-5k"]
CAPTIONS = 5
FOLD = 1000


class Split(NamedTuple):
    """The pictures and captions to rank, and the picture of each caption."""

    files: list[Path]
    texts: list[str]
    owner_C: np.ndarray


@dataclass
class RecallReport:
    """The result of `patchword recall`."""

    scores: dict[str, float]
    """Scores i2t_R@1 ... rSum of `metrics/retrieval.py`."""
    pictures: int
    captions: int
    compared: int
    """Number of pairs compared by the slower similarity: all, or those of the shortlists."""
    seconds: dict[str, float]
    """CPU seconds of encoding and of ranking."""
    peak_mebibytes: float
    lost: dict[str, float] = field(default_factory=dict)
    """Two stages: percentage of pictures (i2t) and captions (t2i) whose match is not on the shortlist."""
    first_stage: dict[str, float] = field(default_factory=dict)
    """Two stages: scores of the shortlist's own order."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals from pictures drawn with replacement, ranked against all candidates."""


def read_split(data: Path, images: Path, split: str, protocol: Protocol) -> Split:
    """Reads a split, with the first five captions of every picture, as both protocols require.

    coco-5k and coco-1k need a multiple of 1,000 pictures. Raises DataError where the split does not fit the
    protocol, or a picture has no caption.
    """
    records: Sequence[CaptionRecord] = split_records(read_captions(data), split)
    if protocol != "flickr" and (len(records) % FOLD or not records):
        raise DataError(
            f"protocol {protocol}: split {split!r} has {counted(len(records), 'picture')}, "
            f"expected a multiple of {FOLD} (COCO: 5,000)"
        )
    bare = [record.image_id for record in records if not record.captions]
    if bare:
        raise DataError(
            f"split {split!r}: {counted(len(bare), 'picture has', 'pictures have')} no caption (first: "
            f"{bare[0]}) and cannot be ranked"
        )
    owner_C = np.repeat(np.arange(len(records)), [min(CAPTIONS, len(record.captions)) for record in records])
    texts = [caption for record in records for caption in record.captions[:CAPTIONS]]
    return Split([images / record.file for record in records], texts, owner_C)


@dataclass(frozen=True)
class RecallOptions:
    """How a split is ranked."""

    protocol: Protocol = "flickr"
    shortlist: int | None = None
    """Candidates per query that an alignment model ranks; None: it ranks all."""
    first: str | None = None
    """The towers that choose the shortlist; None: the alignment model's own."""
    bf16: bool = False
    resamples: int = 0
    """Drawn sets of pictures for the intervals; 0: no intervals."""
    device: str | None = None


class Ranking(NamedTuple):
    """What a split is ranked by, one matrix (pictures, captions) per direction."""

    image_to_text_NC: np.ndarray
    text_to_image_NC: np.ndarray
    compared: int
    """Number of pairs compared by the slower similarity."""
    encoded: float
    """CPU time at which everything was encoded."""
    coarse_NC: np.ndarray | None = None
    """Two stages: the similarities that chose the shortlist."""
    lost: dict[str, float] = {}
    """Two stages: percentage of each side whose match is not on the shortlist."""


def measure(name: str, split: Split, options: RecallOptions, bar: Progress) -> RecallReport:
    """Encodes and ranks a split, and returns the scores.

    With a shortlist, the towers of `first` (or the model's own) choose that many candidates per query, and
    the model ranks them. Raises DataError for a shortlist of a model without an alignment head, PictureError
    for a picture that cannot be decoded.
    """
    began = time.process_time()
    task = "retrieve" if is_hub(name) else checkpoint.read_config(find_model(name)).get("task")
    ranking = (_by_alignment if task == "align" else _by_towers)(name, split, options, bar)
    i2t_NC, t2i_NC, coarse_NC = ranking.image_to_text_NC, ranking.text_to_image_NC, ranking.coarse_NC
    scores = _scores(i2t_NC, t2i_NC, split.owner_C, options.protocol)
    seconds = {"encoding": ranking.encoded - began, "ranking": time.process_time() - ranking.encoded}
    return RecallReport(
        scores,
        len(split.files),
        len(split.texts),
        ranking.compared,
        seconds,
        peak_mebibytes(),
        ranking.lost,
        {} if coarse_NC is None else _scores(coarse_NC, coarse_NC, split.owner_C, options.protocol),
        _intervals(i2t_NC, t2i_NC, split.owner_C, options.resamples) if options.resamples else {},
    )


def _by_towers(name: str, split: Split, options: RecallOptions, bar: Progress) -> Ranking:
    if options.shortlist is not None or options.first is not None:
        raise DataError(
            f"{name} has no alignment head to rank a shortlist with: name a model trained with task align"
        )
    cosines_NC = _cosines(load_two_towers(name, options.device), split, bar)
    return Ranking(cosines_NC, cosines_NC, cosines_NC.size, time.process_time())


def _by_alignment(name: str, split: Split, options: RecallOptions, bar: Progress) -> Ranking:
    model = load_alignment(name, options.device)
    pictures = model.picture_cache(split.files, progress=_told(bar, "pictures", len(split.files)))
    texts = model.text_cache(split.texts, progress=_told(bar, "captions", len(split.texts)))
    pairs = len(split.files) * len(split.texts)
    if options.shortlist is None:
        encoded = time.process_time()
        told = _told(bar, "pairs", pairs)
        similarities_NC = model.similarities(pictures, texts, told, options.bf16).numpy()
        return Ranking(similarities_NC, similarities_NC, pairs, encoded)
    coarse_NC = pictures.vectors_NE @ texts.vectors_NE.T
    if options.first is not None:
        coarse_NC = torch.from_numpy(_cosines(load_two_towers(options.first, options.device), split, bar))
    encoded = time.process_time()
    told = _told(bar, "pictures ranked again", len(split.files))
    found = two_stage(
        model.model.head,
        coarse_NC,
        pictures.tokens,
        texts.tokens,
        options.shortlist,
        model.model.class_token,
        model.device,
        told,
    )
    lost_images, lost_texts = found.lost(torch.from_numpy(split.owner_C))
    return Ranking(
        found.image_to_text_IJ.numpy(),
        found.text_to_image_IJ.numpy(),
        found.compared,
        encoded,
        coarse_NC.numpy(),
        {"i2t": 100 * lost_images, "t2i": 100 * lost_texts},
    )


def _cosines(towers: TwoTowerModel, split: Split, bar: Progress) -> np.ndarray:
    pictures = _in_parts(towers.embed_images, split.files, 64, _told(bar, "pictures", len(split.files)))
    texts = _in_parts(towers.embed_texts, split.texts, 256, _told(bar, "captions", len(split.texts)))
    return pictures @ texts.T


def _in_parts(embed, items: list, size: int, told) -> np.ndarray:
    parts = []
    for first in range(0, len(items), size):
        parts.append(embed(items[first : first + size]))
        told(len(parts[-1]))
    return np.concatenate(parts)


def _told(bar: Progress, what: str, total: int):
    task = bar.add_task(what, total=total, status="")
    return lambda count: bar.update(task, advance=count)


def _scores(
    i2t_NC: np.ndarray, t2i_NC: np.ndarray, owner_C: np.ndarray, protocol: Protocol
) -> dict[str, float]:
    """Scores each direction from the matrix that it is ranked by."""
    fold = FOLD if protocol == "coco-1k" else None
    rows, columns = retrieval(i2t_NC, owner_C, fold), retrieval(t2i_NC, owner_C, fold)
    found = {key: (rows if key.startswith("i2t") else columns)[key].value for key in rows if key != "rSum"}
    return {**found, "rSum": sum(value for key, value in found.items() if "_R@" in key)}


def _intervals(
    i2t_NC: np.ndarray, t2i_NC: np.ndarray, owner_C: np.ndarray, resamples: int
) -> dict[str, tuple[float, float]]:
    """Bootstrap over pictures with their captions; the candidates stay the whole set."""
    pictures = len(i2t_NC)
    ranks_N, ranks_C = (
        retrieval_ranks(i2t_NC, owner_C).image_to_text,
        retrieval_ranks(t2i_NC, owner_C).text_to_image,
    )
    own_N = np.bincount(owner_C, minlength=pictures)
    generator = np.random.default_rng(0)
    weights_RN = np.stack(
        [
            np.bincount(generator.integers(pictures, size=pictures), minlength=pictures)
            for _ in range(resamples)
        ]
    )
    drawn = {}
    for k in RECALLS_AT:
        drawn[f"i2t_R@{k}"] = 100.0 * (weights_RN @ (ranks_N < k)) / pictures
        hits_N = np.bincount(owner_C, weights=ranks_C < k, minlength=pictures)
        drawn[f"t2i_R@{k}"] = 100.0 * (weights_RN @ hits_N) / (weights_RN @ own_N)
    drawn["rSum"] = np.sum(list(drawn.values()), axis=0)
    return {key: tuple(np.quantile(values, (0.025, 0.975)).tolist()) for key, values in drawn.items()}
