"""The types that towers, models and decoding exchange.

Shape legend, used in every name of the package that ends in capitals:
    B images (or rows) in a batch    N patches (grid cells)    T words, L text tokens    V vocabulary
    C channels of a tower    E width of a shared image-text space    H heads, D width of one head
    K beams    M memory slots or prototypes
Masks are boolean: True marks a real token or patch, False marks padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from patchword.ids import SpecialIds as SpecialIds


class VisualFeatures(NamedTuple):
    """The features of B pictures, from a vision tower or from a feature store in its place."""

    grid_BNC: Tensor
    """Patch tokens, row by row; a decoder attends to these."""
    class_BC: Tensor | None = None
    """Class token of the tower, of the same width as the grid; None where the tower has none."""
    pooled_BE: Tensor | None = None
    """One embedding for the whole picture, in the text space of a two-tower model."""
    aligned_BNE: Tensor | None = None
    """Patch tokens in the text space of a two-tower model. For CLIP they come from MaskCLIP's value path;
    its patch tokens of width 768 are not in that space."""
    mask_BN: Tensor | None = None
    """True for real patches; None means that all are real."""
    hw: tuple[int, int] | None = None
    """Rows and columns of the grid; None where the patches form no grid."""


class TextFeatures(NamedTuple):
    """The features of B texts, from a text tower."""

    tokens_BLC: Tensor
    pooled_BE: Tensor | None = None
    mask_BL: Tensor | None = None


class KeysAndValues(NamedTuple):
    """Keys and values of one decoder layer for the prototype bank: projected, without segment embeddings."""

    keys_BTD: Tensor
    values_BTD: Tensor


class Copies(NamedTuple):
    """Words of the picture's concepts that a decoder can point at."""

    ids_BK: Tensor
    """Token of each; -1 where there is none."""
    shares_BTK: Tensor
    """Probability, at each word, of pointing at each of them."""
    cosines_BKN: Tensor
    """How much each patch speaks for each of them."""


class Trace(NamedTuple):
    """What the model attended to for each word. A field is None where the model has no such part."""

    attention_BTN: Tensor | None = None
    """Attention weights over the patches for each word: the last layer's, averaged over heads. Each row
    sums to one, or to one minus the sentinel's share."""
    sentinel_BT: Tensor | None = None
    """Weight of the visual sentinel (Lu 2017): 1 means that the word used no patch."""
    concepts_BN: Tensor | None = None
    """Index of the codebook word assigned to each patch."""
    prototype_weights_BTLM: Tensor | None = None
    """Attention of each word to each memory prototype, per decoder layer, averaged over heads."""
    observed: tuple[KeysAndValues, ...] = ()
    """Keys and values that the prototype bank observes, per decoder layer."""
    copies: Copies | None = None
    """The words that could be copied, and how likely each was (a copy gate)."""


class Decoded(NamedTuple):
    """The result of teacher forcing.

    logits_BTV[b, t] scores the token after tokens_BT[b, t]; it is zero at t >= lengths_B[b].
    """

    logits_BTV: Tensor
    trace: Trace | None = None


class Captioner(Protocol):
    """The interface of every captioner in `models/`; `decode.py` and the objectives use nothing else.

    A memory is a NamedTuple of tensors with B rows; it is never copied per beam. A state is a NamedTuple of
    tensors whose first axis has B*K rows (image by image, K beams each). It holds all that a search must
    reorder, and nothing else.
    """

    vocabulary_size: int

    def encode(self, features: VisualFeatures) -> NamedTuple:
        """Projects the picture's keys and values for the decoder, once for all words and beams."""

    def decode(
        self, tokens_BT: Tensor, lengths_B: Tensor, memory: NamedTuple, trace: bool = False
    ) -> Decoded:
        """Teacher forcing: scores every next token of the given captions in one pass."""

    def start(self, memory: NamedTuple, beams: int) -> NamedTuple:
        """Returns the state of B*K rows before their first token."""

    def step(
        self, tokens_R: Tensor, memory: NamedTuple, state: NamedTuple, trace: bool = False
    ) -> tuple[Tensor, NamedTuple, Trace | None]:
        """Consumes one token per row and scores the next one.

        Returns the logits (R, V), the new state, and the trace of this token where `trace` is set.
        """


@runtime_checkable
class Prototypes(Protocol):
    """The interface of a captioner's prototype memory (`layers/prototypes.py`) for training and saving."""

    @property
    def placement(self) -> str:
        """Placement in the decoder: `self_concat`, `cross_add` or `sequential`."""
        ...

    def set_log_bias(self, log_bias: float) -> None:
        """Sets the log-bias that is added to the prototypes' scores: 0 is fully on, -inf off."""

    def statistics(self) -> dict[str, float]:
        """Statistics for a training log."""
        ...

    def describe(self, words_of: Callable[[list[int]], str]) -> dict[str, Any]:
        """Describes each prototype as JSON; `words_of` turns a stored context into text."""
        ...

    def resume_state(self) -> dict[str, Tensor]:
        """Returns what a bit-exact continuation needs beside the weights."""
        ...

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `resume_state` returned."""


class Projections(NamedTuple):
    """Queries, keys and values of one attention layer, split into heads."""

    queries_BHND: Tensor
    keys_BHND: Tensor
    values_BHND: Tensor


class TowerLayer(Protocol):
    """One layer of a tower. The mask is True at real tokens; None means that all are real.

    A layer whose tokens can be joined by others (ViT, BERT, CLIP's vision layers) also offers its two parts,
    so that a caller can compute some rows only, or share keys between two calls: `layer(tokens, mask)` equals
    `attend(tokens, queries, keys, values, mask)` with the result of `project(tokens)`.
    """

    def __call__(self, tokens_BNC: Tensor, mask_BN: Tensor | None = None, /) -> Tensor: ...

    def project(self, tokens_BNC: Tensor, /) -> Projections:
        """Projects the tokens to queries, keys and values, after the layer's input norm if it has one."""

    def attend(
        self,
        tokens_BQC: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask_BN: Tensor | None = None,
        /,
    ) -> Tensor:
        """Returns the layer's output (B, Q, C) for the Q tokens whose queries are given."""
