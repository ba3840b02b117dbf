"""The pictures and captions that a training runs on: read, split, decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, Field, model_validator
from torch import nn

from patchword.checkpoints.towers import first_trained, stored_digest
from patchword.composed import TextTowerSettings
from patchword.data.augment import Augmentation
from patchword.data.captions import CaptionData, FeatureInputs, PixelInputs, PlanEntry
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord, LabelRecord, QuestionRecord
from patchword.data.store import MANIFEST, Store, cache_folder, fingerprint, picture_files, pixel_store
from patchword.device import choose_device
from patchword.errors import ConfigError, counted
from patchword.files import json_digest, text_digest
from patchword.log import progress
from patchword.lookup import look_up
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.towers.settings import BertTowerConfig, SentenceEncoderConfig
from patchword.train.groups import highest_rate
from patchword.train.settings import StageSettings

Record = CaptionRecord | QuestionRecord | LabelRecord
SHOWN = 5
"""Samples of shards that are left out, named at the start of a training."""
HELD_OUT_SEED = 20240229
"""The held-out pictures are the same whatever the seed of a run, so that runs can be compared."""


class PixelSettings(Protocol):
    """What the settings of every task's data say about its pictures."""

    @property
    def images(self) -> str: ...

    @property
    def pixel_size(self) -> int | None: ...

    @property
    def cache(self) -> str | None: ...

    @property
    def augmentation(self) -> Augmentation | None: ...


class DataSettings(BaseModel, extra="forbid", frozen=True):
    """Which pictures and captions are read, and how they are prepared."""

    annotations: str = Field(
        description="file (Karpathy JSON, COCO JSON, CSV, JSONL, Flickr tokens), folder of photo.jpg "
        "beside photo.txt, or tar shards: their folder, or a glob"
    )
    images: str = Field(description="folder of the pictures, or of the shards")
    validation: str | None = Field(
        None, description="annotations of other pictures that select the model: their split val"
    )
    validation_images: str | None = Field(None, description="folder of these; absent: `images`")
    window: int = Field(
        0,
        ge=0,
        description="shards: the order is shuffled within windows of so many pictures, so that what is read "
        "lies near each other; 0: over all",
    )
    features: str | None = Field(
        None, description="feature store of the frozen tower (`patchword features`), in place of the pictures"
    )
    pixel_size: int | None = Field(
        None, ge=16, description="side at which pictures are cached; absent: the tower's own size"
    )
    cache: str | None = Field(
        None, description="folder of the pixel cache; absent: patchword in the user's cache folder"
    )
    augmentation: Augmentation | None = Field(
        None, description="random views while training; absent: the plain pictures"
    )
    splitter: Literal["english", "characters", "subwords"] = Field(
        "english", description="how captions are split into words"
    )
    tokenizer: str | None = Field(
        None, description="subwords: folder or hub id of the tokenizer, CLIP's for instance"
    )
    minimum_count: int = Field(
        5, gt=0, description="words that occur less often in the training captions become unknown"
    )
    max_words: int = Field(20, gt=0, description="words beyond this are cut off while training")
    held_out: int = Field(
        0, ge=0, description="training pictures set aside to select the model; 0: it is selected on split val"
    )
    limit: int = Field(
        0, ge=0, description="use only the first n training pictures (tests, dry runs); 0: all"
    )
    share: float = Field(
        1.0, gt=0, le=1, description="share of the training pictures that is used, the same for every seed"
    )


class CaptionDataSettings(DataSettings, frozen=True):
    """Data of a captioner, which may come with a segmentation."""

    panoptic: str | None = Field(
        None,
        description="COCO panoptic JSON: its classes label the training pictures' patches for "
        "patch_contrast; absent: assigned words do",
    )
    panoptic_masks: str | None = Field(
        None, description="folder of the PNG files that the panoptic JSON names"
    )

    @model_validator(mode="after")
    def _segmentation_is_whole(self) -> CaptionDataSettings:
        if (self.panoptic is None) != (self.panoptic_masks is None):
            raise ValueError(
                "panoptic (the JSON) and panoptic_masks (the folder of its PNG files) go together: give "
                "both or neither"
            )
        if self.panoptic is not None and self.augmentation is not None:
            raise ValueError(
                "panoptic labels the cells of the plain picture, and augmentation shows others: leave one "
                "of them out"
            )
        return self


def hold_out(total: int, count: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Places (from 0) of the items that stay and of the `count` that are set aside, both in rising order.

    They are the same whatever the seed of a run, so that runs can be compared. Raises ConfigError where
    nothing would stay; `what` names the items in the message, for instance "training pictures".
    """
    if count >= total:
        raise ConfigError(f"data.held_out is {count} and there are {total} {what}: hold out fewer")
    order = np.random.default_rng(HELD_OUT_SEED).permutation(total)
    return np.sort(order[count:]), np.sort(order[:count])


def read_splits(data: DataSettings) -> tuple[list[CaptionRecord], list[CaptionRecord]]:
    """Training pictures, and the pictures on which the model is selected.

    Raises ConfigError when nothing is left to train on.
    """
    records = read_captions(Path(data.annotations))
    if data.validation is not None:
        train, selection = _without_split(records), _other_pictures(data)
    elif data.held_out:
        train = split_records(records, "train")
        kept, aside = hold_out(len(train), data.held_out, "training pictures")
        train, selection = [train[i] for i in kept], [train[i] for i in aside]
    else:
        train, selection = split_records(records, "train"), split_records(records, "val")
    if data.share < 1:
        order = np.random.default_rng(HELD_OUT_SEED).permutation(len(train))
        train = [train[i] for i in np.sort(order[: max(1, round(data.share * len(train)))])]
    return train[: data.limit] if data.limit else train, selection


def _without_split(records: list[CaptionRecord]) -> list[CaptionRecord]:
    """What is trained on where other pictures select the model: all, where no record says its split."""
    return records if all(record.split is None for record in records) else split_records(records, "train")


def _other_pictures(data: DataSettings) -> list[CaptionRecord]:
    """The records of `data.validation`, with whole paths of their pictures. Raises ConfigError where pictures
    are held out as well."""
    if data.held_out:
        raise ConfigError("data.validation and data.held_out both say what selects the model: leave one out")
    folder = Path(data.validation_images or data.images).resolve()
    records = split_records(read_captions(Path(str(data.validation))), "val")
    return [replace(record, file=str(folder / record.file)) for record in records]


def shard_notes(data: DataSettings, train: Sequence[CaptionRecord]) -> list[str]:
    """What a person should know of the shards of a training: how many samples are left out, and why."""
    if not any(".tar#" in record.file for record in train[:1]):
        return []
    place = Path(data.annotations)
    reasons = look_up("data.formats.shards:left_out")(place)
    if not reasons:
        return []
    return [f"{place}: {counted(len(reasons), 'sample is', 'samples are')} left out:", *reasons[:SHOWN]]


def build_vocabulary(
    data: DataSettings, train: list[CaptionRecord], text: BaseModel | None = None
) -> Vocabulary | Subwords | Pieces:
    """The tokenizer that a published text tower brings, a given subword tokenizer, or the words of the
    training captions.

    `text` holds the settings of the text tower that reads the captions, where there is one. Raises
    ConfigError where the settings do not fit each other.
    """
    pieces = None if text is None else published_pieces(text)
    if pieces is not None:
        chosen = {"splitter", "tokenizer"} & data.model_fields_set
        if chosen:
            found = f"data.{sorted(chosen)[0]} is set"
            raise ConfigError(
                f"{found}, and the published text tower brings a tokenizer, whose ids are its rows: leave "
                "the setting out"
            )
        return pieces
    if data.splitter == "subwords" or data.tokenizer is not None:
        if data.splitter != "subwords" or data.tokenizer is None:
            found = f"data.splitter is {data.splitter!r} and data.tokenizer {data.tokenizer!r}"
            raise ConfigError(f"{found}: subwords need a tokenizer, words have none")
        return Subwords.from_folder(data.tokenizer)
    return Vocabulary.build(
        [caption for record in train for caption in record.captions], data.minimum_count, data.splitter
    )


def data_facts(
    train: Sequence[Record], selection: Sequence[Record], vocabulary: Vocabulary | Subwords | Pieces
) -> dict[str, int | str]:
    """What a run was begun with, so that a resumed one can tell whether the data are the same."""
    return {
        "training records": len(train),
        "records that select the model": len(selection),
        "words": vocabulary.size,
        "digest of the words": json_digest(vocabulary.to_json()),
        "digest of the data": text_digest("\n".join(map(repr, (*train, *selection)))),
    }


def published_pieces(text: BaseModel) -> Pieces | None:
    """The tokenizer of a text tower of the BERT family with published weights; None for any other tower."""
    if isinstance(text, SentenceEncoderConfig) and text.weights == "package":
        return Pieces.from_file(look_up("towers.sentence_encoder:published_tokenizer")())
    if isinstance(text, BertTowerConfig) and text.source is not None:
        return Pieces.from_pretrained(text.source, text.revision)
    return None


def pixel_inputs(data: PixelSettings, preprocessing: Preprocessing, files: Sequence[str]) -> PixelInputs:
    """Pictures decoded once into the pixel cache, at the size that the configuration asks for; those of
    shards are decoded whenever they are asked for."""
    size = data.pixel_size or preprocessing.hw[0]
    if any(".tar#" in file for file in files):
        return look_up("data.shard_inputs:ShardInputs")(
            Path(data.images), size, preprocessing, data.augmentation
        )
    cached = preprocessing.model_copy(update={"size": size})
    cache = Path(data.cache) if data.cache else cache_folder()
    with progress() as bar:
        task = bar.add_task("decoding pictures", total=len(files), status="")
        store = pixel_store(
            Path(data.images), files, cached, cache, lambda count: bar.update(task, advance=count)
        )
        bar.update(task, completed=len(files))
    return PixelInputs(store, preprocessing, data.augmentation)


def cached_features(
    data: DataSettings, tower: nn.Module, preprocessing: Preprocessing, files: list[str]
) -> Path:
    """The store of what a frozen tower makes of the pictures, in the cache folder: made at the first training
    on these pictures, and found again by every other one.
    """
    content = {
        "tower": stored_digest(tower, None),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "pictures": picture_files(Path(data.images), files),
    }
    cache = Path(data.cache) if data.cache else cache_folder()
    folder = cache / "features" / fingerprint(content)[:32]
    if not (folder / MANIFEST).exists():
        with progress() as bar:
            task = bar.add_task("looking at the pictures", total=len(files), status="")
            jobs = look_up("jobs.features")
            pictures = jobs.Pictures(Path(data.images), files, preprocessing)
            jobs.store_features(
                tower, pictures, folder, choose_device(None), lambda count: bar.update(task, advance=count)
            )
        tower.to("cpu")  # where the training found it
    return folder


def panoptic_classes(
    data: CaptionDataSettings,
    records: Sequence[CaptionRecord],
    preprocessing: Preprocessing,
    hw: tuple[int, int],
) -> Store | None:
    """The segmentation's class of every cell of the training pictures, made once into the cache; None where
    the configuration names no segmentation.
    """
    if data.panoptic is None or data.panoptic_masks is None:
        return None
    cache = Path(data.cache) if data.cache else cache_folder()
    with progress() as bar:
        task = bar.add_task("reading masks", total=len(records), status="")
        store: Store = look_up("data.formats.panoptic:panoptic_store")(
            *(Path(data.panoptic), Path(data.panoptic_masks), records, preprocessing, hw, cache),
            lambda count: bar.update(task, advance=count),
        )
        bar.update(task, completed=len(records))
    return store


def pair_plan(
    data: CaptionData,
    batch: int,
    captions_per_picture: int,
    generator: np.random.Generator,
    window: int = 0,
) -> list[list[PlanEntry]]:
    """The batches of an epoch in which pairs are told apart: all of one size, for a short one has few
    negatives and another loss.
    """
    batches = data.plan(batch, captions_per_picture, False, generator, window)
    return batches if len(batches) == 1 or len(batches[-1]) == batch else batches[:-1]


def with_vocabulary(
    text: TextTowerSettings, vocabulary: Vocabulary | Subwords | Pieces, max_words: int
) -> TextTowerSettings:
    """A text tower with random weights gets the size of the vocabulary, and room for the longest text with
    its start and end.
    """
    if text.architecture is None or not isinstance(text, BertTowerConfig | SentenceEncoderConfig):
        return text
    sizes = {
        "vocab_size": vocabulary.size,
        "pad_token_id": vocabulary.special.pad,
        "max_position_embeddings": max_words + 2,
    }
    return text.model_copy(update={"architecture": {**text.architecture, **sizes}})


def stored_inputs(
    folder: Path,
    tower: nn.Module,
    preprocessing: Preprocessing,
    stages: Sequence[StageSettings],
    part: str = "tower",
) -> FeatureInputs:
    """A feature store in place of the pictures of a training, checked to be of this tower, whose names begin
    with `part` in the model.

    Raises:
        StoreError: no complete store, or one of another tower or preprocessing.
        ConfigError: a stage would train what the store replaces.
    """
    store = Store.open(folder, {"preprocessing": preprocessing.model_dump(mode="json")})
    until = store.manifest["until_layer"]
    resume = any(highest_rate(stage, part) > 0 for stage in stages) and any(
        parameter.requires_grad for parameter in tower.parameters()
    )
    if resume and (until is None or first_trained(tower) < until):
        found = "the whole tower" if until is None else f"the tower's layers below {until}"
        raise ConfigError(
            f"data.features replaces {found}, and a stage trains it from layer {first_trained(tower)} on: "
            f'set learning_rates."{part}" '
            "to 0, or store with --until-layer, and train (trainable_from, adapters) from that layer on"
        )
    lower = "tokens" in store.fields and (resume or len(store.fields) == 1)
    name = "lower_tower" if lower and "lower_tower" in store.manifest else "tower"
    store.check({name: stored_digest(tower, until if lower else None)})
    return FeatureInputs(store, resume)
