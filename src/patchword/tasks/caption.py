"""Captions for pictures, from a photograph to words: the page to read first.

    photo -> data/pictures -> tower -> captioner.encode -> decode -> vocabulary -> Caption

`load` gives a `CaptioningModel`; `model.caption(...)` goes through these steps in order.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field

from patchword import checkpoint
from patchword.composed import CaptionerSettings, CaptionModel, TowerModel, TowerSettings
from patchword.config import validate
from patchword.data.batches import Inputs
from patchword.data.pictures import Preprocessing, open_picture
from patchword.decode import Decodings, beam_search, explain_tokens, greedy_steps
from patchword.device import choose_device
from patchword.errors import ModelError
from patchword.explain.pictures import seen_part, small_jpeg
from patchword.layers.codebook import Codebook
from patchword.models.caption_transformer import CaptionTransformer
from patchword.results import Caption
from patchword.tasks.prototypes import FILE as PROTOTYPES
from patchword.tasks.prototypes import context_words, nearest_captions, read_prototypes, write_prototypes
from patchword.text.subwords import Subwords, vocabulary_from_json
from patchword.text.words import Vocabulary
from patchword.towers import layered
from patchword.towers.settings import TowerConfig
from patchword.types import Trace, VisualFeatures

Picture = Union[str, Path, Image.Image, np.ndarray]  # noqa: UP007 - read at run time by help()

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"


class DecodingSettings(BaseModel, extra="forbid", frozen=True):
    """How captions are searched for where the caller does not say."""

    beams: int = Field(3, gt=0, description="hypotheses that the search follows; 1 is greedy")
    max_length: int = Field(20, gt=1, description="longest caption in tokens, the end token included")
    length_penalty: float = Field(0.0, ge=0, description="0: sum of log-probabilities decides; 1: their mean")
    no_repeat_ngram: int = Field(0, ge=0, description="no n words in a row occur twice; 0: allowed")


class ModelSettings(BaseModel, extra="forbid", frozen=True):
    """What config.json of a captioning model says beside the facts about its training."""

    tower: TowerSettings
    captioner: CaptionerSettings
    preprocessing: Preprocessing
    decoding: DecodingSettings
    vocabulary_size: int
    tower_sha256: str | None = None
    """Digest of a frozen public tower that the folder names by id and revision instead of holding its weights."""
    codebook: dict[str, Any] | None = None
    """Words, templates and tower of the codebook, for models with region alignment; its embeddings are among the weights."""


class CaptioningModel:
    """A tower, a captioner, a vocabulary and the preprocessing that belongs to them."""

    def __init__(
        self, model: CaptionModel, settings: ModelSettings, vocabulary: Vocabulary | Subwords, card: dict[str, Any], device: torch.device
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.card, self.device = settings, vocabulary, card, device

    def caption(
        self,
        pictures: Picture | Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        batch: int = 16,
    ) -> Caption | list[Caption]:
        """Caption one picture, or a list of them.

        Args:
            pictures: path, PIL image or array (H, W, 3), or a list of these.
            beams: hypotheses of the search; the model's own setting where left out.
            n_best: how many hypotheses come back; all but the best as `alternatives`.
            trace: whether the attention maps are computed, and a small copy of the picture is kept with them.

        Returns:
            A Caption for one picture, a list for a list, in its order.

        Raises:
            PictureError: a picture that cannot be decoded, with its name and the reason.
        """
        if isinstance(pictures, (str, Path, Image.Image, np.ndarray)):
            return self.caption([pictures], beams, n_best, trace, batch)[0]
        captions: list[Caption] = []
        for first in range(0, len(pictures), batch):
            images = [open_picture(picture) for picture in pictures[first : first + batch]]
            pixels_BHWC = np.stack([self.settings.preprocessing.apply(image) for image in images])
            found = self.caption_features(self.features(pixels_BHWC), beams, n_best, trace)
            captions += [replace(one, picture=self._seen(image)) for one, image in zip(found, images, strict=True)] if trace else found
        return captions

    def _seen(self, picture: Image.Image) -> bytes:
        return small_jpeg(seen_part(picture, self.settings.preprocessing.fit, self.settings.preprocessing.hw))

    def stream(self, picture: Picture, trace: bool = False) -> Generator[str, None, Caption]:
        """The words of one picture's caption, each as soon as it is known: greedy search, for a search with beams knows its first word
        only when it has ended. The generator's return value is the whole Caption.

        Raises PictureError when the picture cannot be decoded.
        """
        image = open_picture(picture)
        features = self.features(self.settings.preprocessing.apply(image)[None])
        decoding, captioner, special = self.settings.decoding, self.model.captioner, self.vocabulary.special
        with torch.inference_mode():
            memory = captioner.encode(features)
        said, found = 0, None
        for found in greedy_steps(captioner, memory, special, decoding.max_length, decoding.no_repeat_ngram):
            words = self.vocabulary.tokens(found.tokens_BKT[0, 0].tolist())
            yield from words[said:]
            said = len(words)
        if not trace:
            return self._caption(found, None, 0, 0, features.hw)
        with torch.inference_mode():
            explained = explain_tokens(captioner, memory, special, found.tokens_BKT[:, 0], found.lengths_BK[:, 0])
        return replace(self._caption(found, explained, 0, 0, features.hw), picture=self._seen(image))

    @torch.inference_mode()
    def features(self, pixels_BHWC: np.ndarray) -> VisualFeatures:
        """The tower's features of pictures that went through the preprocessing's geometry (uint8)."""
        pixels_B3HW = torch.from_numpy(self.settings.preprocessing.normalise(pixels_BHWC)).to(self.device)
        return self.model.features(Inputs(pixels_B3HW=pixels_B3HW))

    @torch.inference_mode()
    def caption_features(self, features: VisualFeatures, beams: int | None = None, n_best: int = 1, trace: bool = True) -> list[Caption]:
        """Search and words for features of B pictures."""
        decoding, captioner, special = self.settings.decoding, self.model.captioner, self.vocabulary.special
        memory = captioner.encode(features)
        width = max(decoding.beams if beams is None else beams, n_best)
        found = beam_search(
            captioner, memory, special, width, decoding.max_length, decoding.length_penalty, n_best, decoding.no_repeat_ngram
        )
        traces: list[Trace | None] = [None] * n_best
        if trace:
            for k in range(n_best):
                traces[k] = explain_tokens(captioner, memory, special, found.tokens_BKT[:, k], found.lengths_BK[:, k].clamp(min=1))
        return [self._captions_of(found, traces, b, features.hw) for b in range(len(found.tokens_BKT))]

    def _captions_of(self, found: Decodings, traces: list[Trace | None], b: int, hw: tuple[int, int] | None) -> Caption:
        found_K = [k for k in range(found.tokens_BKT.shape[1]) if math.isfinite(found.log_probabilities_BK[b, k])]
        # A model whose weights blew up finds nothing: its first, empty, hypothesis says so by its log-probability.
        hypotheses = [self._caption(found, traces[k], b, k, hw) for k in found_K or [0]]
        return replace(hypotheses[0], alternatives=tuple(hypotheses[1:]))

    def _caption(self, found: Decodings, trace: Trace | None, b: int, k: int, hw: tuple[int, int] | None) -> Caption:
        ids = found.tokens_BKT[b, k, : int(found.lengths_BK[b, k])].tolist()
        words = tuple(self.vocabulary.tokens(ids))
        attention_Thw, sentinel, concepts, prototypes, contexts = None, None, None, None, {}
        if trace is not None and trace.attention_BTN is not None and hw is not None:
            attention_Thw = trace.attention_BTN[b, : len(words)].float().cpu().numpy().reshape(len(words), *hw)
        if trace is not None and trace.sentinel_BT is not None:
            sentinel = tuple(trace.sentinel_BT[b, : len(words)].tolist())
        if trace is not None and trace.concepts_BN is not None and self.settings.codebook is not None:
            concepts = tuple(self.settings.codebook["words"][row] for row in trace.concepts_BN[b].tolist())
        if trace is not None and trace.prototype_weights_BTLM is not None:
            weights_TM = trace.prototype_weights_BTLM[b, : len(words), -1]
            best_T = weights_TM.topk(min(3, weights_TM.shape[1]))
            prototypes = tuple(
                tuple(zip(indices, values, strict=True))
                for indices, values in zip(best_T.indices.tolist(), best_T.values.tolist(), strict=True)
            )
            known = self.card.get("prototype_captions", {})
            contexts = {index: tuple(known[str(index)]) for index in set(best_T.indices.flatten().tolist()) if str(index) in known}
        return Caption(
            text=self.vocabulary.decode(ids),
            log_probability=float(found.log_probabilities_BK[b, k]),
            tokens=words,
            complete=bool(found.finished_BK[b, k]),
            attention_Thw=attention_Thw,
            sentinel=sentinel,
            concepts=concepts,
            prototypes=prototypes,
            contexts=contexts,
        )

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete. `half` stores fp16."""
        checkpoint.write_model_atomically(Path(folder), lambda partial: self.write(partial, half))

    def write(self, folder: Path, half: bool = False) -> None:
        """The files of the model folder, without the care for interruptions that `save` takes."""
        settings, weights = portable(self.settings, self.model)
        card = {key: value for key, value in self.card.items() if key != "prototype_captions"}
        config = {"task": "caption", **card, **settings.model_dump(mode="json")}
        checkpoint.write_model(folder, config, weights, self.vocabulary.to_json(), model_card(card), half)
        captioner = self.model.captioner
        if isinstance(captioner, CaptionTransformer) and captioner.memory is not None:
            concepts = [] if settings.codebook is None else settings.codebook["words"]
            words_of = context_words(self.vocabulary.decode, captioner.memory.config.placement, concepts)
            write_prototypes(folder, captioner.memory.describe(words_of))

    def push_to_hub(self, repository: str, private: bool = True) -> str:
        """Upload the model folder to a hub repository; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save(folder)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))


def load(name: str | Path, device: str | None = None) -> Any:
    """A captioning model by the name of a shipped one, a folder, a hub id of a Patchword folder, or `hub:ID` of a transformers captioner.

    Raises ModelError when there is no such model, or its folder is incomplete or of another format.
    """
    chosen = choose_device(device)
    if str(name).startswith("hub:"):
        from patchword.tasks.hub_caption import HubCaptioner

        return HubCaptioner.load(str(name).removeprefix("hub:"), chosen)
    folder = find_model(name)
    settings, card = read_settings(folder, "caption", ModelSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)
    codebook = None if settings.codebook is None else Codebook.described(settings.codebook)
    model = CaptionModel.build(settings.tower, settings.captioner, settings.vocabulary_size, codebook)
    restore_weights(model, model.captioner, "captioner.", folder, settings.tower_sha256)
    if (folder / PROTOTYPES).exists():
        card["prototype_captions"] = nearest_captions(read_prototypes(folder))
    return CaptioningModel(model, settings, vocabulary, {"name": folder.name, **card}, chosen)


Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(folder: Path, task: str, schema: type[Settings]) -> tuple[Settings, dict[str, Any]]:
    """What config.json of a model folder says: the settings of the task, and the facts about its training.

    Raises ModelError for a model of another task, ConfigError for settings that are none of the schema.
    """
    config = checkpoint.read_config(folder)
    if config.get("task") != task:
        raise ModelError(f"{folder} is a model for {config.get('task')!r}, and one for {task!r} is needed")
    named = {key: value for key, value in config.items() if key in schema.model_fields}
    card = {key: value for key, value in config.items() if key not in schema.model_fields and key not in ("format", "patchword", "task")}
    return validate(named, schema, str(folder / "config.json")), card


def read_vocabulary(folder: Path, size: int) -> Vocabulary | Subwords:
    """vocab.json of a model folder. Raises ModelError where it has another size than config.json says."""
    vocabulary = vocabulary_from_json(checkpoint.read_vocabulary(folder))
    if vocabulary.size != size:
        raise ModelError(f"{folder}: vocab.json has {vocabulary.size} tokens, config.json says {size}: the folder is mixed up")
    return vocabulary


def portable(settings: Any, model: TowerModel) -> tuple[Any, dict[str, torch.Tensor]]:
    """Settings and weights as a model folder holds them: a frozen public tower by id, revision and digest, any other by value."""
    weights = model.state_dict()
    source = settings.tower.source if isinstance(settings.tower, TowerConfig) else None
    if source is not None and settings.tower.trainable_from is None and not Path(source).exists():
        settings = settings.model_copy(update={"tower_sha256": checkpoint.tower_digest(model.tower)})
        own = {name: tensor for name, tensor in weights.items() if not name.startswith("tower.")}
        return settings, own | {name: tensor for name, tensor in weights.items() if name.startswith("tower.adapters.")}
    return settings.model_copy(update={"tower": layered.by_value(model.tower)}), weights


def restore_weights(model: TowerModel, reader: torch.nn.Module, prefix: str, folder: Path, tower_sha256: str | None) -> None:
    """Weights of a model folder; a tower that the folder names by reference must be the one that it was trained with. `reader` is the
    model's part behind the tower, whose weights begin with `prefix`.

    Raises ModelError when tensors or the tower differ.
    """
    if tower_sha256 is None:
        checkpoint.load_weights(model, folder)
        return
    found = checkpoint.tower_digest(model.tower)
    if found != tower_sha256:
        raise ModelError(f"{folder} was trained with a tower of SHA-256 {tower_sha256[:12]}..., and its id now gives {found[:12]}...")
    checkpoint.load_weights(reader, folder, prefix)
    if getattr(model.tower, "adapters", ()):
        checkpoint.load_weights(model.tower.adapters, folder, "tower.adapters.")


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.parent.name for folder in SHIPPED.glob("*/config.json"))


def find_model(name: str | Path) -> Path:
    """The folder of a model. Raises ModelError listing the shipped names when nothing is found."""
    for folder in (Path(name), SHIPPED / str(name)):
        if (folder / "config.json").exists():
            return folder
    if Path(name).exists() or str(name).count("/") != 1 or str(name).startswith((".", "/")):
        raise ModelError(
            f"no model at {name}: give a folder with config.json, a hub id, or one of: {', '.join(shipped_models()) or 'none shipped'}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name)))
    except Exception as error:  # huggingface_hub raises many kinds; all mean that the folder cannot be had
        raise ModelError(f"no folder {name}, and the hub did not give it either: {error}") from error


def model_card(card: dict[str, Any]) -> str:
    """README.md of a model folder from the facts that config.json records."""
    lines = [f"# {card.get('name', 'A captioning model')}", "", str(card.get("description", "Made with Patchword.")), ""]
    for key, value in card.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {number}" for name, number in value.items())
        if key not in ("name", "description"):
            lines.append(f"* **{key}**: {value}")
    return "\n".join(lines) + "\n"
