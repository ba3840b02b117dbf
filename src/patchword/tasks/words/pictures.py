"""The pictures of words: which ones stand for a word, what a tower sees in them, and the mean of that.

annotations -> texts of each picture -> words -> pictures of each word; pictures -> tower -> pooled -> centred
-> SVD
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patchword.checkpoints.folder import weights_digest
from patchword.composed import build_tower, reader_preprocessing
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord
from patchword.data.store import MANIFEST, Store, cache_folder, fingerprint, picture_files, write_store
from patchword.errors import DataError, counted
from patchword.log import progress
from patchword.models.word_vectors.distributional import truncated_svd, unit_rows
from patchword.tasks.words.settings import WordPicturesSettings
from patchword.text.words import split_english
from patchword.types import VisualFeatures

SHOWN = 6
"""Pictures that are kept for each word, those nearest to its mean, to be shown."""
BATCH = 8


class WordPictures(NamedTuple):
    """Pictures and words in one space."""

    words_WP: Tensor
    """The mean direction of the pictures of each word; zeros for a word without enough of them."""
    counts_W: np.ndarray
    """Pictures of each word, all of them."""
    dispersion_W: np.ndarray
    """Mean cosine distance between two pictures of a word (Kiela et al. 2014); nan without pictures."""
    shown: tuple[tuple[int, ...], ...]
    """For each word the places of the pictures nearest to its mean."""
    files: tuple[str, ...]
    pictures_FP: Tensor
    """Every picture, of length one."""
    training_WP: Tensor
    """`words_WP` with zeros for the words whose pictures are hidden from the training."""


def pooled(features: VisualFeatures) -> Tensor:
    """One vector per picture: the tower's pooled one, its class token, or the mean of the grid."""
    if features.pooled_BE is not None:
        return features.pooled_BE
    return features.grid_BNC.mean(1) if features.class_BC is None else features.class_BC


def pooled_key(tower: nn.Module, preprocessing: Preprocessing, images: Path, files: Sequence[str]) -> str:
    """What tells a store of pooled features from others."""
    return fingerprint(
        {
            "tower": weights_digest(tower),
            "preprocessing": preprocessing.model_dump(mode="json"),
            "pictures": picture_files(images, files),
            "what": "pooled",
        }
    )


@torch.inference_mode()
def pooled_store(
    tower: nn.Module, preprocessing: Preprocessing, images: Path, files: Sequence[str], cache: Path
) -> Store:
    """What a tower sees in each picture, one vector in half precision; made once into the cache.

    Raises PictureError naming the first picture that cannot be decoded.
    """
    key = pooled_key(tower, preprocessing, images, files)
    folder = cache / "pooled" / key[:20]
    if (folder / MANIFEST).exists():
        return Store.open(folder, {"fingerprint": key})
    tower.eval()

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        with PictureReader() as reader:
            for first in range(0, len(files), BATCH):
                some = files[first : first + BATCH]
                pixels_BHWC = np.stack([preprocessing.apply(reader.open(images / name)) for name in some])
                seen = tower(torch.from_numpy(preprocessing.normalise(pixels_BHWC)))
                yield {"pooled": pooled(seen).half().numpy()}

    with progress() as bar:
        task = bar.add_task("looking at pictures", total=len(files), status="")
        return write_store(
            folder, files, {"fingerprint": key}, chunks(), lambda count: bar.update(task, advance=count)
        )


def read_picture_texts(annotations: Path) -> list[CaptionRecord]:
    """The training pictures of a data set; those of all splits where it names none."""
    records = read_captions(annotations)
    return split_records(records, "train") if any(record.split for record in records) else records


def pictures_of_words(words: Sequence[str], records: Sequence[CaptionRecord]) -> list[list[int]]:
    """For each word the places of the pictures whose texts have it."""
    places: dict[str, list[int]] = {word: [] for word in words}
    for place, record in enumerate(records):
        for word in {word for caption in record.captions for word in split_english(caption)}:
            if word in places:
                places[word].append(place)
    return [places[word] for word in words]


def see_words(words: Sequence[str], settings: WordPicturesSettings, seed: int) -> WordPictures:
    """Picture vectors of the words.

    Raises DataError where no word has enough pictures (said with numbers).
    """
    records = read_picture_texts(Path(settings.annotations))
    tower = build_tower(settings.tower)
    preprocessing = reader_preprocessing(tower.preprocessing)
    cache = Path(settings.cache) if settings.cache else cache_folder()
    files = [record.file for record in records]
    store = pooled_store(tower, preprocessing, Path(settings.images), files, cache)
    seen_FI = np.asarray(store.fields["pooled"][store.rows(files)], np.float32)
    return place_words(words, pictures_of_words(words, records), seen_FI, files, settings, seed)


def place_words(
    words: Sequence[str],
    places: Sequence[Sequence[int]],
    seen_FI: np.ndarray,
    files: Sequence[str],
    settings: WordPicturesSettings,
    seed: int,
) -> WordPictures:
    """Means of the pictures of each word, in a space that an SVD of all pictures gives.

    Raises DataError where no word has enough pictures.
    """
    counts_W = np.array([len(one) for one in places])
    if not (counts_W >= settings.minimum).any():
        raise DataError(
            f"none of {len(words)} words is named by the texts of {settings.minimum} of {len(files)} "
            "pictures (the "
            f"most is {int(counts_W.max(initial=0))}): give annotations that name them, or lower "
            "pictures.minimum"
        )
    pictures_FP = _reduced(seen_FI, settings.width, settings.power, seed)
    random = np.random.default_rng([seed, 1])
    width = pictures_FP.shape[1]
    words_WP, dispersion_W = torch.zeros(len(words), width), np.full(len(words), np.nan)
    shown: list[tuple[int, ...]] = []
    for number, mine in enumerate(places):
        chosen = np.asarray(mine)
        if len(chosen) > settings.most:
            chosen = np.sort(random.choice(chosen, settings.most, replace=False))
        if len(mine) < settings.minimum:
            shown.append(tuple(int(place) for place in chosen[:SHOWN]))
            continue
        own_NP = pictures_FP[torch.from_numpy(chosen)]
        words_WP[number] = unit_rows(own_NP.mean(0, keepdim=True))[0]
        dispersion_W[number] = _dispersion(own_NP)
        nearest = (own_NP @ words_WP[number]).argsort(descending=True, stable=True)[:SHOWN]
        shown.append(tuple(int(chosen[place]) for place in nearest))
    training_WP = _hidden(words_WP, settings.held_out, seed)
    return WordPictures(
        words_WP, counts_W, dispersion_W, tuple(shown), tuple(files), pictures_FP, training_WP
    )


def _reduced(seen_FI: np.ndarray, width: int, power: float, seed: int) -> Tensor:
    """Pictures without what all have in common, along the directions in which they differ most; of length
    one.

    A power below 1 keeps the first direction from deciding every cosine, and lets the last ones, which hold
    what tells single pictures apart and little of what they show, weigh more.
    """
    centred_FI = unit_rows(torch.from_numpy(seen_FI))
    centred_FI = centred_FI - centred_FI.mean(0)
    width = min(width, *centred_FI.shape)
    svd = truncated_svd(centred_FI, width, torch.Generator().manual_seed(seed))
    return unit_rows(svd.left_WK * svd.singular_K.pow(power))


def _dispersion(own_NP: Tensor) -> float:
    """Mean of 1 - cosine over pairs of rows of length one."""
    count = len(own_NP)
    return float(1 - (own_NP.sum(0).square().sum() - count) / max(1, count * (count - 1)))


def _hidden(words_WP: Tensor, count: int, seed: int) -> Tensor:
    """Picture vectors without those of some words that have one. Raises DataError where none would be
    left."""
    having = torch.nonzero((words_WP != 0).any(1))[:, 0].numpy()
    if count >= len(having):
        raise DataError(
            f"pictures.held_out is {count} and "
            f"{counted(len(having), 'word has', 'words have')} pictures: hold out fewer"
        )
    training_WP = words_WP.clone()
    training_WP[torch.from_numpy(np.random.default_rng([seed, 2]).choice(having, count, replace=False))] = 0
    return training_WP
