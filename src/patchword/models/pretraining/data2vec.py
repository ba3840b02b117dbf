"""data2vec: a student with gaps predicts what its own slow average makes of the whole.

Baevski et al. 2022 (arXiv 2202.03555).

    Delta <- tau Delta + (1 - tau) theta            tau rises linearly from tau_0 to tau_e over tau_n steps
    y_t = (1/K) sum_{l=L-K+1}^{L} norm(a_t^l)       a: the teacher's feed-forward output
    L = smooth_l1_beta(head(f_theta(masked x))_t, y_t)      at hidden positions t only

The teacher sees the whole input, in evaluation mode and without gradient. norm is a LayerNorm without affine
parameters. The same model reads pictures (ViT, blocks of patches) and texts (BERT, spans of words).

Shape legend: that of `patchword.types`; P hidden positions of the whole batch, T tokens of either medium.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.errors import ConfigError


class Data2VecConfig(BaseModel, extra="forbid", frozen=True):
    """What is hidden, what the targets are, and how slow the teacher is."""

    kind: Literal["data2vec"] = "data2vec"
    layers: int = Field(6, gt=0, le=512, description="last layers K whose outputs are averaged to targets")
    beta: float = Field(2.0, gt=0, description="where the smooth L1 loss turns from squared to absolute")
    share: float = Field(0.6, gt=0, lt=1, description="share of the patches or words that is hidden")
    smallest_block: int = Field(4, gt=0, description="pictures: patches of the smallest hidden block")
    span: int = Field(4, gt=0, description="texts: words of a hidden span")
    head_layers: Literal[1, 2] = Field(
        1, description="linear layers of the head; the paper has 1 for pictures and 2 for texts"
    )
    first_decay: float = Field(0.999, ge=0, le=1, description="decay of the teacher's average at the start")
    last_decay: float = Field(0.9998, ge=0, le=1, description="decay once it has risen")
    decay_steps: int = Field(1000, ge=0, description="steps over which the decay rises linearly")
    normalise: bool = Field(
        True, description="norm the outputs that targets are made of; false: a control that may collapse"
    )


class Prediction(NamedTuple):
    """What the student says of the hidden positions, and what the teacher saw there."""

    predicted_PC: Tensor
    target_PC: Tensor


class Data2Vec(nn.Module):
    """A tower that learns, its teacher, the mark of hidden positions, and the head.

    The tower must offer `embed_hidden(..., hidden, mark_C)` and `feed_forwards`.
    """

    def __init__(self, config: Data2VecConfig, tower: Any) -> None:
        """Raises ConfigError for a tower that cannot hide tokens, or with fewer than K layers."""
        super().__init__()
        if not hasattr(tower, "embed_hidden"):
            raise ConfigError(
                f"data2vec hides tokens of a tower, and {type(tower).__name__} has no place for a mark: "
                "choose a vit or bert tower"
            )
        if config.layers > len(tower.layers):
            raise ConfigError(
                f"model.layers is {config.layers} and the tower has {len(tower.layers)} layers: average fewer"
            )
        self.config, self.tower = config, tower
        self.teacher = copy.deepcopy(tower).requires_grad_(False)
        self.mark_C = nn.Parameter(torch.zeros(tower.width))
        nn.init.trunc_normal_(self.mark_C, std=0.02)
        parts: list[nn.Module] = [nn.Linear(tower.width, tower.width)]
        if config.head_layers == 2:
            parts = [
                nn.Linear(tower.width, 2 * tower.width),
                nn.GELU(),
                nn.Linear(2 * tower.width, tower.width),
            ]
        self.head = nn.Sequential(*parts)

    def train(self, mode: bool = True) -> Data2Vec:
        """As `nn.Module.train`; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: Sequence[Tensor], hidden_BT: Tensor) -> Prediction:
        """Predicts the targets of the hidden positions.

        `inputs` are what the tower's `embed` takes: pixels, or ids and their mask. `hidden_BT` has no column
        for a class token.
        """
        tokens_BTC, mask_BT = self.tower.embed_hidden(*inputs, hidden=hidden_BT, mark_C=self.mark_C)
        for layer in self.tower.layers:
            tokens_BTC = layer(tokens_BTC, mask_BT)
        skipped = tokens_BTC.shape[1] - hidden_BT.shape[1]
        predicted_PC = self.head(tokens_BTC[:, skipped:][hidden_BT])
        return Prediction(predicted_PC, self.targets(inputs, skipped)[hidden_BT])

    @torch.no_grad()
    def targets(self, inputs: Sequence[Tensor], skipped: int) -> Tensor:
        """The teacher's targets (B, T, C) at every position but the first `skipped`, in float32."""
        tokens_BTC, mask_BT = self.teacher.embed(*inputs)
        with recorded(self.teacher.feed_forwards[-self.config.layers :]) as outputs:
            for layer in self.teacher.layers:
                tokens_BTC = layer(tokens_BTC, mask_BT)
        parts = [output_BTC[:, skipped:].float() for output_BTC in outputs]
        if self.config.normalise:
            parts = [F.layer_norm(part_BTC, part_BTC.shape[-1:]) for part_BTC in parts]
        return torch.stack(parts).mean(0)

    def decay(self, step: int) -> float:
        """The teacher's decay tau after step `step`, counted from 0."""
        rising = self.config.decay_steps
        done = 1.0 if step >= rising else step / rising
        return self.config.first_decay + done * (self.config.last_decay - self.config.first_decay)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Moves the teacher towards the student. What stands before the layers is shared, not averaged."""
        student, teacher = dict(self.tower.named_parameters()), dict(self.teacher.named_parameters())
        shared = {id(weight) for part in self.teacher.parts.embedding for weight in part.parameters()}
        tau = self.decay(step)
        for name, weight in teacher.items():
            weight.lerp_(student[name], 1.0 if id(weight) in shared else 1.0 - tau)
        for ours, theirs in zip(self.teacher.buffers(), self.tower.buffers(), strict=True):
            ours.copy_(theirs)


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what the modules give while the context is open, in the order in which they are called."""
    outputs: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _, __, given: outputs.append(given)) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def regression_loss(prediction: Prediction, beta: float) -> Tensor:
    """Smooth L1, summed over positions and averaged over channels."""
    loss_PC = F.smooth_l1_loss(
        prediction.predicted_PC.float(), prediction.target_PC, beta=beta, reduction="none"
    )
    return loss_PC.mean(-1).sum()


def deviation(rows_PC: Tensor) -> Tensor:
    """Standard deviation of each channel over the rows, averaged over channels: near 0 after a collapse."""
    return rows_PC.float().var(0, unbiased=False).clamp_min(0).sqrt().mean()


def explained(prediction: Prediction) -> Tensor:
    """Share of the targets' variance that the predictions explain, R^2 over all channels."""
    target_PC = prediction.target_PC
    rest = (prediction.predicted_PC.float() - target_PC).square().sum()
    return 1 - rest / (target_PC - target_PC.mean(0)).square().sum().clamp_min(1e-12)
