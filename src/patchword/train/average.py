"""A running average of the weights (EMA), which is what a generative model is used and saved with.

    averaged = d averaged + (1 - d) weights          d = min(decay, (1 + step) / (10 + step))

The first steps count for less than `decay` says, so that a short training is not an average of noise.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The running average of a model that is being trained.

    Attributes:
        model: a copy of the model with the averaged weights, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`decay` 0 keeps no average: the copy follows the model."""
        self.decay = decay
        self.model: Any = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step` (from 0); buffers are copied."""
        self.model.to(next(model.parameters()).device)
        keep = min(self.decay, (1 + step) / (10 + step))
        averaged = dict(self.model.named_parameters())
        for name, parameter in model.named_parameters():
            averaged[name].lerp_(parameter, 1 - keep)
        copies = dict(self.model.named_buffers())
        for name, buffer in model.named_buffers():
            copies[name].copy_(buffer)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """What a resumed run needs beside the averaged weights, which are the saved model: the weights that
        are trained, under "trained.".
        """
        return {f"trained.{name}": tensor for name, tensor in model.state_dict().items()}

    def load_state(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        """The counterpart of `state`; the averaged weights have been read from the saved model by then."""
        wanted = model.state_dict()
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(tensors[f"trained.{name}"])
