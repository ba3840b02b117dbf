"""Two towers for a few texts and pictures, without torch: its import alone takes longer than the search.

text    -> vocabulary    -> towers/sentence_encoder_numpy.py  -> projection -> unit vector
picture -> preprocessing -> towers/efficientnet_lite_numpy.py -> mean cell -> projection -> unit vector

They are there for a sentence encoder and an EfficientNet-Lite, which the shipped two towers have; others are
loaded whole. Vectors are those of the whole model to 1e-5, and the identity is the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.upgrades import upgraded_name
from patchword.config import validate
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.errors import ModelError
from patchword.hub import is_hub
from patchword.lookup import look_up
from patchword.search.find import Embedder
from patchword.tasks.retrieve.exported import ExportedTowers
from patchword.tasks.retrieve.labels import TEMPLATES, Labeller, label_shares
from patchword.text.pieces import Pieces
from patchword.text.subwords import remarks_on, rows_of, vocabulary_from_json
from patchword.towers.efficientnet_lite_numpy import last_block
from patchword.towers.sentence_encoder_numpy import encode_sentence
from patchword.towers.settings import LONGEST_SENTENCE, EfficientNetLiteConfig, SentenceEncoderConfig

FEW_PICTURES, FEW_LABELS = 8, 24
"""So many of both are done before torch would be imported; each takes twice as long here as there."""

_KINDS = {"F16": "float32", "F32": "float32", "I64": "int64"}
"""Types of a model folder, and what a model holds them as."""


class QueryTowers:
    """Texts and pictures as vectors of the space of two towers. `load_query_towers` gives them."""

    def __init__(self, folder: Path, weights: _Weights, vocabulary: Pieces, parts: _Settings) -> None:
        self._folder = folder
        self._whole: Any = None
        self._weights, self._vocabulary, self._parts = weights, vocabulary, parts
        self._sizes = parts.text.sizes()
        self._longest = min(self._sizes.max_position_embeddings, LONGEST_SENTENCE)
        self.identity = weights.digest()
        """SHA-256 of the weights, as `TwoTowerModel.identity`."""

    def embed_images(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Unit vectors (n, E), float32.

        The whole model is loaded, and torch with it, for many pictures and for another vision tower. Raises
        PictureError for a picture that cannot be decoded.
        """
        if self._whole is None and (len(pictures) > FEW_PICTURES or self._parts.vision is None):
            self._whole = look_up("tasks.retrieve.load:load_two_towers")(self._folder)
        if self._whole is not None:
            found: np.ndarray = self._whole.embed_images(pictures)
            return found
        return np.stack([self._seen(open_picture(picture)) for picture in pictures])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, E), float32. Raises DataError for a text without a word that the model knows."""
        return np.stack(
            [self._embedded(row) for row in rows_of(self._vocabulary, texts, self._longest)]
        ).astype(np.float32)

    def label(self, pictures: Sequence[Picture], labels: Sequence[str]) -> np.ndarray:
        """The probability of each label for each picture (n, labels); see `TwoTowerModel.label`."""
        scale = min(math.exp(float(self._weights.read("log_scale"))), self._parts.largest_scale)
        return label_shares(self, scale, pictures, labels, TEMPLATES)

    def remarks(self, text: str) -> Sequence[str]:
        """What a person should know who asks with this text; see `TwoTowerModel.remarks`."""
        return remarks_on(self._vocabulary, text, self._longest)

    def _embedded(self, ids_L: Sequence[int]) -> np.ndarray:
        vector_C = encode_sentence(ids_L, self._weights.of_encoder, self._sizes)
        if not self._parts.text.own_space:
            vector_C = self._weights.read("text_projection.weight") @ vector_C
        return vector_C / max(float(np.linalg.norm(vector_C)), 1e-12)

    def _seen(self, picture: Image.Image) -> np.ndarray:
        vision, prepared = self._parts.vision, self._parts.preprocessing
        assert vision is not None  # `embed_images` loads the whole model for another tower
        pixels_3HW = prepared.normalise(prepared.apply(picture)[None])[0]
        grid_NC = last_block(pixels_3HW, self._weights.of_vision, vision.kind)
        vector_E = self._weights.read("vision_projection.weight") @ grid_NC.mean(0)
        return vector_E / max(float(np.linalg.norm(vector_E)), 1e-12)


class _Settings(NamedTuple):
    """What config.json says of two towers that are computed here."""

    text: SentenceEncoderConfig
    vision: EfficientNetLiteConfig | None
    """None where the vision tower is another one, or is read in another way than `embed_images` does."""
    preprocessing: Preprocessing
    largest_scale: float


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
        self._kept: dict[str, np.ndarray] = {}

    def all_read(self) -> bool:
        """Whether every tensor is of a type that numpy has."""
        return all(self._file.get_slice(name).get_dtype() in _KINDS for name in self._names.values())

    def read(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """A weight, float32; with `rows` only these rows of it."""
        if name not in self._names:
            raise ModelError(f"{self._path} holds no {name}: it does not fit its config.json")
        if rows is None:
            if name not in self._kept:
                self._kept[name] = self._file.get_tensor(self._names[name]).astype(np.float32, copy=False)
            return self._kept[name]
        part = self._file.get_slice(self._names[name])
        if max(rows) >= part.get_shape()[0]:
            raise ModelError(f"{self._path}: {name} has no row {max(rows)}: it does not fit its vocab.json")
        return np.concatenate([part[row : row + 1] for row in rows]).astype(np.float32)

    def of_encoder(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """As `read`, for a weight of the sentence encoder."""
        return self.read(f"text.bert.model.{name}", rows)

    def of_vision(self, name: str) -> np.ndarray:
        """As `read`, for a weight of the vision tower."""
        return self.read(f"vision.{name}")

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
    if checkpoint.is_exported(name):
        return ExportedTowers(name)
    return load_query_towers(name) or look_up("tasks.retrieve.load:load_two_towers")(name)


def load_labeller(name: str | Path, pictures: int, labels: int, device: str | None) -> Labeller:
    """Two towers by their name to label some pictures with: without torch where there are few of both.

    Raises ModelError when there is no such model, or it is damaged.
    """
    if device in (None, "cpu") and pictures <= FEW_PICTURES and labels <= FEW_LABELS:
        towers = load_query_towers(name)
        if towers is not None:
            return towers
    whole: Labeller = look_up("tasks.retrieve.load:load_two_towers")(name, device)
    return whole


def load_query_towers(name: str | Path) -> QueryTowers | None:
    """Two towers by their name; None where the text tower is none that numpy runs here.

    Raises ModelError when there is no such model, or it is damaged.
    """
    if is_hub(name):
        return None
    folder = checkpoint.find_model(name)
    config = checkpoint.read_config(folder)
    parts = _settings(config, str(folder / "config.json"))
    if parts is None:
        return None
    checkpoint.check_files(folder, config)
    weights = _Weights(folder / checkpoint.WEIGHTS, "towers." if config["task"] == "align" else "")
    vocabulary = vocabulary_from_json(checkpoint.read_vocabulary(folder))
    if not weights.all_read() or not isinstance(vocabulary, Pieces):
        return None
    return QueryTowers(folder, weights, vocabulary, parts)


def _settings(config: Mapping[str, Any], where: str) -> _Settings | None:
    """The settings of what is computed here; None where the model is no two towers with a sentence
    encoder.
    """
    text, vision, towers = (config.get(part) for part in ("text", "vision", "two_towers"))
    if config.get("task") not in ("retrieve", "align") or not isinstance(text, dict):
        return None
    if text.get("kind") != "sentence-encoder" or text.get("weights") != "none":
        return None
    prepared = validate(config.get("preprocessing", {}), Preprocessing, f"{where}, preprocessing")
    largest = towers.get("largest_scale", 100.0) if isinstance(towers, dict) else 100.0
    eyes = None
    if isinstance(vision, dict) and str(vision.get("kind")).startswith("efficientnet-lite"):
        eyes = validate(vision, EfficientNetLiteConfig, f"{where}, vision")
        if (eyes.grid, eyes.inference, eyes.weights) != ("last_block", "float32", "none"):
            eyes = None
    return _Settings(validate(text, SentenceEncoderConfig, f"{where}, text"), eyes, prepared, float(largest))
