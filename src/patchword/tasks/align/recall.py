"""Recall of retrieval on a split of a data set.

Pairs are ranked by the cosines of two towers, by patch-word alignment, or by alignment on a shortlist.

pictures, captions -> each encoded once -> similarities (all pairs, or two stages) -> metrics/retrieval
"""

from __future__ import annotations

import resource
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
from patchword.errors import DataError
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
            f"protocol {protocol}: split {split!r} has {len(records)} pictures, expected a multiple of "
            f"{FOLD} (COCO: 5,000)"
        )
    bare = [record.image_id for record in records if not record.captions]
    if bare:
        raise DataError(
            f"{len(bare)} pictures of split {split!r} have no caption (first: {bare[0]}): they cannot be "
            "ranked"
        )
    owner_C = np.repeat(np.arange(len(records)), [min(CAPTIONS, len(record.captions)) for record in records])
    texts = [caption for record in records for caption in record.captions[:CAPTIONS]]
    return Split([images / record.file for record in records], texts, owner_C)


def measure(
    name: str,
    split: Split,
    protocol: Protocol,
    shortlist: int | None,
    first: str | None,
    bf16: bool,
    resamples: int,
    device: str | None,
    bar: Progress,
) -> RecallReport:
    """Encodes and ranks a split, and returns the scores.

    With `shortlist`, the towers of `first` (or the model's own) choose that many candidates per query, and
    the model ranks them. Raises DataError for a shortlist of a model without an alignment head, PictureError
    for a picture that cannot be decoded.
    """
    began = time.process_time()
    task = checkpoint.read_config(find_model(name)).get("task") if not is_hub(name) else "retrieve"
    lost, before, compared = {}, {}, len(split.files) * len(split.texts)
    if task != "align":
        if shortlist is not None or first is not None:
            raise DataError(
                f"{name} has no alignment head to rank a shortlist with: name a model trained with task align"
            )
        i2t = t2i = _cosines(load_two_towers(name, device), split, bar)
        encoded = time.process_time()
    else:
        model = load_alignment(name, device)
        pictures = model.picture_cache(split.files, progress=_told(bar, "pictures", len(split.files)))
        texts = model.text_cache(split.texts, progress=_told(bar, "captions", len(split.texts)))
        coarse_NC = pictures.vectors_NE @ texts.vectors_NE.T
        if first is not None:
            coarse_NC = torch.from_numpy(_cosines(load_two_towers(first, device), split, bar))
        encoded = time.process_time()
        if shortlist is None:
            i2t = t2i = model.similarities(pictures, texts, _told(bar, "pairs", compared), bf16).numpy()
        else:
            owner_C = torch.from_numpy(split.owner_C)
            told = _told(bar, "pictures ranked again", len(split.files))
            found = two_stage(
                model.model.head,
                coarse_NC,
                pictures.tokens,
                texts.tokens,
                owner_C,
                shortlist,
                model.model.class_token,
                model.device,
                told,
            )
            i2t, t2i, compared = (
                found.image_to_text_IJ.numpy(),
                found.text_to_image_IJ.numpy(),
                found.compared,
            )
            lost = {"i2t": 100 * found.lost_image_to_text, "t2i": 100 * found.lost_text_to_image}
            before = _scores(coarse_NC.numpy(), coarse_NC.numpy(), split.owner_C, protocol)
    scores = _scores(i2t, t2i, split.owner_C, protocol)
    seconds = {"encoding": encoded - began, "ranking": time.process_time() - encoded}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    intervals = _intervals(i2t, t2i, split.owner_C, resamples) if resamples else {}
    return RecallReport(
        scores, len(split.files), len(split.texts), compared, seconds, peak, lost, before, intervals
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
