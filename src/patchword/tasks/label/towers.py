"""The two towers of a labelling model: those of trained models, or new ones with the words of the table."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import find_model
from patchword.checkpoints.towers import load_tower
from patchword.composed import build_text_tower, build_tower, reader_preprocessing
from patchword.data.formats.labels import LabelTable
from patchword.data.pictures import Preprocessing
from patchword.errors import ConfigError
from patchword.lookup import look_up
from patchword.tasks.label.model import LabellingModel, load_labelling_model
from patchword.tasks.label.settings import LabelSections
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.towers.settings import ClipTextTowerConfig
from patchword.train.data import published_pieces, with_vocabulary


class Towers(NamedTuple):
    """Two towers, their settings, and what is needed to feed them."""

    vision: Any
    vision_settings: Any
    preprocessing: Preprocessing
    text: Any
    text_settings: Any
    vocabulary: Vocabulary | Subwords | Pieces


def towers_of(name: str) -> Towers:
    """Both towers of a two-tower model, or of a labelling model that reads both sides.

    Raises ModelError, ConfigError.
    """
    trained: LabellingModel | TwoTowerModel
    vision: Any
    text: Any
    if checkpoint.read_config(find_model(name)).get("task") == "label":
        labelling = trained = load_labelling_model(name, "cpu")
        for side, what in enumerate(("pictures", "texts")):
            _must_read(labelling, name, side, what)
        vision, text = labelling.model.image_tower, labelling.model.text_tower
    else:
        two_towers = trained = load_two_towers(name, "cpu")
        vision, text = two_towers.model.vision, two_towers.model.text
    settings = trained.settings
    return Towers(vision, settings.vision, settings.preprocessing, text, settings.text, trained.vocabulary)


def make_towers(run: LabelSections, table: LabelTable, places: np.ndarray) -> Towers:
    """The towers of a trained model, or new ones with the words of the training texts.

    Raises ModelError, ConfigError.
    """
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


def _picture_side(run: LabelSections) -> tuple[nn.Module, Any, Preprocessing]:
    if run.vision_from is None:
        assert run.vision is not None  # the configuration has one, or vision_from, or towers
        tower = build_tower(run.vision)
        return tower, run.vision, reader_preprocessing(tower.preprocessing)
    if _is_pretrained(run.vision_from):
        pretrained, preprocessing = load_tower(run.vision_from)
        settings = pretrained.config.model_copy(update={"trainable_from": run.trainable_from})
        return _with_weights(build_tower(settings), pretrained), settings, preprocessing
    trained = load_labelling_model(run.vision_from, "cpu")
    _must_read(trained, run.vision_from, 0, "pictures")
    settings = trained.settings.vision.model_copy(update={"trainable_from": run.trainable_from})
    return (
        _with_weights(build_tower(settings), trained.model.image_tower),
        settings,
        trained.settings.preprocessing,
    )


def _text_side(
    run: LabelSections, table: LabelTable, places: np.ndarray
) -> tuple[nn.Module, Any, Vocabulary | Subwords | Pieces]:
    if run.text_from is not None and _is_pretrained(run.text_from):
        stored = look_up("tasks.pretrain.model:load_pretrained")(run.text_from, "cpu")
        if stored.vocabulary is None:
            raise ConfigError(f"{run.text_from} is a pre-trained picture tower: it has none for texts")
        settings = stored.settings.text.model_copy(update={"trainable_from": run.trainable_from})
        return _with_weights(build_text_tower(settings), stored.tower), settings, stored.vocabulary
    if run.text_from is not None:
        trained = load_labelling_model(run.text_from, "cpu")
        _must_read(trained, run.text_from, 1, "texts")
        settings = trained.settings.text.model_copy(update={"trainable_from": run.trainable_from})
        return (
            _with_weights(build_text_tower(settings), trained.model.text_tower),
            settings,
            trained.vocabulary,
        )
    assert run.text is not None  # the configuration has one, or text_from, or towers
    pieces = published_pieces(run.text)
    if pieces is not None:
        return build_text_tower(run.text), run.text, pieces
    if isinstance(run.text, ClipTextTowerConfig) and run.text.source is not None:
        clip = Pieces.from_pretrained(run.text.source, run.text.revision)
        return build_text_tower(run.text), run.text, clip
    vocabulary = Vocabulary.build((table.read(int(place)).text for place in places), run.data.minimum_count)
    text = with_vocabulary(run.text, vocabulary, run.data.max_words)
    return build_text_tower(text), text, vocabulary


def _is_pretrained(name: str) -> bool:
    """Whether a model is a bare tower that was pre-trained."""
    return checkpoint.read_config(find_model(name)).get("task") == "pretrain"


def _must_read(trained: LabellingModel, name: str, side: int, what: str) -> None:
    if not trained.reads[side]:
        raise ConfigError(f"{name} is a model that reads no {what}: it has no tower for them")


def _with_weights(tower: nn.Module, trained: Any) -> nn.Module:
    tower.load_state_dict(trained.state_dict())
    return tower
