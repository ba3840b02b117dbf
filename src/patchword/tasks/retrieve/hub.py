"""Published CLIP models (`hub:openai/clip-vit-base-patch32` and their kind) as two towers, for search, labels
and codebooks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPModel, CLIPTokenizer

from patchword.checkpoints.facts import ModelFacts
from patchword.composed import reader_preprocessing
from patchword.errors import ModelError
from patchword.hub import find_published
from patchword.ids import SpecialIds
from patchword.models.pairs.two_towers import TwoTowers, TwoTowersConfig
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings
from patchword.towers.clip import ClipTextTower, ClipTextTowerConfig, ClipTower, ClipTowerConfig


class ClipWords:
    """CLIP's tokenizer with its own ids, which its published text tower needs. It has no unknown piece: that
    id never occurs."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        self.special = SpecialIds(
            pad=tokenizer.eos_token_id,
            start=tokenizer.bos_token_id,
            end=tokenizer.eos_token_id,
            unknown=self.size,
        )

    def encode(self, caption: str) -> list[int]:
        """Ids of the pieces, without start and end."""
        return self._tokenizer.encode(caption, add_special_tokens=False)

    def unknown_words(self, caption: str) -> list[str]:
        """None: every text has pieces."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Raises ModelError: a published CLIP is named by its id wherever it is used, and not copied into a
        model folder."""
        raise ModelError(
            "a published CLIP is not saved as a model folder: name it by hub:ID wherever it is used"
        )


def load_clip(name: str, revision: str | None, device: torch.device) -> TwoTowerModel:
    """Loads a CLIP from a folder or a hub id, at one of its revisions, with the learned scale of the cosines.

    Raises ModelError when it cannot be had or is no CLIP.
    """
    found = find_published(name, revision)
    at: dict[str, Any] = {"revision": found.commit, "local_files_only": found.local}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(name, **at)
        scale = CLIPModel.from_pretrained(name, use_safetensors=True, **at).logit_scale.exp().item()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        expected = "expected a folder or hub id with its weights and tokenizer"
        raise ModelError(f"transformers gives no CLIP for {name!r} ({said}): {expected}") from error
    vision_settings = ClipTowerConfig(source=name, revision=found.commit)
    text_settings = ClipTextTowerConfig(source=name, revision=found.commit)
    vision, text = ClipTower(vision_settings), ClipTextTower(text_settings)
    words: Any = ClipWords(tokenizer)  # it has what a two-tower model asks of a vocabulary
    if words.size != text.vocabulary_size:
        sizes_found = f"a tokenizer of {words.size} pieces and a text tower of {text.vocabulary_size}"
        raise ModelError(f"{name!r} has {sizes_found}: the files are mixed up")
    sizes = TwoTowersConfig(width=vision.shared_width, initial_scale=scale, largest_scale=max(100.0, scale))
    settings = TwoTowerSettings(
        vision=vision_settings,
        text=text_settings,
        two_towers=sizes,
        preprocessing=reader_preprocessing(vision.preprocessing),
        vocabulary_size=words.size,
    )
    sources = {} if found.commit is None else {name: found.commit}
    facts = ModelFacts(name=name, description=f"CLIP of transformers, from {name}", sources=sources)
    return TwoTowerModel(TwoTowers(sizes, vision, text), settings, words, facts, device)
