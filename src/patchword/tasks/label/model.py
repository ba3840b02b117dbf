"""Labels pictures with their texts: a table or a photo goes in, and probabilities come out.

row -> data/labels -> two towers -> prompt fusion or late concatenation -> probability of each label
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import (
    build_checked,
    find_model,
    published_commits,
    read_settings,
    read_vocabulary,
)
from patchword.composed import TextTowerSettings, TowerSettings, build_text_tower, build_tower
from patchword.data.formats.labels import LabelTable, Missing, TableColumns, absent
from patchword.data.formats.readers import held_out_by_name
from patchword.data.isolated import PictureReader
from patchword.data.labels import LabelBatch, encode_texts, known
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.data.records import LabelRecord
from patchword.device import choose_device
from patchword.errors import ConfigError, DataError, PictureError, counted
from patchword.models.fusion.late_concatenation import LateConcatenation, LateConcatenationConfig
from patchword.models.fusion.prompt_fusion import PromptFusion, PromptFusionConfig
from patchword.tasks.describe import describe
from patchword.tasks.label.objective import LabelModel, lower_of
from patchword.tasks.label.result import Labels, LayerAttention
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.towers import layered

FusionSettings = Annotated[PromptFusionConfig | LateConcatenationConfig, Field(discriminator="kind")]


class LabellingSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a labelling model, apart from the facts about its training."""

    vision: TowerSettings
    text: TextTowerSettings
    model: FusionSettings
    preprocessing: Preprocessing
    vocabulary_size: int = Field(gt=0, le=10_000_000)
    max_words: int = Field(gt=0, le=100_000)
    labels: tuple[str, ...] = Field(min_length=1)
    columns: TableColumns

    @property
    def several(self) -> bool:
        """True where a row may have several labels."""
        return self.columns.separator is not None


def reads(model: FusionSettings) -> tuple[bool, bool]:
    """Returns whether a model reads pictures, and whether it reads texts."""
    inputs = model.inputs if isinstance(model, LateConcatenationConfig) else "both"
    return inputs != "text", inputs != "image"


def build_label_model(vision: Any, text: Any, model: FusionSettings) -> LabelModel:
    """Builds the model of these settings over two towers; one that is not read may be None."""
    return (
        PromptFusion(model, vision, text)
        if isinstance(model, PromptFusionConfig)
        else LateConcatenation(model, vision, text)
    )


class LabellingModel:
    """A labelling model with its vocabulary, preprocessing and labels."""

    def __init__(
        self,
        model: LabelModel,
        settings: LabellingSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device
        self.reads = reads(settings.model)

    def __repr__(self) -> str:
        kinds = f"{self.settings.model.kind} over {self.settings.vision.kind} and {self.settings.text.kind}"
        return describe(self, kinds, counted(len(self.settings.labels), "label"))

    def batch(self, pictures: Sequence[Picture | None], texts: Sequence[str]) -> LabelBatch:
        """Builds a batch without labels.

        None is a missing picture, and a blank text a missing text. Raises PictureError for a picture that
        cannot be decoded.
        """
        height, width = self.settings.preprocessing.hw
        pixels_B3HW = torch.zeros(len(pictures), 3, height, width)
        has_image_B = torch.tensor([picture is not None for picture in pictures])
        there = [
            self.settings.preprocessing.apply(open_picture(picture))
            for picture in pictures
            if picture is not None
        ]
        if there and self.reads[0]:
            pixels_B3HW[has_image_B] = torch.from_numpy(
                self.settings.preprocessing.normalise(np.stack(there))
            )
        ids_BL, mask_BL = encode_texts(texts, self.vocabulary, self.settings.max_words)
        has_text_B = torch.tensor([bool(text.strip()) for text in texts])
        wheres = tuple("" for _ in texts)
        return LabelBatch(wheres, pixels_B3HW, ids_BL, mask_BL, None, torch.zeros(0), has_image_B, has_text_B)

    @torch.inference_mode()
    def probabilities(self, pictures: Sequence[Picture | None], texts: Sequence[str]) -> np.ndarray:
        """Returns the probability of each label (n, labels); they sum to one unless rows may have several.

        None is a missing picture and a blank text a missing text; such rows are labelled from the other side
        alone. Raises PictureError for a picture that cannot be decoded, DataError for a row with nothing that
        the model reads.
        """
        for picture, text in zip(pictures, texts, strict=True):
            if not ((picture is not None and self.reads[0]) or (text.strip() and self.reads[1])):
                raise DataError(
                    "there is neither a picture nor a text that this model reads: give what it was trained "
                    "with"
                )
        batch = self.batch(pictures, texts).to(self.device)
        lower = lower_of(self.model, batch, 0)
        logits_BY = self.model.fuse(lower, batch.has_image_B, batch.has_text_B).float()
        return (logits_BY.sigmoid() if self.settings.several else logits_BY.softmax(1)).cpu().numpy()

    def chosen(self, probabilities_Y: np.ndarray) -> tuple[str, ...]:
        """Returns the likeliest label, or all with probability 0.5 or more where rows may have several."""
        labels = self.settings.labels
        if not self.settings.several:
            return (labels[int(probabilities_Y.argmax())],)
        return tuple(
            label for label, share in zip(labels, probabilities_Y.tolist(), strict=True) if share >= 0.5
        )

    @torch.inference_mode()
    def explain(self, picture: Picture, text: str) -> Labels:
        """Returns the labels of one picture with its text, and the query prompts' attention per layer.

        Raises what `probabilities` raises.
        """
        shares_Y = self.probabilities([picture], [text])[0]
        ranked = sorted(zip(self.settings.labels, shares_Y.tolist(), strict=True), key=lambda pair: -pair[1])
        ids = self.vocabulary.encode(text)[: self.settings.max_words]
        words = ("(start)", *self.vocabulary.tokens(ids), "(end)")
        layers: list[LayerAttention] = []
        if isinstance(self.model, PromptFusion):
            batch = self.batch([picture], [text]).to(self.device)
            tokens = self.model.lower(*batch.pixels_and_ids(), None, batch.mask_BL)
            first = self.model.image_tower.depth - self.model.config.fused_layers
            for number, gathered in enumerate(self.model.explain(tokens), start=first + 1):
                if gathered is not None:
                    patches_Qhw = (
                        gathered.patches_BQN[0, :, 1:]
                        .unflatten(1, self.model.image_tower.hw)
                        .float()
                        .cpu()
                        .numpy()
                    )
                    layers.append(
                        LayerAttention(number, patches_Qhw, gathered.words_BQL[0].float().cpu().numpy())
                    )
        return Labels(dict(ranked), words, tuple(layers))

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete. `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder, with all weights by value; it needs no other folder."""
        settings = self.settings
        parts = {
            "vision": getattr(self.model, "image_tower", None),
            "text": getattr(self.model, "text_tower", None),
        }
        for name, tower in parts.items():
            if tower is not None:
                settings = settings.model_copy(update={name: layered.by_value(tower)})
        facts = self.facts.with_sources(published_commits(self.model))
        weights, words = self.model.state_dict(), self.vocabulary.to_json()
        checkpoint.write_model(folder, "label", settings, facts, weights, words, half)


def load_labelling_model(name: str | Path, device: str | None = None) -> LabellingModel:
    """Loads a labelling model from its folder or by a hub id. Raises ModelError where it is no such model."""
    folder = find_model(name)
    settings, facts = read_settings(folder, "label", LabellingSettings)
    image, text = reads(settings.model)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)

    def build() -> LabelModel:
        vision_tower = build_tower(settings.vision) if image else None
        text_tower = build_text_tower(settings.text) if text else None
        return build_label_model(vision_tower, text_tower, settings.model)

    return LabellingModel(build_checked(folder, build), settings, vocabulary, facts, choose_device(device))


class RowPrediction(NamedTuple):
    """One row of a table and the probabilities of its labels."""

    record: LabelRecord
    probabilities_Y: np.ndarray


def open_table(classifier: LabellingModel, path: Path) -> LabelTable:
    """Opens a table with the columns that the model was trained with."""
    return LabelTable(path, classifier.settings.columns)


def rows_of_split(table: LabelTable, split: str) -> Iterator[LabelRecord]:
    """Streams the rows of one split; "all" takes every row.

    Raises DataError where the table has no row of that split.
    """
    found, others = False, set()
    has_splits = split == "all" or any(record.split is not None for record in table.rows())
    for record in table.rows():
        own = (
            record.split
            if has_splits
            else ("val" if held_out_by_name(record.file or record.text) else "train")
        )
        others.add(str(own))
        if split in ("all", own):
            found = True
            yield record
    if not found:
        raise DataError(
            f"{table.path}: no row belongs to the split {split!r}; there is: "
            f"{', '.join(sorted(others)) or 'nothing'}"
        )


def check_rows(
    classifier: LabellingModel, records: Iterator[LabelRecord], images: Path, missing: Missing, labelled: bool
) -> int:
    """Checks the rows and returns their number.

    Raises DataError for the first row that lacks something or, with `labelled`, has no label or an unknown
    one.
    """
    classes, count = dict.fromkeys(classifier.settings.labels, 0), 0
    for record in records:
        absent(record, images, classifier.reads, missing)
        if labelled and not record.labels and not classifier.settings.several:
            raise DataError(
                f"{record.where}: the row has no label to compare with: give one, or use `patchword predict`"
            )
        for label in record.labels if labelled else ():
            known(label, record.where, classes)
        count += 1
    return count


def predict_rows(
    classifier: LabellingModel,
    records: Iterator[LabelRecord],
    images: Path,
    missing: Missing,
    unreadable: Callable[[LabelRecord, PictureError], None],
    batch: int = 64,
) -> Iterator[list[RowPrediction]]:
    """Yields the probabilities of rows, batch by batch.

    A picture that cannot be decoded counts as missing where `missing` allows that; otherwise `unreadable` is
    called and the row is left out.

    Raises:
        DataError: a row lacks something that `missing` does not allow; the message names the row.
    """
    waiting: list[tuple[LabelRecord, Any, str]] = []
    with PictureReader() as reader:
        for record in records:
            no_image, no_text = absent(record, images, classifier.reads, missing)
            picture: Any = None
            if classifier.reads[0] and not no_image:
                try:
                    picture = reader.open(images / record.file)
                except PictureError as error:
                    if missing != "text-only" or not (classifier.reads[1] and record.text):
                        unreadable(record, error)
                        continue
            waiting.append((record, picture, "" if no_text else record.text))
            if len(waiting) == batch:
                yield _predicted(classifier, waiting)
                waiting = []
    if waiting:
        yield _predicted(classifier, waiting)


def _predicted(
    classifier: LabellingModel, waiting: list[tuple[LabelRecord, Any, str]]
) -> list[RowPrediction]:
    records, pictures, texts = zip(*waiting, strict=True)
    return [
        RowPrediction(*pair) for pair in zip(records, classifier.probabilities(pictures, texts), strict=True)
    ]


def check_labels(table: LabelTable, labels: Sequence[str]) -> None:
    """Raises ConfigError where a model could not choose between labels: a table with one class, or none."""
    if table.columns.separator is None and len(labels) < 2:
        found = (
            f"every training row of {table.path} has the label {labels[0]!r}"
            if labels
            else f"no training row of {table.path} has a label"
        )
        raise ConfigError(f"{found}: there is nothing to choose from; give rows of at least two labels")
    if not labels:
        raise ConfigError(
            f"no training row of {table.path} has a label in column {table.columns.label!r}: name the "
            "column of the labels"
        )
