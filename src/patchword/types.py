"""The types that travel between towers, models and decoding.

Shape legend, used in every name of the package that ends in capitals:
    B images (or rows) in a batch     N patches (grid cells)      C channels of a tower      E width of a shared image-text space
    T words, L text tokens            V vocabulary                K beams                    H heads, D width of one head
    M memory slots or prototypes
Masks are boolean and True where something real stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from patchword.ids import SpecialIds as SpecialIds


class VisualFeatures(NamedTuple):
    """What a vision tower, or a feature store in its place, returns for B pictures."""

    grid_BNC: Tensor
    """Patch tokens, row by row: what a decoder attends to."""
    class_BC: Tensor | None = None
    """Class token of the tower, same width as the grid; None where the tower has none."""
    pooled_BE: Tensor | None = None
    """The whole picture in the text space of a two-tower model."""
    aligned_BNE: Tensor | None = None
    """Patch tokens in the text space of a two-tower model (for CLIP: MaskCLIP's value path, not the width-768 patch tokens)."""
    mask_BN: Tensor | None = None
    """True for real patches; None means that all are real."""
    hw: tuple[int, int] | None = None
    """Rows and columns of the grid, where the patches form one."""


class TextFeatures(NamedTuple):
    """What a text tower returns for B texts."""

    tokens_BLC: Tensor
    pooled_BE: Tensor | None = None
    mask_BL: Tensor | None = None


class KeysAndValues(NamedTuple):
    """Keys and values of one decoder layer, as a prototype bank stores them: after projection, before segment embeddings."""

    keys_BTD: Tensor
    values_BTD: Tensor


class Trace(NamedTuple):
    """What made each word. Every field is None (or empty) where the model has no such part."""

    attention_BTN: Tensor | None = None
    """Weights over the patches for each word; heads are averaged, the last layer is taken. Rows sum to one (less the sentinel)."""
    sentinel_BT: Tensor | None = None
    """Share of the visual sentinel (Lu 2017): 1 means that the word came from language alone."""
    concepts_BN: Tensor | None = None
    """Index of the codebook word assigned to each patch."""
    prototype_weights_BTLM: Tensor | None = None
    """Attention that each word gave to each memory prototype, per decoder layer, averaged over heads."""
    observed: tuple[KeysAndValues, ...] = ()
    """Per decoder layer, what the prototype bank observes."""


class Decoded(NamedTuple):
    """Result of teacher forcing: logits_BTV[b, t] scores the token after tokens_BT[b, t]; zeros at t >= lengths_B[b]."""

    logits_BTV: Tensor
    trace: Trace | None = None


class Captioner(Protocol):
    """What every captioner of `models/` offers; `decode.py` and the objectives need nothing else.

    `encode` projects keys and values for the decoder once, into a NamedTuple of tensors with B rows that is never copied per beam.
    `state` is a NamedTuple of tensors whose first axis has B*K rows (image by image, K beams each): all that a search must reorder,
    and nothing else. `step` consumes one token per row and gives the logits of the next one.
    """

    vocabulary_size: int

    def encode(self, features: VisualFeatures) -> NamedTuple: ...

    def decode(
        self, tokens_BT: Tensor, lengths_B: Tensor, memory: NamedTuple, trace: bool = False
    ) -> Decoded: ...

    def start(self, memory: NamedTuple, beams: int) -> NamedTuple: ...

    def step(
        self, tokens_R: Tensor, memory: NamedTuple, state: NamedTuple, trace: bool = False
    ) -> tuple[Tensor, NamedTuple, Trace | None]: ...


@runtime_checkable
class Prototypes(Protocol):
    """What training and model folders need of a captioner's prototype memory, whatever it is made of (`layers/prototypes.py`)."""

    @property
    def placement(self) -> str:
        """Where it stands in the decoder: `self_concat`, `cross_add` or `sequential`."""
        ...

    def set_log_bias(self, log_bias: float) -> None:
        """How much the prototypes count: added to their scores; 0 is in full, -inf not at all."""

    def statistics(self) -> dict[str, float]:
        """Numbers for a training log."""
        ...

    def describe(self, words_of: Callable[[list[int]], str]) -> dict[str, Any]:
        """What each prototype stands for, as JSON; `words_of` gives the words of a stored context."""
        ...

    def resume_state(self) -> dict[str, Tensor]:
        """What a bit-exact continuation needs beside the weights."""
        ...

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `resume_state` gave."""


class Projections(NamedTuple):
    """Tokens after the three maps of one attention, split into heads."""

    queries_BHND: Tensor
    keys_BHND: Tensor
    values_BHND: Tensor


class TowerLayer(Protocol):
    """One layer of a tower. `mask` is True at real tokens; None means that all are real.

    A layer whose tokens may be joined by others (ViT, BERT, CLIP's vision layers) also comes apart, so that a caller can attend from some
    rows only, or share keys between two calls: `layer(tokens, mask)` is `attend(tokens, queries, keys, values, mask)` of `project(tokens)`.
    """

    def __call__(self, tokens_BNC: Tensor, mask_BN: Tensor | None = None) -> Tensor: ...

    def project(self, tokens_BNC: Tensor) -> Projections: ...

    def attend(
        self, tokens_BQC: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask_BN: Tensor | None = None
    ) -> Tensor: ...
