"""A sentence encoder as a layered text tower: BERT, and the mean over its real tokens, scaled to length one.

Reimers and Gurevych 2019 (Sentence-BERT, arXiv 1908.10084). The published weights are all-MiniLM-L6-v2:
MiniLM (Wang et al. 2020, arXiv 2002.10957) with 6 layers and width 384, trained so that sentences of the same
meaning are close:

    s = m / |m|,   m = mean of the last layer's tokens, with class and separator tokens, without padding

Its tokenizer is WordPiece in lower case (`text/pieces.py` reads it); ids, start and end are the tokenizer's
own. Tokens of single words are not in the space of sentences, but a word given as a whole text is; class
names and codebooks use this.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from patchword.errors import ModelError
from patchword.towers import layered, packages
from patchword.towers.settings import LONGEST_SENTENCE, SentenceEncoderConfig
from patchword.towers.small_bert import SmallBert
from patchword.types import TextFeatures

PUBLISHED = "all-minilm-l6-v2"


def published_tokenizer() -> Path:
    """The tokenizer file of the published weights, in their package."""
    return packages.tokenizer_file(PUBLISHED)


class SentenceEncoder(nn.Module):
    """A text tower whose pooled feature is the sentence.

    Attributes:
        width: C of tokens and sentences.
        shared_width: the same where the texts stay in the encoder's own space, else None.
        depth, max_length, vocabulary_size, layers: see `SmallBert`.
    """

    has_class_token = True
    appendable = True

    def __init__(self, config: SentenceEncoderConfig) -> None:
        """Raises MissingExtra where the weights' package is not installed.

        Raises ModelError for one with other weights, ConfigError for a `trainable_from` beyond the last
        layer.
        """
        super().__init__()
        self.config = config
        self.bert = SmallBert(config.sizes(), config.trainable_from)
        if config.weights == "package":
            self._load(packages.read_weights(PUBLISHED))
        self.layers, self.depth, self.width = self.bert.layers, self.bert.depth, self.bert.width
        self.vocabulary_size = self.bert.vocabulary_size
        self.max_length = min(self.bert.max_length, LONGEST_SENTENCE)
        self.shared_width = self.width if config.own_space else None

    def embed(
        self, ids_BL: Tensor, mask_BL: Tensor | None = None, types_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the tokens (B, L, C) before layer 0, and the mask (B, L).

        Raises ModelError for a text that is too long.
        """
        return self.bert.embed(ids_BL, mask_BL, types_BL)

    def finish(self, tokens_BLC: Tensor, mask_BL: Tensor | None = None) -> TextFeatures:
        """Returns the features; `pooled_BE` is the sentence, of length one."""
        if mask_BL is None:
            mean_BC = tokens_BLC.mean(1)
        else:
            real_BL1 = mask_BL[..., None].to(tokens_BLC.dtype)
            mean_BC = (tokens_BLC * real_BL1).sum(1) / real_BL1.sum(1).clamp(min=1)
        return TextFeatures(tokens_BLC=tokens_BLC, pooled_BE=F.normalize(mean_BC, dim=-1), mask_BL=mask_BL)

    def forward(
        self, ids_BL: Tensor, mask_BL: Tensor | None = None, types_BL: Tensor | None = None
    ) -> TextFeatures:
        """Returns the features of B texts; the arguments are those of `SmallBert.embed`."""
        tokens_BLC, mask_BL = self.embed(ids_BL, mask_BL, types_BL)
        return self.finish(layered.run_layers(self.layers, tokens_BLC, mask_BL), mask_BL)

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Loads the published weights without their pooler, which is not used for sentences.

        Raises ModelError where they do not fit.
        """
        unused = ("pooler.", "embeddings.position_ids")
        named = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
        wanted = self.bert.model.state_dict()
        differing = sorted(
            name
            for name in set(named) | set(wanted)
            if name not in named or name not in wanted or named[name].shape != wanted[name].shape
        )
        if differing:
            raise ModelError(
                f"the weights of {PUBLISHED} do not fit: {len(differing)} tensors differ, the first is "
                f"{differing[0]}"
            )
        self.bert.model.load_state_dict(named)
