"""Gathers rows of all processes on every process, with gradients, for losses over pairs.

If every process computes the same loss from gathered rows, then the mean of the processes' gradients equals
the gradient of one process with the whole batch, because the gradients of the rows are summed over the
processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Gather:
    """Concatenates the rows of all processes, in the order of the processes; with one it changes nothing.

    Call `owners` first in every step: it exchanges the numbers of pictures and texts of the processes.
    """

    def __init__(self) -> None:
        distributed = torch.distributed.is_initialized()
        self.processes = torch.distributed.get_world_size() if distributed else 1
        self.index = torch.distributed.get_rank() if distributed else 0
        self.first = 0
        """Number of this process's first picture among all."""

    def owners(self, owner_J: Tensor, pictures: int) -> Tensor:
        """Returns for every text of all processes the number of its picture among all pictures."""
        if self.processes == 1:
            return owner_J
        counts_P = torch.zeros(self.processes, dtype=torch.long, device=owner_J.device)
        counts_P[self.index] = pictures
        torch.distributed.all_reduce(counts_P)
        self.first = int(counts_P[: self.index].sum())
        return self.rows(owner_J + self.first)

    def rows(self, rows: Tensor) -> Tensor:
        """Concatenates along the first axis, for any numbers of rows; the other axes must be equal."""
        if self.processes == 1:
            return rows
        counts_P = torch.zeros(self.processes, dtype=torch.long, device=rows.device)
        counts_P[self.index] = len(rows)
        torch.distributed.all_reduce(counts_P)
        padded = F.pad(rows, [0, 0] * (rows.ndim - 1) + [0, int(counts_P.max()) - len(rows)])
        if rows.is_floating_point():
            from torch.distributed.nn.functional import all_gather  # torch.distributed may be built without

            parts = list(all_gather(padded))
        else:
            parts = [torch.empty_like(padded) for _ in range(self.processes)]
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts_P, strict=True)])

    def padded_rows(self, tokens_JLd: Tensor) -> Tensor:
        """Concatenates as `rows` does, where the second axis may differ between processes too.

        It is padded with zeros to the longest.
        """
        if self.processes == 1:
            return tokens_JLd
        longest = torch.tensor(tokens_JLd.shape[1], device=tokens_JLd.device)
        torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
        return self.rows(F.pad(tokens_JLd, (0, 0, 0, int(longest) - tokens_JLd.shape[1])))
