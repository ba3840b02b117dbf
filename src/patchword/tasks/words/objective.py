"""The losses of word vectors: each model beside the same one without pictures, which reads the same batches.

The two share no parameter, so training both at once is training each alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from patchword.models.word_vectors.autoencoder import BimodalAutoencoder, WordBatch
from patchword.models.word_vectors.grounded_space import GroundedSpace, SentencePairs
from patchword.models.word_vectors.skip_gram import SkipGram, SkipGramBatch
from patchword.train.step import Shares, StepContext, StepResult, backward, mean_losses


def _total(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def step_generator() -> torch.Generator:
    """Random numbers of a step: the loop seeds torch anew before each one, and this follows from that
    seed."""
    return torch.Generator().manual_seed(torch.initial_seed() % 2**63)


class SkipGramObjective(nn.Module):
    """Skip-gram with pictures and, beside it, without."""

    def __init__(self, model: SkipGram, baseline: SkipGram | None) -> None:
        super().__init__()
        self.model, self.baseline = model, baseline

    def forward(self, batch: SkipGramBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses per word of the corpus."""
        found = self.model(batch)
        losses = {
            name: value if name == "penalty" else value / shares.targets for name, value in found.items()
        }
        if self.baseline is not None:
            losses["baseline"] = self.baseline(batch)["linguistic"] / shares.targets
        return _total(losses)


def skip_gram_step(context: StepContext, parts: Sequence[Any]) -> StepResult:
    """One step of Adagrad on the rows of the words of a batch; gradients are not clipped."""
    (optimiser,) = context.optimisers
    losses = mean_losses(context, backward(context, parts))
    squares = 0.0
    for parameter in context.model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.coalesce() if parameter.grad.is_sparse else parameter.grad
            values = parameter.grad.values() if parameter.grad.is_sparse else parameter.grad
            squares += float(values.square().sum())
    taken = math.isfinite(losses["loss"]) and math.isfinite(squares)
    if taken:
        # The rows that Adagrad makes anew are those of a gradient that is valid already.
        with torch.sparse.check_sparse_tensor_invariants(False):
            optimiser.step()
    optimiser.zero_grad()
    return StepResult(losses, squares**0.5, taken)


class AutoencoderObjective(nn.Module):
    """Layer by layer, then both sides from one code."""

    def __init__(self, model: BimodalAutoencoder, layerwise: bool) -> None:
        super().__init__()
        self.model, self.layerwise = model, layerwise

    def forward(self, batch: WordBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, weighted by the part's share of the words of the step."""
        loss = self.model.layerwise_loss if self.layerwise else self.model.loss
        share = batch.target_count / shares.targets
        return _total({name: share * value for name, value in loss(batch, step_generator()).items()})


class GroundedObjective(nn.Module):
    """The grounded space and, beside it, the sentence encoder that text alone trains."""

    def __init__(self, model: GroundedSpace, baseline: GroundedSpace | None) -> None:
        super().__init__()
        self.model, self.baseline = model, baseline

    def forward(self, batch: SentencePairs, shares: Shares) -> dict[str, Tensor]:
        """Named losses, weighted by the part's share of the sentences of the step."""
        losses = self.model.loss(batch, step_generator())
        if self.baseline is not None:
            losses["baseline"] = self.baseline.loss(batch, step_generator())["words"]
        share = batch.target_count / shares.targets
        return _total({name: share * value for name, value in losses.items()})
