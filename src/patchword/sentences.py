"""Texts in the space of the packaged sentence encoder, without a two-tower model around it: class names and
codebooks.

texts -> WordPiece -> all-MiniLM-L6-v2 -> unit vectors (n, 384)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.text.imagenet import imagenet_classes
from patchword.text.pieces import Pieces
from patchword.towers import packages
from patchword.towers.sentence_encoder import PUBLISHED, SentenceEncoder
from patchword.towers.settings import SentenceEncoderConfig

CLASS_TEMPLATE = "a photo of a {}"


class SentenceSpace:
    """The sentence encoder with its tokenizer, on the CPU.

    Raises MissingExtra where its package is not installed.
    """

    name = PUBLISHED

    def __init__(self) -> None:
        self._encoder = SentenceEncoder(SentenceEncoderConfig()).eval()
        self._pieces = Pieces.from_file(packages.tokenizer_file(PUBLISHED))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """Unit vectors (n, 384), float32, in the order of the texts; a text beyond 256 pieces is cut."""
        special, longest = self._pieces.special, self._encoder.max_length - 2
        rows = [[special.start, *self._pieces.encode(text)[:longest], special.end] for text in texts]
        vectors_NE = torch.zeros(len(rows), self._encoder.width)
        # Texts of one length go together, so that no row is padded: padding costs time and moves the last
        # bits.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for first in range(0, len(order), batch):
            part = order[first : first + batch]
            for length in sorted({len(rows[place]) for place in part}):
                places = [place for place in part if len(rows[place]) == length]
                ids_BL = torch.tensor([rows[place] for place in places])
                vectors_NE[places] = self._encoder(ids_BL).pooled_BE
        return vectors_NE


def embed_class_names() -> Tensor:
    """The 1,000 classes of ImageNet in the space of sentences, (1000, 384): the mean of the class's own name
    and its common word.

    The name keeps classes apart that captions would call the same; the word draws them to what captions say.
    """
    space, classes = SentenceSpace(), imagenet_classes()
    names_KE = space.embed([CLASS_TEMPLATE.format(one.name) for one in classes])
    words_KE = space.embed([CLASS_TEMPLATE.format(one.word) for one in classes])
    return F.normalize(names_KE + words_KE, dim=-1)
