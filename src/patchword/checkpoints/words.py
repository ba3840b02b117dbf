"""Starting from a trained model that knows other words: the words that both know keep their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import read_vocabulary
from patchword.errors import ConfigError
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary

Model = TypeVar("Model", bound=nn.Module)


def load_by_words(
    model: Model,
    folder: Path,
    vocabulary: Vocabulary | Subwords | Pieces,
    build: Callable[[int], Model],
    load: Callable[[Model], None],
) -> str | None:
    """The weights of a model folder into a model whose vocabulary may be another.

    Args:
        build: (size) -> the same model for a vocabulary of so many tokens.
        load: (model) -> the weights of the folder into it, strictly.

    Returns:
        A line that says how many words keep their weights; None where the vocabularies are the same.

    Raises:
        ConfigError: texts are split in another way, so that tokens do not correspond.
        ModelError: weights that do not fit for another reason.
    """
    stored = read_vocabulary(folder, checkpoint.read_config(folder)["vocabulary_size"])
    if _tokens(stored) == _tokens(vocabulary):
        load(model)
        return None
    if not (isinstance(stored, Vocabulary) and isinstance(vocabulary, Vocabulary)) or (
        stored.splitter != vocabulary.splitter
    ):
        raise ConfigError(
            f"{folder} splits texts in another way than this training (data.splitter, data.tokenizer): its "
            "tokens do not correspond; use the same one, or begin without it"
        )
    with torch.random.fork_rng(devices=()):  # what is built here leaves the run's random numbers alone
        axes = _word_axes(build, vocabulary.size)
        old = build(stored.size)
    load(old)
    pairs = _pairs(stored, vocabulary)
    _carry_over(old.state_dict(), model.state_dict(), axes, pairs)
    known = set(stored.words) & set(vocabulary.words)
    return (
        f"{folder}: {len(known)} of {len(vocabulary.words)} words keep their weights, "
        f"{len(vocabulary.words) - len(known)} are new, {len(stored.words) - len(known)} of its words are "
        "left out"
    )


def _tokens(vocabulary: Vocabulary | Subwords | Pieces) -> object:
    """What makes two vocabularies one, whatever their thresholds were."""
    if isinstance(vocabulary, Vocabulary):
        return vocabulary.splitter, vocabulary.words
    return vocabulary.to_json()


def _word_axes(build: Callable[[int], nn.Module], size: int) -> dict[str, int]:
    """The weights that have an entry for each token, and the axis along which: those that grow with the
    vocabulary."""
    shapes, grown = (
        {name: tuple(tensor.shape) for name, tensor in build(tokens).state_dict().items()}
        for tokens in (size, size + 1)
    )
    return {
        name: next(
            axis for axis, (one, other) in enumerate(zip(shape, grown[name], strict=True)) if one != other
        )
        for name, shape in shapes.items()
        if shape != grown[name]
    }


def _pairs(stored: Vocabulary, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """Ids of the same token in both: special ones, then words."""
    places = {word: number for number, word in enumerate(stored.words, start=1)}
    words = [(places[word], number) for number, word in enumerate(vocabulary.words, 1) if word in places]
    return [*zip(stored.special, vocabulary.special, strict=True), *words]


@torch.no_grad()
def _carry_over(
    old: dict[str, Tensor], new: dict[str, Tensor], axes: dict[str, int], pairs: list[tuple[int, int]]
) -> None:
    """Copy weights; of those with an entry for each token the entries of the tokens that both have."""
    before, after = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    for name, tensor in new.items():
        if name in axes:
            taken = old[name].index_select(axes[name], before.to(tensor.device))
            tensor.index_copy_(axes[name], after.to(tensor.device), taken.to(tensor.dtype))
        else:
            tensor.copy_(old[name])
