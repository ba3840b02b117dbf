"""The sentence encoder for one text, in numpy: a search by words is answered before torch would be imported.

The equations are those of `towers/small_bert.py` and `towers/sentence_encoder.py`, in evaluation mode, for
one text without padding. Matrices are read when their layer is reached; of the embedding only the rows of the
text.

Shape legend: L tokens, C width, H heads, D width of one head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from patchword.towers.settings import BertSizes

Read = Callable[[str, Sequence[int] | None], np.ndarray]
"""A weight by its name, float32; with row numbers only those rows."""

_erf = np.frompyfunc(math.erf, 1, 1)


def encode_sentence(ids_L: Sequence[int], read: Read, sizes: BertSizes) -> np.ndarray:
    """The mean token (C,) of a text, not normed.

    Args:
        ids_L: with start and end.
        read: gives the weights under their names in the encoder, such as `encoder.layer.0.output.dense.bias`.
    """
    tokens_LC = read("embeddings.word_embeddings.weight", ids_L)
    tokens_LC = tokens_LC + read("embeddings.position_embeddings.weight", range(len(ids_L)))
    tokens_LC = tokens_LC + read("embeddings.token_type_embeddings.weight", [0])
    tokens_LC = _normed(tokens_LC, read, "embeddings.LayerNorm", sizes.layer_norm_eps)
    for number in range(sizes.num_hidden_layers):
        tokens_LC = _layer(tokens_LC, read, f"encoder.layer.{number}", sizes)
    return tokens_LC.mean(0)


def _layer(tokens_LC: np.ndarray, read: Read, name: str, sizes: BertSizes) -> np.ndarray:
    queries_HLD, keys_HLD, values_HLD = (
        _mapped(tokens_LC, read, f"{name}.attention.self.{part}")
        .reshape(len(tokens_LC), sizes.num_attention_heads, -1)
        .transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    scores_HLL = queries_HLD @ keys_HLD.transpose(0, 2, 1) / np.float32(math.sqrt(queries_HLD.shape[-1]))
    weights_HLL = np.exp(scores_HLL - scores_HLL.max(-1, keepdims=True))
    weights_HLL /= weights_HLL.sum(-1, keepdims=True)
    attended_LC = (weights_HLL @ values_HLD).transpose(1, 0, 2).reshape(tokens_LC.shape)
    added_LC = tokens_LC + _mapped(attended_LC, read, f"{name}.attention.output.dense")
    tokens_LC = _normed(added_LC, read, f"{name}.attention.output.LayerNorm", sizes.layer_norm_eps)
    hidden_LF = _gelu(_mapped(tokens_LC, read, f"{name}.intermediate.dense"))
    added_LC = tokens_LC + _mapped(hidden_LF, read, f"{name}.output.dense")
    return _normed(added_LC, read, f"{name}.output.LayerNorm", sizes.layer_norm_eps)


def _mapped(rows: np.ndarray, read: Read, name: str) -> np.ndarray:
    return rows @ read(f"{name}.weight", None).T + read(f"{name}.bias", None)


def _normed(rows: np.ndarray, read: Read, name: str, epsilon: float) -> np.ndarray:
    centred = rows - rows.mean(-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(epsilon))
    return centred / deviation * read(f"{name}.weight", None) + read(f"{name}.bias", None)


def _gelu(rows: np.ndarray) -> np.ndarray:
    """x times the normal distribution up to x, exactly: numpy has no error function, so Python's is used."""
    return rows * np.float32(0.5) * (1 + _erf(rows / np.float32(math.sqrt(2))).astype(np.float32))
