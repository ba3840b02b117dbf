"""nn.Linear with its product computed by the faster of torch's two CPU libraries.

On a CPU, torch gives single-precision products to MKL, which uses its 512-bit kernels on Intel processors
only. On others it runs at less than half the speed of oneDNN, which torch contains for convolutions. `linear`
uses oneDNN there, in the forward and the backward pass. It is `torch.nn.functional.linear` everywhere else:
on accelerators, under autocast, in other precisions, and for products too small to be worth the call. The two
libraries round differently in the last bits and are otherwise the same function.

Shape legend: R rows of all leading axes, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_WORTH_THE_CALL = 2**20
"""Multiplications below which the overhead of the call, some ten microseconds, exceeds the gain."""


class Linear(nn.Linear):
    """nn.Linear computed by `linear`, with the same parameters under the same names."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns inputs W^T + b over the last axis."""
        return linear(inputs, self.weight, self.bias)


def linear(inputs: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Returns inputs W^T + b over the last axis, as `torch.nn.functional.linear` does."""
    if not _suits(inputs, weight_OI):
        return F.linear(inputs, weight_OI, bias_O)
    inputs_RI = inputs.reshape(-1, inputs.shape[-1])
    learns = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (inputs, weight_OI, bias_O)
    )
    outputs_RO = (
        _Product.apply(inputs_RI, weight_OI, bias_O) if learns else _product(inputs_RI, weight_OI, bias_O)
    )
    return outputs_RO.view(*inputs.shape[:-1], len(weight_OI))


@functools.cache
def mkl_is_slow() -> bool:
    """True on a processor with 512-bit vectors that MKL does not use."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not both or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    description = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (
        description.read_text(encoding="utf-8") if description.exists() else platform.processor()
    )


def _suits(inputs: Tensor, weight_OI: Tensor) -> bool:
    return (
        inputs.dtype == weight_OI.dtype == torch.float32
        and inputs.device.type == "cpu"
        and inputs.numel() * len(weight_OI) >= _WORTH_THE_CALL
        and mkl_is_slow()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # a graph that is written for another runtime holds plain products
    )


def _product(inputs_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_dense(inputs_RI), _dense(weight_OI), bias_O, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Returns the matrix without gaps between its rows or columns.

    With gaps, oneDNN falls back to code that is a hundred times slower.
    """
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


class _Product(torch.autograd.Function):
    """y = x W^T + b;  dx = dy W,  dW = dy^T x,  db = the sum of dy over the rows."""

    @staticmethod
    def forward(ctx, inputs_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs_RI, weight_OI)
        return _product(inputs_RI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs_RI, weight_OI = ctx.saved_tensors
        return (
            _product(grad_RO, weight_OI.T) if ctx.needs_input_grad[0] else None,
            _product(grad_RO.T, inputs_RI.T) if ctx.needs_input_grad[1] else None,
            grad_RO.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )
