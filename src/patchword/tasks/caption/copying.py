"""The words that a captioner with a copy gate can point at, and what a caption says of those it copied.

vocabulary + words of the codebook, singular and plural -> vocabulary with words that no caption taught
vocabulary, codebook -> sentence encoder -> the vector of every word -> layers/copying.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.errors import ConfigError
from patchword.layers.codebook import Codebook
from patchword.layers.copying import FORMS, Copying
from patchword.sentences import SentenceSpace
from patchword.tasks.caption.doubt import forms
from patchword.tasks.caption.result import Caption
from patchword.text.imagenet import common_words
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.types import Copies

_SEED = 12
"""Start, end and unknown have no meaning among sentences; their vectors are random, always the same ones."""


def with_copied_words(vocabulary: Vocabulary | Subwords | Pieces, codebook: Codebook) -> Vocabulary:
    """The vocabulary with the codebook's things behind the words of the training captions, each in the
    singular and the plural; things of several words are left out.

    Raises ConfigError for a vocabulary that is not of English words.
    """
    if not isinstance(vocabulary, Vocabulary) or vocabulary.splitter != "english":
        raise ConfigError(
            "copying points at whole words, and the captions are split into pieces or characters: set "
            'data.splitter = "english", or leave the [captioner.copying] table out'
        )
    more = [form for word in things(codebook) for form in forms(word)]
    known = set(vocabulary.words)
    added = tuple(dict.fromkeys(word for word in more if word not in known))
    return replace(vocabulary, words=(*vocabulary.words, *added))


def things(codebook: Codebook) -> list[str]:
    """The codebook's words that can be copied: those that name classes of ImageNet, which the eyes know; all
    of a codebook without such words."""
    single = [word for word in codebook.words if " " not in word]
    return [word for word in single if word in common_words()] or single


def set_words(copying: Copying, vocabulary: Vocabulary, taught: int, codebook: Codebook) -> None:
    """Gives the copy gate the vectors of all words, of which captions taught the first `taught`.

    Raises MissingExtra where the sentence encoder's package is not installed, ConfigError for a codebook of
    another text space.
    """
    if codebook.tower != SentenceSpace.name:
        raise ConfigError(
            f"copying needs a codebook in the space of {SentenceSpace.name}, in which every word has a "
            f"vector, and this one is of {codebook.tower!r}: make it with --tower {SentenceSpace.name}"
        )
    copying.set_words(
        word_vectors(vocabulary, SentenceSpace().embed),
        copied_ids(vocabulary, codebook),
        torch.tensor([True, *(number < taught for number in range(len(vocabulary.words))), True, True, True]),
    )


def word_vectors(vocabulary: Vocabulary, embed: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """The vector of every token (V, E): that of the word alone less the mean of all, of length one."""
    words_NE = embed(vocabulary.words)
    words_NE = F.normalize(words_NE - words_NE.mean(0), dim=-1)
    generator = torch.Generator().manual_seed(_SEED)
    special_4E = F.normalize(torch.randn(4, words_NE.shape[1], generator=generator), dim=-1)
    return torch.cat((special_4E[:1], words_NE, special_4E[1:]))


def copied_ids(vocabulary: Vocabulary, codebook: Codebook) -> Tensor:
    """The tokens of each word of the codebook (W, F), -1 for none; no token stands for two words."""
    rows = {word: row for row, word in enumerate(codebook.words)}
    ids_WF = torch.full((len(codebook), FORMS), -1)
    used: set[int] = set()
    for word in things(codebook):
        for place, form in enumerate(forms(word)[:FORMS]):
            (number,) = vocabulary.encode(form) or (vocabulary.special.unknown,)
            if number not in used and number != vocabulary.special.unknown:
                ids_WF[rows[word], place] = number
                used.add(number)
    return ids_WF


def with_copies(
    caption: Caption, ids: Sequence[int], copies: Copies, b: int, hw: tuple[int, int] | None
) -> Caption:
    """The caption of picture b with what it copied: for such a word the probability of pointing at it, and
    the patches that speak for it in place of the attention."""
    slots = {token: k for k, token in enumerate(copies.ids_BK[b].tolist()) if token >= 0}
    copied = tuple(
        float(copies.shares_BTK[b, t, slots[token]]) if token in slots else None
        for t, token in enumerate(ids[: len(caption.tokens)])
    )
    caption = replace(caption, copied=copied)
    if hw is None or caption.attention_Thw is None or not any(share is not None for share in copied):
        return caption
    maps_Thw = caption.attention_Thw.copy()
    for t, token in enumerate(ids[: len(caption.tokens)]):
        if token in slots:
            seen_N = copies.cosines_BKN[b, slots[token]].clamp(min=0)
            maps_Thw[t] = (seen_N / seen_N.sum().clamp(min=1e-6)).cpu().numpy().reshape(hw).astype(np.float32)
    names = tuple("attention" if share is None else "copied" for share in copied)
    return replace(caption, maps_Thw=maps_Thw, map_names=names)
