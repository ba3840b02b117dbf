"""Two ways to rank with an alignment head in bounded memory: all pairs, or a re-ranked shortlist.

The caller encodes each picture and each caption once, into a ragged half-precision cache. A tile of the
similarity matrix is computed from a few rows of each cache. Peak memory is the caches, the result (4 bytes a
pair) and one block of pictures, for any number of captions.

Shape legend (in addition to `types.py`): I images, J captions, R all tokens of a cache in sequence, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from patchword.errors import DataError
from patchword.layers.patch_word import Tile, spans, tile_for

CAPTIONS_AT_ONCE = 2048
"""Captions held in float32 while all pictures pass: 64 MB at 16 words of width 512."""


class RaggedTokens(NamedTuple):
    """Tokens of n pictures or captions in float16, stored without padding.

    A caption of 13 words takes 13 rows, whatever the length of the longest caption.
    """

    flat_RC: Tensor
    starts: Tensor
    """n + 1 row numbers: item i has the rows starts[i] to starts[i + 1]."""

    def __len__(self) -> int:  # the number of items, not of fields
        return self.starts.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each item, (n,)."""
        return self.starts.diff()

    def padded(self, items: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the tokens (len(items), longest, C) in float32, padded with zeros, and the lengths.

        Both are on `device`.
        """
        pieces = [self.flat_RC[self.starts[i] : self.starts[i + 1]] for i in items.tolist()]
        tokens = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        return tokens.to(device).float(), self.lengths[items].to(device)


def ragged(batches: Iterable[tuple[Tensor, Tensor]]) -> RaggedTokens:
    """Builds a cache from batches of (tokens_BLC, lengths_B), in order.

    Raises DataError where float16 cannot hold a value, or where there is no batch.
    """
    rows, lengths = [], []
    for tokens_BLC, lengths_B in batches:
        mask_BL = (
            torch.arange(tokens_BLC.shape[1], device=tokens_BLC.device)
            < lengths_B.to(tokens_BLC.device)[:, None]
        )
        rows_RC = tokens_BLC.detach()[mask_BL].half().cpu()
        if not rows_RC.isfinite().all():
            raise DataError(
                "token cache: a value is not finite or beyond float16 (65504); the towers' output should be "
                "near unit scale"
            )
        rows.append(rows_RC)
        lengths.append(lengths_B.cpu())
    if not rows:
        raise DataError("token cache: no tokens were given, expected at least one batch")
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat(lengths).long().cumsum(0)])
    return RaggedTokens(torch.cat(rows), starts)


class Comparison(Protocol):
    """What an alignment head finds out about I pictures and J captions."""

    @property
    def similarities_IJ(self) -> Tensor:
        """The similarity of every picture with every caption."""
        ...


class AlignmentHead(Protocol):
    """The interface of an alignment head; `models/pairs/patch_slimming.py` implements it."""

    def images(self, tokens_INd: Tensor, class_token: bool, mask_IN: Tensor | None = None) -> Any:
        """Prepares I pictures for comparison; `class_token`: their first token is the class token."""

    def captions(self, tokens_JLd: Tensor, lengths_J: Tensor) -> Any:
        """Prepares J captions for comparison."""

    def compare(self, images: Any, captions: Any, product_dtype: torch.dtype = torch.float32) -> Comparison:
        """Compares pictures with captions, both as this head prepared them."""
        ...


@torch.no_grad()
def all_pairs(
    head: AlignmentHead,
    images: RaggedTokens,
    captions: RaggedTokens,
    class_token: bool,
    device: torch.device,
    tile: Tile | None = None,
    product_dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Returns the similarities (images, captions), float32 on the CPU; put the head in evaluation mode first.

    `tile` changes speed and memory only. `product_dtype=torch.bfloat16` computes the products of words and
    patches in bfloat16. That is faster where the hardware supports it, and may swap near ties. `progress` is
    called with the number of pairs done since its last call.
    """
    tile = tile or tile_for(device, _numbers(images))
    order_J = captions.lengths.argsort(descending=True, stable=True)
    similarities_IJ = torch.empty(len(images), len(captions))
    for block_J in order_J.split(CAPTIONS_AT_ONCE):
        sides = [head.captions(*captions.padded(items, device)) for items in block_J.split(tile.captions)]
        for span in spans(len(images), tile.images):
            side = _images(head, images, torch.arange(span.start, span.stop), class_token, device)
            columns = [head.compare(side, some, product_dtype).similarities_IJ for some in sides]
            similarities_IJ[span, block_J] = torch.cat(columns, dim=1).cpu()
            if progress is not None:
                progress((span.stop - span.start) * len(block_J))
    return similarities_IJ


class TwoStage(NamedTuple):
    """Similarities to rank by, one matrix per direction.

    Shortlisted pairs have the head's scores; all others rank below them, in the coarse order.
    """

    image_to_text_IJ: Tensor
    text_to_image_IJ: Tensor
    of_image_IJ: Tensor
    """True for the captions on each picture's shortlist."""
    of_caption_IJ: Tensor
    """True for the pictures on each caption's shortlist."""

    @property
    def compared(self) -> int:
        """Number of pairs that the head compared."""
        return int((self.of_image_IJ | self.of_caption_IJ).sum())

    def lost(self, image_of_caption_J: Tensor) -> tuple[float, float]:
        """Returns what re-ranking cannot recover: the share of the pictures with none of their captions on
        the shortlist, and the share of the captions whose picture is not on it.
        """
        own_J = torch.arange(len(image_of_caption_J))
        found_I = torch.zeros(len(self.of_image_IJ), dtype=torch.bool)
        found_I[image_of_caption_J[self.of_image_IJ[image_of_caption_J, own_J]]] = True
        found_J = self.of_caption_IJ[image_of_caption_J, own_J]
        return 1.0 - float(found_I.float().mean()), 1.0 - float(found_J.float().mean())


@torch.no_grad()
def two_stage(
    head: AlignmentHead,
    coarse_IJ: Tensor,
    images: RaggedTokens,
    captions: RaggedTokens,
    shortlist: int,
    class_token: bool,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> TwoStage:
    """Re-ranks the best `shortlist` candidates of a dual encoder with the head, in both directions.

    `coarse_IJ` holds the dual encoder's similarities. A shortlist as long as the other side gives the ranking
    of `all_pairs`. `progress` is called with the number of pictures done since its last call.
    """
    if shortlist < 1:
        raise DataError(f"shortlist of {shortlist}: expected at least one candidate")
    coarse_IJ = coarse_IJ.float().cpu()
    I, J = coarse_IJ.shape
    of_image_IJ = torch.zeros(I, J, dtype=torch.bool).scatter_(
        1, coarse_IJ.topk(min(shortlist, J), dim=1).indices, True
    )
    of_caption_IJ = torch.zeros(I, J, dtype=torch.bool).scatter_(
        0, coarse_IJ.topk(min(shortlist, I), dim=0).indices, True
    )
    wanted_IJ = of_image_IJ | of_caption_IJ
    fine_IJ = torch.zeros(I, J)
    for i in range(I):
        side = _images(head, images, torch.tensor([i]), class_token, device)
        chosen_J = wanted_IJ[i].nonzero()[:, 0]
        chosen_J = chosen_J[captions.lengths[chosen_J].argsort(descending=True, stable=True)]
        for items in chosen_J.split(tile_for(device, _numbers(images)).captions):
            fine_IJ[i, items] = (
                head.compare(side, head.captions(*captions.padded(items, device))).similarities_IJ[0].cpu()
            )
        if progress is not None:
            progress(1)
    # Pairs that were not re-ranked rank below all that were, and keep the order of the first stage.
    below_IJ = coarse_IJ - coarse_IJ.max() + fine_IJ[wanted_IJ].min() - 1.0
    return TwoStage(
        torch.where(of_image_IJ, fine_IJ, below_IJ),
        torch.where(of_caption_IJ, fine_IJ, below_IJ),
        of_image_IJ,
        of_caption_IJ,
    )


def _numbers(images: RaggedTokens) -> int:
    """Mean number of values in a picture's tokens."""
    return max(1, images.flat_RC.numel() // len(images))


def _images(
    head: AlignmentHead, images: RaggedTokens, items: Tensor, class_token: bool, device: torch.device
) -> NamedTuple:
    tokens, lengths = images.padded(items, device)
    if int(lengths.min()) == int(lengths.max()):
        return head.images(tokens, class_token)
    patches = (
        torch.arange(tokens.shape[1] - class_token, device=device) < (lengths - int(class_token))[:, None]
    )
    return head.images(tokens, class_token, patches)
