"""The ring buffer of a prototype memory, and the clustering of its content.

Shape legend: L decoder layers, N vectors, C width, W width of a context, M prototypes, K contexts kept for
each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from patchword.layers.clustering import kmeans, neighbour_values

_VECTORS_PER_PROTOTYPE = 39  # fewer vectors give poor means; FAISS warns at the same limit


class ClusterResult(NamedTuple):
    """The prototypes of all layers; a prototype whose entry in `sizes_LM` is zero does not exist."""

    keys_LMC: Tensor
    values_LMC: Tensor
    sizes_LM: Tensor
    contexts_LMKW: Tensor


@dataclass
class Bank:
    """Keys, values and contexts of past steps in float32, first in, first out.

    Each layer holds at most `capacity` vectors.
    """

    keys_LNC: Tensor
    values_LNC: Tensor
    contexts_NW: Tensor
    filled: int
    pointer: int

    @classmethod
    def empty(cls, capacity: int, layers: int, width: int, context_width: int, device: torch.device) -> Bank:
        """Returns a bank without vectors; it takes capacity * layers * width * 8 bytes."""
        keys_LNC = torch.zeros(layers, capacity, width, device=device)
        contexts_NW = torch.full((capacity, context_width), -1, dtype=torch.int32, device=device)
        return cls(keys_LNC, torch.zeros_like(keys_LNC), contexts_NW, filled=0, pointer=0)

    def add(self, keys_LNC: Tensor, values_LNC: Tensor, contexts_NW: Tensor) -> None:
        """Overwrites the oldest vectors with the newest."""
        capacity = self.keys_LNC.shape[1]
        keys_LNC, values_LNC, contexts_NW = (
            keys_LNC[:, -capacity:],
            values_LNC[:, -capacity:],
            contexts_NW[-capacity:],
        )
        count = keys_LNC.shape[1]
        places_N = (torch.arange(count, device=keys_LNC.device) + self.pointer) % capacity
        self.keys_LNC[:, places_N] = keys_LNC.to(self.keys_LNC.dtype)
        self.values_LNC[:, places_N] = values_LNC.to(self.values_LNC.dtype)
        self.contexts_NW[places_N] = contexts_NW.to(torch.int32)
        self.pointer = (self.pointer + count) % capacity
        self.filled = min(capacity, self.filled + count)

    def state(self) -> dict[str, Tensor]:
        """Returns the filled part and the pointers as tensors."""
        return {
            "bank.keys_LNC": self.keys_LNC[:, : self.filled].contiguous(),
            "bank.values_LNC": self.values_LNC[:, : self.filled].contiguous(),
            "bank.contexts_NW": self.contexts_NW[: self.filled].contiguous(),
            "bank.pointers": torch.tensor([self.filled, self.pointer]),
        }

    @classmethod
    def restored(cls, state: dict[str, Tensor], capacity: int, device: torch.device) -> Bank:
        """Rebuilds the bank from what `state` returned."""
        layers, _, width = state["bank.keys_LNC"].shape
        bank = cls.empty(capacity, layers, width, state["bank.contexts_NW"].shape[1], device)
        bank.filled, bank.pointer = state["bank.pointers"].tolist()
        bank.keys_LNC[:, : bank.filled] = state["bank.keys_LNC"].to(device)
        bank.values_LNC[:, : bank.filled] = state["bank.values_LNC"].to(device)
        bank.contexts_NW[: bank.filled] = state["bank.contexts_NW"].to(device)
        return bank


def cluster(
    bank: Bank,
    count: int,
    neighbours: int,
    iterations: int,
    contexts_kept: int,
    generator: torch.Generator,
    keep_length: bool = False,
) -> ClusterResult:
    """Clusters the bank of every layer into at most `count` prototypes, with at least 39 vectors each.

    With `keep_length` a value prototype is brought to the mean length of the values that it is the mean of.
    """
    alive = max(1, min(count, bank.filled // _VECTORS_PER_PROTOTYPE))
    layers, _, width = bank.keys_LNC.shape
    found = ClusterResult(
        bank.keys_LNC.new_zeros(layers, count, width),
        bank.keys_LNC.new_zeros(layers, count, width),
        torch.zeros(layers, count, dtype=torch.int64, device=bank.keys_LNC.device),
        bank.contexts_NW.new_full((layers, count, contexts_kept, bank.contexts_NW.shape[1]), -1),
    )
    for layer in range(layers):
        keys_NC, values_NC = bank.keys_LNC[layer, : bank.filled], bank.values_LNC[layer, : bank.filled]
        centres_MC, sizes_M = kmeans(keys_NC, alive, iterations, generator)
        found.keys_LMC[layer, :alive] = centres_MC
        found.sizes_LM[layer, :alive] = sizes_M
        if keep_length:  # the lengths are averaged with the same weights, as one column more
            values_NC = torch.cat((values_NC, values_NC.norm(dim=1, keepdim=True)), dim=1)
        values_MC, nearest_MK = neighbour_values(centres_MC, keys_NC, values_NC, neighbours)
        if keep_length:
            values_MC, lengths_M1 = values_MC.split((width, 1), dim=1)
            values_MC = F.normalize(values_MC, dim=1) * lengths_M1
        found.values_LMC[layer, :alive] = values_MC
        nearest_MK = nearest_MK[:, :contexts_kept]
        found.contexts_LMKW[layer, :alive, : nearest_MK.shape[1]] = bank.contexts_NW[nearest_MK]
    return found
