"""Training a labelling model on a table: the recipe that the loop runs. Rows that were not trained on select the model.

table -> labels -> towers -> pixels or stored tokens -> model -> stages -> validation -> model folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import find_model
from patchword.composed import (
    TextTowerSettings,
    TowerSettings,
    build_text_tower,
    build_tower,
    reader_preprocessing,
)
from patchword.data.augment import Augmentation
from patchword.data.formats.labels import LabelTable, Missing, TableColumns, absent
from patchword.data.formats.readers import held_out_by_name
from patchword.data.labels import LabelBatch, LabelData, TokenInputs, known
from patchword.data.pictures import Preprocessing
from patchword.data.store import Store, cache_folder, fingerprint
from patchword.errors import ConfigError, DataError
from patchword.log import progress
from patchword.metrics.classification import classification, several_labels
from patchword.models.fusion.late_concatenation import LateConcatenationConfig
from patchword.models.fusion.prompt_fusion import PromptFusionConfig
from patchword.tasks.label.model import (
    FusionSettings,
    LabellingModel,
    LabellingSettings,
    build_label_model,
    check_labels,
    load_labelling_model,
    reads,
)
from patchword.tasks.label.objective import LabelObjective, lower_of
from patchword.tasks.label.tokens import DecodedInputs, expected_entries, store_tokens
from patchword.tasks.retrieve.load import load_two_towers
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.towers.settings import BertTowerConfig, SentenceEncoderConfig
from patchword.train.data import HELD_OUT_SEED, pixel_inputs, published_pieces
from patchword.train.loop import Validation
from patchword.train.settings import RunSettings, StageSettings


class LabelDataSettings(BaseModel, extra="forbid", frozen=True):
    """Which rows are read, and how they are prepared."""

    table: str = Field(description="CSV or JSON lines file with image, text, label and if wanted split")
    images: str = Field(description="folder of the pictures")
    columns: TableColumns = TableColumns()
    missing: Missing = Field(
        "error",
        description="rows without text or picture: an error; labelled from the picture alone; labelled from the text alone",
    )
    cache_tokens: bool = Field(
        False,
        description="run the frozen lower layers once and train from what they gave; no augmentation then",
    )
    features: str | None = Field(
        None, description="such tokens, made by `patchword features --tokens`; implies cache_tokens"
    )
    pixel_size: int | None = Field(
        None, ge=16, description="side at which pictures are cached; absent: the tower's own size"
    )
    cache: str | None = Field(
        None, description="folder of the caches; absent: patchword in the user's cache folder"
    )
    augmentation: Augmentation | None = Field(
        None, description="random views while training; absent: the plain pictures"
    )
    minimum_count: int = Field(
        2,
        gt=0,
        description="words that occur less often in the training texts become unknown (new towers only)",
    )
    max_words: int = Field(
        40, gt=0, description="words of a text beyond this, or beyond what the tower takes, are cut off"
    )
    held_out: int = Field(
        0, ge=0, description="training rows set aside to select the model; 0: it is selected on split val"
    )
    limit: int = Field(0, ge=0, description="use only the first n training rows (tests, dry runs); 0: all")

    @model_validator(mode="after")
    def _tokens_are_plain(self) -> LabelDataSettings:
        if self.stores_tokens and self.augmentation is not None:
            raise ValueError(
                "stored tokens are those of the plain pictures: leave out augmentation, or cache_tokens and features"
            )
        return self

    @property
    def stores_tokens(self) -> bool:
        return self.cache_tokens or self.features is not None


class PromptFusionSection(PromptFusionConfig, frozen=True):
    """Prompt fusion; the number of classes is that of the table's labels."""

    classes: int = Field(0, ge=0, description="number of labels; 0: as many as the training rows have")


class LateConcatenationSection(LateConcatenationConfig, frozen=True):
    """A linear head over one or both towers; the number of classes is that of the table's labels."""

    classes: int = Field(0, ge=0, description="number of labels; 0: as many as the training rows have")


class LabelRun(RunSettings, frozen=True):
    """The configuration of a training that labels rows. Towers are those of a trained model, or described by two sections."""

    task: Literal["label"] = "label"
    data: LabelDataSettings
    towers: str | None = Field(
        None, description="two-tower or labelling model (folder, hub id) whose towers and words are used"
    )
    trainable_from: int | None = Field(
        None, ge=0, description="first trained layer of both towers; absent: frozen; 0: all (fine-tuning)"
    )
    vision_from: str | None = Field(
        None, description="in its place: labelling model whose picture tower is used"
    )
    text_from: str | None = Field(None, description="and the one whose text tower and words are used")
    vision: TowerSettings | None = Field(
        None, description="in place of vision_from: a picture tower of its own"
    )
    text: TextTowerSettings | None = Field(None, description="in place of text_from: a text tower of its own")
    model: PromptFusionSection | LateConcatenationSection = Field(discriminator="kind")
    stage: tuple[StageSettings, ...] = Field(min_length=1, description="what happens, in order")

    @model_validator(mode="after")
    def _one_origin_of_towers(self) -> LabelRun:
        for side in ("vision", "text"):
            given = [name for name in ("towers", f"{side}_from", side) if getattr(self, name) is not None]
            if len(given) != 1:
                found = " and ".join(given) or "none"
                raise ValueError(
                    f"the {side} tower comes from exactly one of towers, {side}_from and {side}; found {found}"
                )
        return self


class Splits(NamedTuple):
    """Places of the rows in the table, the labels of the training rows, and the pictures that the rows name."""

    train: np.ndarray
    selection: np.ndarray
    labels: tuple[str, ...]
    files: list[str]


def read_splits(table: LabelTable, data: LabelDataSettings, sides: tuple[bool, bool]) -> Splits:
    """One pass over the table: every row of train and val is checked, and its place kept.

    Raises:
        DataError: a row that lacks its picture, text or label, or a val row with a label that no training row has; it names the row.
        ConfigError: fewer than two labels, nothing to train on, or more rows held out than there are.
    """
    places: dict[tuple[bool, str], list[int]] = {}
    labels: dict[tuple[bool, str], dict[str, str]] = {}
    files: dict[str, None] = {}
    for record in table.rows():
        said = record.split is not None
        split = record.split or ("val" if held_out_by_name(record.file or record.text) else "train")
        if split == "test":
            continue
        no_image, _ = absent(record, Path(data.images), sides, data.missing)
        if not record.labels and table.columns.separator is None:
            raise DataError(f"{record.where}: the row has no label: give one, or remove the row")
        places.setdefault((said, split), []).append(record.place)
        for label in record.labels:
            labels.setdefault((said, split), {}).setdefault(label, record.where)
        if not no_image and sides[0]:
            files[record.file] = None
    said = any(key[0] for key in places)
    train, val = (np.array(places.get((said, split), []), dtype=np.int64) for split in ("train", "val"))
    names = tuple(sorted(labels.get((said, "train"), {})))
    check_labels(table, names)
    classes = dict.fromkeys(names, 0)
    for label, where in labels.get((said, "val"), {}).items():
        known(label, where, classes)
    if data.held_out:
        if data.held_out >= len(train):
            raise ConfigError(
                f"data.held_out is {data.held_out} and there are {len(train)} training rows: hold out fewer"
            )
        order = np.random.default_rng(HELD_OUT_SEED).permutation(len(train))
        train, val = train[np.sort(order[data.held_out :])], train[np.sort(order[: data.held_out])]
    if not len(val):
        raise ConfigError(
            f"{table.path} has no rows of split val to select the model on: mark some, or set data.held_out"
        )
    return Splits(train[: data.limit] if data.limit else train, val, names, list(files))


class Towers(NamedTuple):
    """Two towers, their settings, and what is needed to feed them."""

    vision: nn.Module
    vision_settings: Any
    preprocessing: Preprocessing
    text: nn.Module
    text_settings: Any
    vocabulary: Vocabulary | Subwords | Pieces


def towers_of(name: str) -> Towers:
    """Both towers of a two-tower model, or of a labelling model that reads both sides. Raises ModelError, ConfigError."""
    if checkpoint.read_config(find_model(name)).get("task") == "label":
        trained = load_labelling_model(name, "cpu")
        for side, what in enumerate(("pictures", "texts")):
            _must_read(trained, name, side, what)
        vision, text = trained.model.image_tower, trained.model.text_tower
    else:
        trained = load_two_towers(name, "cpu")
        vision, text = trained.model.vision, trained.model.text
    settings = trained.settings
    return Towers(vision, settings.vision, settings.preprocessing, text, settings.text, trained.vocabulary)


def make_towers(run: LabelRun, table: LabelTable, places: np.ndarray) -> Towers:
    """The towers of a trained model, or new ones with the words of the training texts. Raises ModelError, ConfigError."""
    if run.towers is not None:
        found = towers_of(run.towers)
        vision, text = (
            part.model_copy(update={"trainable_from": run.trainable_from})
            for part in (found.vision_settings, found.text_settings)
        )
        vision_tower, text_tower = (
            _with_weights(build_tower(vision), found.vision),
            _with_weights(build_text_tower(text), found.text),
        )
        return found._replace(
            vision=vision_tower, vision_settings=vision, text=text_tower, text_settings=text
        )
    return Towers(*_picture_side(run), *_text_side(run, table, places))


def _picture_side(run: LabelRun) -> tuple[nn.Module, Any, Preprocessing]:
    if run.vision_from is None:
        tower = build_tower(run.vision)
        return tower, run.vision, reader_preprocessing(tower.preprocessing)
    trained = load_labelling_model(run.vision_from, "cpu")
    _must_read(trained, run.vision_from, 0, "pictures")
    settings = trained.settings.vision.model_copy(update={"trainable_from": run.trainable_from})
    return (
        _with_weights(build_tower(settings), trained.model.image_tower),
        settings,
        trained.settings.preprocessing,
    )


def _text_side(
    run: LabelRun, table: LabelTable, places: np.ndarray
) -> tuple[nn.Module, Any, Vocabulary | Subwords | Pieces]:
    if run.text_from is not None:
        trained = load_labelling_model(run.text_from, "cpu")
        _must_read(trained, run.text_from, 1, "texts")
        settings = trained.settings.text.model_copy(update={"trainable_from": run.trainable_from})
        return (
            _with_weights(build_text_tower(settings), trained.model.text_tower),
            settings,
            trained.vocabulary,
        )
    pieces = published_pieces(run.text)
    if pieces is not None:
        return build_text_tower(run.text), run.text, pieces
    if getattr(run.text, "source", None) is not None:
        return (
            build_text_tower(run.text),
            run.text,
            Pieces.from_pretrained(run.text.source, run.text.revision),
        )
    vocabulary = Vocabulary.build((table.read(int(place)).text for place in places), run.data.minimum_count)
    text = run.text
    if isinstance(text, BertTowerConfig | SentenceEncoderConfig) and text.architecture is not None:
        sizes = {
            "vocab_size": vocabulary.size,
            "pad_token_id": vocabulary.special.pad,
            "max_position_embeddings": run.data.max_words + 2,
        }
        text = text.model_copy(update={"architecture": {**text.architecture, **sizes}})
    return build_text_tower(text), text, vocabulary


def _must_read(trained: LabellingModel, name: str, side: int, what: str) -> None:
    if not trained.reads[side]:
        raise ConfigError(f"{name} is a model that reads no {what}: it has no tower for them")


def _with_weights(tower: nn.Module, trained: nn.Module) -> nn.Module:
    tower.load_state_dict(trained.state_dict())
    return tower


def whole(section: PromptFusionSection | LateConcatenationSection, labels: int) -> FusionSettings:
    """The model's settings with the number of labels. Raises ConfigError where the run says another one."""
    if section.classes not in (0, labels):
        raise ConfigError(
            f"model.classes is {section.classes} and the training rows have {labels} labels: leave it out"
        )
    kind = PromptFusionConfig if isinstance(section, PromptFusionConfig) else LateConcatenationConfig
    return kind(**{**section.model_dump(), "classes": labels})


class LabelRows:
    """Everything of a run but its model: towers, labels, and the rows of both splits, from pixels or from stored tokens."""

    def __init__(self, run: LabelRun, sides: tuple[bool, bool], before_last: int) -> None:
        """`before_last`: how many of the towers' last layers stored tokens have not passed."""
        data = run.data
        self.before_last = before_last
        table = LabelTable(Path(data.table), data.columns)
        if data.stores_tokens:
            sides = (True, True)  # a store holds both sides, whatever a model reads of it
        splits = read_splits(table, data, sides)
        self.labels, self.table = splits.labels, table
        torch.manual_seed(run.seed)
        self.towers = make_towers(run, table, splits.train)
        self.max_words = min(data.max_words, self.towers.text.max_length - 2)
        self.classes = {label: number for number, label in enumerate(splits.labels)}
        self._data = data
        everything = np.sort(np.concatenate([splits.train, splits.selection]))
        inputs: Any = None
        if data.features is not None:
            inputs = DecodedInputs(Path(data.images), self.towers.preprocessing)
        elif sides[0]:
            exact = data.model_copy(update={"pixel_size": None}) if data.stores_tokens else data
            inputs = pixel_inputs(exact, self.towers.preprocessing, splits.files)
        if data.stores_tokens:
            inputs = TokenInputs(self._store(self._rows(everything, inputs, sides)))
        self.train, self.selection = (
            self._rows(splits.train, inputs, sides),
            self._rows(splits.selection, inputs, sides),
        )

    def _rows(self, places: np.ndarray, inputs: Any, sides: tuple[bool, bool]) -> LabelData:
        data, vocabulary = self._data, self.towers.vocabulary
        return LabelData(
            self.table,
            places,
            self.classes,
            vocabulary,
            self.max_words,
            Path(data.images),
            data.missing,
            sides,
            inputs,
        )

    def _store(self, rows: LabelData) -> Store:
        """The store that the configuration names, or the cached one, made where it is not there yet."""
        vision, text = self.towers.vision, self.towers.text
        if any(parameter.requires_grad for tower in (vision, text) for parameter in tower.parameters()):
            raise ConfigError(
                "stored tokens replace the lower layers, and trainable_from lets them learn: leave one of them out"
            )
        expected = expected_entries(vision, text, self.before_last, rows)
        if self._data.features is not None:
            return Store.open(Path(self._data.features), expected)
        cache = Path(self._data.cache) if self._data.cache else cache_folder()
        folder = cache / "tokens" / fingerprint([expected, rows.places.tolist()])[:20]
        if (folder / "manifest.json").exists():
            return Store.open(folder, expected)
        with progress() as bar:
            task = bar.add_task("tokens of both towers", total=len(rows.places), status="")
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            store = store_tokens(
                vision,
                text,
                self.before_last,
                rows,
                folder,
                device,
                lambda count: bar.update(task, advance=count),
            )
        return store


class LabelRecipe:
    """What `train/loop.py` needs to train on a table; see its Recipe."""

    def __init__(self, run: LabelRun, folder: Path, command: str) -> None:
        self.run, self.stages = run, run.stage
        before_last = run.model.fused_layers if isinstance(run.model, PromptFusionConfig) else 0
        self.rows = LabelRows(run, reads(run.model), before_last)
        towers = self.rows.towers
        settings = whole(run.model, len(self.rows.labels))
        torch.manual_seed(run.seed)
        self.model = build_label_model(towers.vision, towers.text, settings)
        self.settings = LabellingSettings(
            vision=towers.vision_settings,
            text=towers.text_settings,
            model=settings,
            preprocessing=towers.preprocessing,
            vocabulary_size=towers.vocabulary.size,
            max_words=self.rows.max_words,
            labels=self.rows.labels,
            columns=run.data.columns,
        )
        self.card = card_of(run, folder, command, self.rows, self.model)

    def objective(self, stage: int) -> nn.Module:
        return LabelObjective(self.model, self.settings.several, self.rows.before_last)

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        return self.rows.train.plan(
            self.stages[stage].batch, np.random.default_rng([self.run.seed, stage, epoch])
        )

    def batch(self, stage: int, entries: list[int], generator: torch.Generator) -> LabelBatch:
        return self.rows.train.batch(entries, generator)

    def image_ids(self, batch: LabelBatch) -> list[Any]:
        return list(batch.wheres)

    def before_step(self, stage: int, progress: float) -> None:
        pass

    def after_step(self, step: int, objective: nn.Module) -> dict[str, float]:
        return {}

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation | None:
        """Accuracy selects, or where rows may have several labels the micro F1."""
        self.model.eval()

        def logits(batch: LabelBatch) -> Tensor:
            return self.model.fuse(
                lower_of(self.model, batch, self.rows.before_last), batch.has_image_B, batch.has_text_B
            )

        scores = scores_on(self.rows.selection, self.rows.labels, logits, accelerator.device)
        return Validation(scores["micro_F1"], {"scores": scores})

    def save_model(self, folder: Path) -> None:
        device = next(self.model.parameters()).device
        LabellingModel(self.model, self.settings, self.rows.towers.vocabulary, self.card, device).write(
            folder
        )

    def load_weights(self, folder: Path) -> None:
        checkpoint.load_weights(self.model, folder)

    def extra_state(self) -> dict[str, Tensor]:
        return {}

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        pass


def scores_on(
    rows: LabelData, labels: tuple[str, ...], logits: Any, device: torch.device, batch: int = 256
) -> dict[str, float]:
    """Scores of `logits(batch)` on the rows of a split. `micro_F1` is the accuracy where every row has one label."""
    truth: list[Any] = []
    predicted: list[Any] = []
    for places in rows.plan(batch, None):
        found = rows.batch(places, None).to(device)
        logits_BY = logits(found)
        if rows.several:
            truth += [_names(row, labels) for row in (found.labels > 0.5).cpu().numpy()]
            predicted += [_names(row, labels) for row in (logits_BY > 0).cpu().numpy()]
        else:
            truth += [labels[number] for number in found.labels.tolist()]
            predicted += [labels[number] for number in logits_BY.argmax(1).tolist()]
    found = (
        several_labels(truth, predicted, labels) if rows.several else classification(truth, predicted, labels)
    )
    return {name: score.value for name, score in found.items()}


def _names(chosen_Y: np.ndarray, labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(label for label, chosen in zip(labels, chosen_Y, strict=True) if chosen)


def card_of(run: LabelRun, folder: Path, command: str, rows: LabelRows, model: nn.Module) -> dict[str, Any]:
    """The facts of a training, for the model's card."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "name": folder.name,
        "description": run.description or f"{run.model.kind} over two towers, trained with Patchword.",
        "dataset": f"{Path(run.data.table).name}: {len(rows.train.places)} training rows, selected on {len(rows.selection.places)} others",
        "licence": run.licence or "not stated",
        "command": command,
        "trained_parameters": trained,
        **{
            name: getattr(run, name)
            for name in ("towers", "vision_from", "text_from")
            if getattr(run, name) is not None
        },
    }
