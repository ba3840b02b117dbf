"""A model whose weights, gradients and moments are shared out between processes: FSDP, by torch's
`fully_shard` (Zhao et al. 2023, arXiv 2304.11277).

    between steps    each of P processes holds a P-th of every matrix and vector, and of its moments
    within a step    all weights, gathered once; after the last part of the batch each process keeps the mean
                     gradient of its share
    whole            validations and checkpoints see a copy of the weights that is gathered for them

The objective is one unit: its layers are not gathered one after the other, so that a step holds all weights
and all gradients for a while, and what is spared is the moments, two thirds to a half of what an optimiser
needs. Parameters that are a single number stay on every process. At the end of a stage the model is whole
again, as the next one may train other parts of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


class Sharded:
    """The objective of one stage, shared out. Every method is to be called by all processes."""

    def __init__(self, objective: nn.Module, accelerator: Accelerator) -> None:
        self.objective: Any = objective.to(accelerator.device)
        self._processes = accelerator.num_processes
        self._single = {one for one in objective.parameters() if one.ndim == 0}
        self._order: list[list[nn.Parameter]] = []
        mesh = init_device_mesh(accelerator.device.type, (self._processes,))
        fully_shard(objective, mesh=mesh, reshard_after_forward=False, ignored_params=self._single)
        self.objective.set_reshard_after_backward(False)
        if hasattr(objective, "embed"):  # cached gradients are computed without `forward`
            register_fsdp_forward_method(objective, "embed")

    def share_out(self, packed: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        """This process's part of a packed optimiser, which was whole."""
        parameters = _parameters(optimiser)
        found = {}
        for key, value in packed.items():
            parameter = parameters[int(key.partition(".")[0])]
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                mesh, placements = parameter.device_mesh, parameter.placements
                value = distribute_tensor(value, mesh, placements, src_data_rank=None)
            found[key] = value
        return found

    def split(self, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        """Keep parameters that are shared out in groups of their own: a fused step takes one kind."""
        self._order = [_parameters(optimiser) for optimiser in optimisers]
        for optimiser in optimisers:
            groups = []
            for group in optimiser.param_groups:
                for shared in (True, False):
                    some = [one for one in group["params"] if isinstance(one, DTensor) == shared]
                    groups += [{**group, "params": some}] if some else []
            optimiser.param_groups = groups

    def packed(self, optimisers: Sequence[Any]) -> dict[str, Tensor]:
        """The whole optimisers, as `pack_optimisers` gives them."""
        found = {}
        for number, (optimiser, order) in enumerate(zip(optimisers, self._order, strict=True)):
            for index, parameter in enumerate(order):
                for name, value in optimiser.state.get(parameter, {}).items():
                    if value is not None:
                        found[f"{number}.{index}.{name}"] = _whole(torch.as_tensor(value))
        return found

    def gather(self) -> None:
        """All weights, for a step; running statistics are those of the first process, as without shares."""
        for buffer in self.objective.buffers():
            torch.distributed.broadcast(buffer, 0)
        self.objective.unshard()

    def exchange(self, last: bool) -> None:
        """Whether the next backward pass is the last one of the step, after which gradients are exchanged."""
        self.objective.set_requires_gradient_sync(last)

    def settle(self) -> None:
        """After the last backward pass: each process holds its share again."""
        self.objective.reshard()
        for one in self._single:
            if one.grad is not None:
                torch.distributed.all_reduce(one.grad)
                one.grad /= self._processes

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> float:
        """Clip the whole gradient; the norm that it had before."""
        shared, own = torch.zeros(2, device=next(self.objective.parameters()).device)
        grads = [one.grad for one in parameters if one.grad is not None]
        local: list[Tensor] = []
        for grad in grads:
            part = grad.to_local() if isinstance(grad, DTensor) else grad
            total = shared if isinstance(grad, DTensor) else own
            total += part.float().square().sum()
            local.append(part)
        torch.distributed.all_reduce(shared)
        norm = float((shared + own).sqrt())
        if math.isfinite(norm) and norm > most:
            for part in local:
                part.mul_(most / (norm + 1e-6))
        return norm

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The modules hold whole weights, of which a change is lost at the end."""
        before = [dict(module._parameters) for module in self.objective.modules()]
        self.merge()
        try:
            yield
        finally:
            for module, held in zip(self.objective.modules(), before, strict=True):
                module._parameters.update(held)

    @torch.no_grad()
    def merge(self) -> None:
        """Give the modules whole weights again."""
        made: dict[int, nn.Parameter] = {}
        for module in self.objective.modules():
            for name, parameter in module._parameters.items():
                if isinstance(parameter, DTensor):
                    if id(parameter) not in made:
                        whole = nn.Parameter(_whole(parameter), requires_grad=parameter.requires_grad)
                        made[id(parameter)] = whole
                    module._parameters[name] = made[id(parameter)]


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order in which an optimiser numbers them."""
    return [one for group in optimiser.param_groups for one in group["params"]]


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
