"""Gathers rows of all processes on every process, with gradients, for losses over pairs.

If every process computes the same loss from gathered rows, then the mean of the processes' gradients equals
the gradient of one process with the whole batch, because the gradients of the rows are summed over the
processes.
"""

from __future__ import annotations

from typing import Any

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


@torch.no_grad()
def gathered_nest(nest: Any) -> Any:
    """A nest of tuples of tensors with the rows of all processes: first axes add up, in the order of the
    processes, other axes are filled up with zeros. Without gradients; what is no tensor stays as it is.
    """
    if isinstance(nest, Tensor):
        rows = nest.to(torch.uint8) if nest.dtype == torch.bool else nest
        longest = torch.tensor(rows.shape[1:], dtype=torch.long, device=rows.device)
        if rows.ndim > 1:
            torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
        more = [most - size for most, size in zip(longest.tolist(), rows.shape[1:], strict=True)]
        filled = F.pad(rows, [n for one in reversed(more) for n in (0, one)])
        return Gather().rows(filled.contiguous()).to(nest.dtype)
    if isinstance(nest, tuple):
        parts = [gathered_nest(part) for part in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)
    return nest


def in_the_order_of_the_batch(nest: Any, pictures_R: Tensor, counts: list[int]) -> tuple[Any, Tensor]:
    """A gathered nest as one process would have it, and the picture of each row in that order.

    Process p of P has pictures p, p + P, ... of the batch (`Run._load`); `counts` are their numbers, and
    `pictures_R` numbers them one process after the other. Tensors with a row for each picture or for each of
    R rows are sorted, others stay as they are.
    """
    processes, device = len(counts), pictures_R.device
    places = [place * processes + one for one, count in enumerate(counts) for place in range(count)]
    order_B = torch.tensor(places, device=device).argsort()
    pictures_R = order_B.argsort()[pictures_R]
    order_R = pictures_R.argsort(stable=True)

    def sort(part: Any) -> Any:
        if isinstance(part, Tensor):
            orders = {len(order_B): order_B, len(order_R): order_R}
            order = orders.get(len(part)) if part.ndim else None
            return part if order is None else part[order]
        if isinstance(part, tuple):
            sorted_ = [sort(one) for one in part]
            return type(part)(*sorted_) if hasattr(part, "_fields") else tuple(sorted_)
        return part

    return sort(nest), pictures_R[order_R]
