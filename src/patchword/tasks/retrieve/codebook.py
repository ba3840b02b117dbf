"""A codebook of words in the text space of a two-tower model: what region alignment matches patches with.

word list, frequent words of captions -> prompts -> text tower -> one unit vector per word ->
layers/codebook.Codebook
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from patchword.checkpoints.folder import tower_id
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.pictures import Picture
from patchword.errors import DataError, ModelError
from patchword.layers.codebook import OBJECTS, Codebook, assign, build_codebook, read_words
from patchword.search.records import Concepts
from patchword.sentences import SentenceSpace
from patchword.tasks.retrieve.model import TwoTowerModel
from patchword.text.concepts import caption_words
from patchword.text.imagenet import common_words

CONCEPT_SHARE = 0.1
"""A picture has a concept when this share of its patches is nearest to it."""


class CodebookResult(NamedTuple):
    """A codebook, and the words that were left out because the text tower does not know them."""

    codebook: Codebook
    unknown: tuple[str, ...]


def gather_words(
    words: Path | None, captions: Path | None, minimum_count: int, class_names: bool = False
) -> list[str]:
    """The words of a list, then the common words of ImageNet's classes where `class_names` asks for them,
    then those of a caption file's training split that look like nouns or adjectives and occur often enough,
    each once; the 80 everyday objects that come with the package where neither is given.

    Raises DataError where a file is missing or gives no word.
    """
    lists = [words] if words is not None else [OBJECTS] if captions is None and not class_names else []
    found = [word for path in lists for word in read_words(path)]
    if class_names:
        found += common_words()
    if captions is not None:
        records = split_records(read_captions(captions), "train")
        more = caption_words((caption for record in records for caption in record.captions), minimum_count)
        if not more:
            raise DataError(
                f"{captions}: no noun or adjective occurs {minimum_count} times in the training captions; "
                "lower --minimum-count"
            )
        found += more
    return list(dict.fromkeys(found))


def make_codebook(towers: TwoTowerModel, words: Sequence[str]) -> CodebookResult:
    """Embed words by the prompt templates of `layers/codebook.py`.

    A word of which the text tower does not know every part is left out: it would share one vector with all
    the others like it. Raises DataError where none is left.
    """
    unknown_id = towers.vocabulary.special.unknown
    known = [word for word in words if (ids := towers.vocabulary.encode(word)) and unknown_id not in ids]
    if not known:
        raise DataError(
            f"the text tower knows none of the {len(words)} words ({', '.join(words[:3])} ...): give words "
            "of its training captions"
        )

    def embed(texts: list[str]) -> Tensor:
        if getattr(towers.model.vision, "text_space", None) is None:
            return torch.from_numpy(towers.embed_texts(texts))
        return _sentences(towers, texts)

    codebook = build_codebook(known, embed, tower_id(towers.model.vision))
    return CodebookResult(codebook, tuple(sorted(set(words) - set(known))))


@torch.inference_mode()
def _sentences(towers: TwoTowerModel, texts: list[str]) -> Tensor:
    """Texts in the text tower's own space, in which the cells of the vision tower have their place too.

    Raises ModelError for a text tower without a space of its own.
    """
    pooled_NE = towers.model.text(*towers.ids(texts)).pooled_BE
    if pooled_NE is None:
        raise ModelError(
            "the cells of the vision tower lie among sentences, and the text tower is none: "
            "the codebook with --tower all-minilm-l6-v2"
        )
    return pooled_NE.float().cpu()


def make_sentence_codebook(words: Sequence[str]) -> Codebook:
    """Words in the space of the packaged sentence encoder, for towers whose patches have a place in it by the
    names of classes.

    The encoder reads pieces of words, so that it knows every word. Raises MissingExtra where its package is
    not installed.
    """
    space = SentenceSpace()
    return build_codebook(words, space.embed, space.name)


def picture_concepts(towers: TwoTowerModel, codebook: Codebook) -> Concepts:
    """What a picture index is given to filter by: the words that at least CONCEPT_SHARE of a picture's
    patches are nearest to.

    Raises ModelError for a codebook of another tower, or a tower without patches in the text space.
    """
    codebook.check_tower(tower_id(towers.model.vision))

    @torch.inference_mode()
    def of(pictures: Sequence[Picture]) -> list[list[str]]:
        aligned_BNE = towers.model.vision(towers.pixels(pictures)).aligned_BNE
        if aligned_BNE is None:
            raise ModelError(
                "the vision tower has no patches in the text space, so that they have no concepts: leave "
                "--concepts out"
            )
        concepts_BN = assign(aligned_BNE, codebook.embeddings_WE.to(aligned_BNE.device)).concepts_BN
        least = CONCEPT_SHARE * concepts_BN.shape[1]
        counted = [Counter(row) for row in concepts_BN.tolist()]
        return [
            [codebook.words[number] for number, count in row.most_common() if count >= least]
            for row in counted
        ]

    return Concepts(codebook.words, of)
