"""Two streams out of the folder of a pre-trained model, whose words are others than ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import read_vocabulary
from patchword.errors import ModelError
from patchword.tensors import read_tensors
from patchword.text.words import Vocabulary

_OF_WORDS = ("text.model.embeddings.word_embeddings.weight", "word_head.3.weight", "word_head.3.bias")
_OF_POSITIONS = "text.model.embeddings.position_embeddings.weight"


@torch.no_grad()
def begin_with(streams: nn.Module, folder: Path, vocabulary: Vocabulary) -> int:
    """The weights of a pre-trained model into these streams, a `Vilbert`; words are matched by their
    spelling, and those that were not read there keep random weights, as do positions beyond its longest text.

    Returns how many words were known. Raises ModelError where the folder holds no two streams, or those of
    other sizes.
    """
    config = checkpoint.read_config(folder)
    if "vilbert" not in config:
        raise ModelError(
            f"{folder} is a model for {config.get('task')!r} without two streams: one is needed that "
            "`patchword train` made with model.kind vilbert"
        )
    checkpoint.check_files(folder, config)
    theirs: Any = read_vocabulary(folder, config.get("vocabulary_size", 0))
    tensors = read_tensors(folder / checkpoint.WEIGHTS)
    pairs = _same_words(vocabulary, theirs)
    for name, weight in streams.state_dict().items():
        found = tensors.get(f"vilbert.{name}")
        if found is None or (found.shape[1:] if _resized(name) else found.shape) != (
            weight.shape[1:] if _resized(name) else weight.shape
        ):
            said = "missing" if found is None else str(tuple(found.shape))
            raise ModelError(
                f"{folder}: {name} is {said} there and {tuple(weight.shape)} here: give the streams the "
                "sizes that they have there, and tower_from the folder of its tower"
            )
        if name in _OF_WORDS:
            for ours, other in pairs:
                weight[ours] = found[other]
        elif name == _OF_POSITIONS:
            rows = min(len(weight), len(found))
            weight[:rows] = found[:rows]
        else:
            weight.copy_(found)
    return len(pairs) - 4  # without the special tokens


def _resized(name: str) -> bool:
    """Whether a tensor has a row for each word or position."""
    return name in _OF_WORDS or name == _OF_POSITIONS


def _same_words(ours: Vocabulary, theirs: Vocabulary) -> list[tuple[int, int]]:
    """(id here, id there) of words that both know, and of the four special tokens."""
    place = {word: number for number, word in enumerate(theirs.words, 1)}
    pairs = [(number, place[word]) for number, word in enumerate(ours.words, 1) if word in place]
    special = [(one.pad, one.start, one.end, one.unknown) for one in (ours.special, theirs.special)]
    return [*pairs, *zip(*special, strict=True)]
