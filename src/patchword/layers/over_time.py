"""A linear map inside a recurrence that computes its weight gradient once instead of once per step.

Step t computes y_t = offset_t + W x_t, and x_t depends on y_{t-1}, so the products of a recurrence cannot be
combined. The gradient of W can: it is the sum over t of dy_t x_t^T, which is one large product once every
dy_t is known. Autograd would form a small product per step and add up 20 matrices of the size of W. The large
product is possible because dy_t is also the gradient of offset_t: the offsets of all steps are one tensor
made before the recurrence, and its gradient is complete only when all steps have been differentiated.

Shape legend: P steps of all rows together, n rows of one step, X width of the inputs, Y width of the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchword.layers.linear import linear


class OverTime:
    """A linear map for one run of a recurrence.

    Split `offsets_PY` into the offsets of the steps, in order, and call the map exactly once for each step.
    """

    def __init__(self, weight_YX: Tensor, offsets_PY: Tensor) -> None:
        self._inputs: list[Tensor] = []
        self._weight_YX = weight_YX.detach()
        self.offsets_PY: Tensor = _WeightOnce.apply(offsets_PY, weight_YX, self._inputs)

    def __call__(self, offsets_nY: Tensor, inputs_nX: Tensor) -> Tensor:
        self._inputs.append(inputs_nX.detach())
        return offsets_nY + linear(inputs_nX, self._weight_YX)


class _WeightOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, offsets_PY: Tensor, weight_YX: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs, ctx.weight_dtype = inputs, weight_YX.dtype
        return offsets_PY.view_as(offsets_PY)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_PY: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs_PX = torch.cat(ctx.inputs).to(grad_PY.dtype)
        return grad_PY, linear(grad_PY.T, inputs_PX.T).to(ctx.weight_dtype), None
