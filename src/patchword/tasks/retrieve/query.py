"""The half of two towers that a search by words needs, without torch: its import alone takes longer than the
search.

text -> vocabulary -> towers/sentence_encoder_numpy.py -> projection -> unit vector

It is there for a sentence encoder as text tower, which the shipped two towers have; others are loaded whole.
Vectors are those of the whole model to 1e-5, and the identity is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.upgrades import upgraded_name
from patchword.config import validate
from patchword.errors import ModelError
from patchword.hub import is_hub
from patchword.lookup import look_up
from patchword.search.find import Embedder
from patchword.tasks.retrieve.exported import ExportedTowers, is_exported
from patchword.text.pieces import Pieces
from patchword.text.subwords import remarks_on, rows_of, vocabulary_from_json
from patchword.towers.sentence_encoder_numpy import encode_sentence
from patchword.towers.settings import LONGEST_SENTENCE, SentenceEncoderConfig

_KINDS = {"F16": "float32", "F32": "float32", "I64": "int64"}
"""Types of a model folder, and what a model holds them as."""


class QueryTower:
    """Texts as vectors of the space of two towers. `load_query_tower` gives one."""

    def __init__(
        self, name: str | Path, weights: _Weights, vocabulary: Pieces, text: SentenceEncoderConfig
    ) -> None:
        self._name = name
        self._whole: Any = None
        self._weights, self._vocabulary = weights, vocabulary
        self._sizes = text.sizes()
        self._longest = min(self._sizes.max_position_embeddings, LONGEST_SENTENCE)
        self._own_space = text.own_space
        self.identity = weights.digest()
        """SHA-256 of the weights, as `TwoTowerModel.identity`."""

    def embed_images(self, pictures: Sequence[Any]) -> np.ndarray:
        """Unit vectors (n, E), float32. The first picture loads the whole model, and torch with it."""
        if self._whole is None:
            self._whole = look_up("tasks.retrieve.load:load_two_towers")(self._name)
        return self._whole.embed_images(pictures)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, E), float32. Raises DataError for a text without a word that the model knows."""
        return np.stack(
            [self._embedded(row) for row in rows_of(self._vocabulary, texts, self._longest)]
        ).astype(np.float32)

    def remarks(self, text: str) -> Sequence[str]:
        """What a person should know who asks with this text; see `TwoTowerModel.remarks`."""
        return remarks_on(self._vocabulary, text, self._longest)

    def _embedded(self, ids_L: Sequence[int]) -> np.ndarray:
        vector_C = encode_sentence(ids_L, self._weights.of_encoder, self._sizes)
        if not self._own_space:
            vector_C = self._weights.read("text_projection.weight") @ vector_C
        return vector_C / max(float(np.linalg.norm(vector_C)), 1e-12)


class _Weights:
    """The weights of a model folder, read one by one from the mapped file."""

    def __init__(self, path: Path, prefix: str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read ({error}): copy the folder anew") from error
        stored = {upgraded_name(name): name for name in self._file.keys()}  # noqa: SIM118
        self._names = {name[len(prefix) :]: old for name, old in stored.items() if name.startswith(prefix)}
        self._path = path

    def all_read(self) -> bool:
        """Whether every tensor is of a type that numpy has."""
        return all(self._file.get_slice(name).get_dtype() in _KINDS for name in self._names.values())

    def read(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """A weight, float32; with `rows` only these rows of it."""
        if name not in self._names:
            raise ModelError(f"{self._path} holds no {name}: it does not fit its config.json")
        if rows is None:
            return self._file.get_tensor(self._names[name]).astype(np.float32, copy=False)
        part = self._file.get_slice(self._names[name])
        if max(rows) >= part.get_shape()[0]:
            raise ModelError(f"{self._path}: {name} has no row {max(rows)}: it does not fit its vocab.json")
        return np.concatenate([part[row : row + 1] for row in rows]).astype(np.float32)

    def of_encoder(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """As `read`, for a weight of the sentence encoder."""
        return self.read(f"text.bert.model.{name}", rows)

    def digest(self) -> str:
        """What `checkpoints.folder.weights_digest` gives for the whole model."""
        digest = hashlib.sha256()
        for name, stored in sorted(self._names.items()):
            part = self._file.get_slice(stored)
            kind = _KINDS[part.get_dtype()]
            digest.update(f"{name}{tuple(part.get_shape())}torch.{kind}".encode())
            digest.update(np.ascontiguousarray(self._file.get_tensor(stored), dtype=kind).tobytes())
        return digest.hexdigest()


def load_embedder(name: str | Path) -> Embedder:
    """Two towers by their name for a search, of which no more is loaded than the queries need.

    Raises ModelError when there is no such model, or it is damaged.
    """
    if is_exported(name):
        return ExportedTowers(name)
    return load_query_tower(name) or look_up("tasks.retrieve.load:load_two_towers")(name)


def load_query_tower(name: str | Path) -> QueryTower | None:
    """The text tower of two towers by their name; None where it is none that numpy runs here.

    Raises ModelError when there is no such model, or it is damaged.
    """
    if is_hub(name):
        return None
    folder = checkpoint.find_model(name)
    config = checkpoint.read_config(folder)
    text = _sentence_encoder(config, folder)
    if text is None:
        return None
    checkpoint.check_files(folder, config)
    weights = _Weights(folder / checkpoint.WEIGHTS, "towers." if config["task"] == "align" else "")
    vocabulary = vocabulary_from_json(checkpoint.read_vocabulary(folder))
    if not weights.all_read() or not isinstance(vocabulary, Pieces):
        return None
    return QueryTower(name, weights, vocabulary, text)


def _sentence_encoder(config: Mapping[str, Any], folder: Path) -> SentenceEncoderConfig | None:
    """The settings of the text tower; None where the model is no two towers with a sentence encoder."""
    text = config.get("text")
    if config.get("task") not in ("retrieve", "align") or not isinstance(text, dict):
        return None
    if text.get("kind") != "sentence-encoder" or text.get("weights") != "none":
        return None
    return validate(text, SentenceEncoderConfig, f"{folder / 'config.json'}, text")
