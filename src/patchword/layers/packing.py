"""Batches of captions of different lengths, processed without computing on padding.

A recurrent decoder sorts its rows by falling length, so that at word t only the first `counts[t]` rows have a
word. Its outputs are packed word by word and put back to (B, T) at the end. The vocabulary layer, by far the
widest, only sees packed rows.

Shape legend: B captions, T words, P packed (caption, word) pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """The order in which the rows of a batch are processed."""

    order_B: Tensor | None
    """Row of the batch at each position; None where the rows are already sorted by falling length."""
    counts: tuple[int, ...]
    """Number of rows that have a word at each step; its length is that of the longest caption."""
    places_P: Tensor
    """Position b * T + t of each packed pair."""
    shape: tuple[int, int]
    """B and T."""


def pack(lengths_B: Tensor, steps: int) -> Packing:
    """Plans the packing of captions of `lengths_B` words, each at most `steps`.

    A column (B, 1) of lengths is accepted too. On an accelerator this waits for the lengths once.
    """
    device, lengths = lengths_B.device, lengths_B.flatten().tolist()
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    counts = tuple(sum(length > step for length in lengths) for step in range(max(lengths, default=0)))
    places = [row * steps + step for step, count in enumerate(counts) for row in order[:count]]
    in_order = order == list(range(len(lengths)))
    return Packing(
        order_B=None if in_order else torch.tensor(order, device=device),
        counts=counts,
        places_P=torch.tensor(places, device=device, dtype=torch.long),
        shape=(len(lengths), steps),
    )


def unpack(values_PX: Tensor, packing: Packing) -> Tensor:
    """Puts packed rows back to (B, T, X), with zeros where there is no word."""
    (B, T), X = packing.shape, values_PX.shape[-1]
    return values_PX.new_zeros(B * T, X).index_copy(0, packing.places_P, values_PX).view(B, T, X)


def valid(lengths_B: Tensor, steps: int) -> Tensor:
    """Mask (B, T), True at the words of each caption; a column (B, 1) of lengths is accepted too."""
    return torch.arange(steps, device=lengths_B.device) < lengths_B.reshape(-1, 1)


def at_words(layer: Callable[[Tensor], Tensor], inputs_BTX: Tensor, valid_BT: Tensor) -> Tensor:
    """Applies `layer` to the words only and returns (B, T, its width), with zeros elsewhere.

    The widest layer of a captioner then costs nothing for padding.
    """
    places_P = valid_BT.flatten().nonzero().squeeze(1)
    outputs_PY = layer(inputs_BTX.flatten(0, 1).index_select(0, places_P))
    outputs = outputs_PY.new_zeros(valid_BT.numel(), outputs_PY.shape[-1]).index_copy(0, places_P, outputs_PY)
    return outputs.view(*valid_BT.shape, -1)
