"""Rows of all processes on every process, with gradient: what losses over pairs need.

A loss that every process computes from gathered rows in the same way has, after the mean over the processes, the gradient that one process
with the whole batch would have: the rows' own gradients come back summed over the processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Gather:
    """Puts the rows of all processes together, in the order of the processes; with one process everything stays as it is.

    `owners` is called first in every step: it exchanges how many pictures and texts each process has.
    """

    def __init__(self) -> None:
        distributed = torch.distributed.is_initialized()
        self.processes = torch.distributed.get_world_size() if distributed else 1
        self.index = torch.distributed.get_rank() if distributed else 0
        self.first = 0
        """Number of this process's first picture among all."""

    def owners(self, owner_J: Tensor, pictures: int) -> Tensor:
        """For every text of all processes the number of its picture among all pictures."""
        if self.processes == 1:
            return owner_J
        counts_P = torch.zeros(self.processes, dtype=torch.long, device=owner_J.device)
        counts_P[self.index] = pictures
        torch.distributed.all_reduce(counts_P)
        self.first = int(counts_P[: self.index].sum())
        return self.rows(owner_J + self.first)

    def rows(self, rows: Tensor) -> Tensor:
        """First axis: rows of all processes, however many each has; the other axes are equal everywhere."""
        if self.processes == 1:
            return rows
        counts_P = torch.zeros(self.processes, dtype=torch.long, device=rows.device)
        counts_P[self.index] = len(rows)
        torch.distributed.all_reduce(counts_P)
        padded = F.pad(rows, [0, 0] * (rows.ndim - 1) + [0, int(counts_P.max()) - len(rows)])
        if rows.is_floating_point():
            parts = torch.distributed.nn.functional.all_gather(padded)
        else:
            parts = [torch.empty_like(padded) for _ in range(self.processes)]
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts_P, strict=True)])

    def padded_rows(self, tokens_JLd: Tensor) -> Tensor:
        """As `rows`; the second axis too may differ between processes, and is filled up with zeros to the longest."""
        if self.processes == 1:
            return tokens_JLd
        longest = torch.tensor(tokens_JLd.shape[1], device=tokens_JLd.device)
        torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
        return self.rows(F.pad(tokens_JLd, (0, 0, 0, int(longest) - tokens_JLd.shape[1])))
