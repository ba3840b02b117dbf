"""What captioners minimise: cross-entropy with teacher forcing, and self-critical training.

Each owns the composed model.

Rennie et al. 2017 (arXiv 1612.00563) for self-critical training; Luo 2020 (arXiv 2003.09971) for the mean of
the other samples as baseline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.composed import CaptionModel
from patchword.data.captions import CaptionBatch
from patchword.decode import BeamOptions, beam_search, greedy, sample, select_rows
from patchword.ids import SpecialIds
from patchword.lookup import look_up
from patchword.losses import caption_cross_entropy, doubly_stochastic
from patchword.train.step import Shares
from patchword.types import Trace, VisualFeatures

Weight = Annotated[float, Field(ge=0)] | tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
"""Weight of a loss; a pair goes evenly from the first to the second over the stage."""


class CrossEntropySettings(BaseModel, extra="forbid", frozen=True):
    """Teacher forcing, and the regularisers that may go with it."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each target that is spread over the vocabulary"
    )
    doubly_stochastic: Weight = Field(
        0.0, description="weight of Show, Attend and Tell's regulariser of the attention"
    )
    patch_contrast: Weight = Field(
        0.0,
        description="weight of the contrast between patches of one concept, or of one class of "
        "data.panoptic (FSGR: 0.25)",
    )
    text_regulariser: Weight = Field(
        0.0,
        description="weight of 1 - cosine(picture, caption) in the text space of text_from; needs "
        "captioner.region_alignment.text_regulariser",
    )
    doubly_stochastic_mean: bool = Field(
        False, description="mean over patches (PyTorch course) in place of the paper's sum"
    )


class SelfCriticalSettings(BaseModel, extra="forbid", frozen=True):
    """Self-critical training on CIDEr-D."""

    kind: Literal["self_critical"] = "self_critical"
    baseline: Literal["mean_of_others", "greedy", "beam"] = Field(
        "mean_of_others",
        description="mean_of_others: other samples (Luo 2020); greedy: Rennie 2017; beam: beams against "
        "their mean (M2)",
    )
    samples: int = Field(5, ge=2, description="captions per picture that are rewarded")
    max_length: int = Field(20, gt=0, description="longest caption that is sampled, end token included")


class Reward(Protocol):
    """CIDEr-D of token ids (end token included, padding left out) against the references of their
    pictures."""

    def __call__(self, captions: list[list[int]], pictures: list[int | str]) -> list[float]: ...


class BankObservation(NamedTuple):
    """What the prototype bank observes of a step, or of one part of it; no gradient hangs on it."""

    trace: Trace
    tokens_RT: Tensor
    lengths_R: Tensor
    memory: tuple
    pictures_R: Tensor


def whole_step(parts: Sequence[BankObservation]) -> BankObservation:
    """The parts of a step put together, rows below rows, as if the batch had not been cut."""
    counts = [int(part.pictures_R.max()) + 1 for part in parts]
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    numbered = [
        part._replace(pictures_R=part.pictures_R + first) for part, first in zip(parts, firsts, strict=True)
    ]
    return parts[0] if len(parts) == 1 else _joined(numbered)


def whole_batch(seen: BankObservation) -> BankObservation:
    """What all processes saw of a step, in the order in which one process would have seen it."""
    if not torch.distributed.is_initialized():
        return seen
    gather = look_up("train.gather")
    device, processes = seen.pictures_R.device, torch.distributed.get_world_size()
    counts_P = torch.zeros(processes, dtype=torch.long, device=device)
    counts_P[torch.distributed.get_rank()] = int(seen.pictures_R.max()) + 1
    torch.distributed.all_reduce(counts_P)
    first = int(counts_P[: torch.distributed.get_rank()].sum())
    rows = gather.gathered_nest(seen._replace(pictures_R=seen.pictures_R + first))
    found, pictures_R = gather.in_the_order_of_the_batch(rows, rows.pictures_R, counts_P.tolist())
    whole: BankObservation = found._replace(pictures_R=pictures_R)
    return whole


def _joined(parts: Sequence[Any]) -> Any:
    """Nests of tuples of tensors into one: first axes add up, other axes are filled up with zeros."""
    first = parts[0]
    if isinstance(first, Tensor):
        longest = [max(part.shape[axis] for part in parts) for axis in range(first.ndim)]
        filled = [
            F.pad(
                part,
                [n for axis in range(first.ndim - 1, 0, -1) for n in (0, longest[axis] - part.shape[axis])],
            )
            for part in parts
        ]
        return torch.cat(filled)
    if isinstance(first, tuple):
        joined = [_joined(same) for same in zip(*parts, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
    return first


def _without_gradient(tree: Any) -> Any:
    """A nest of tuples of tensors, without the graph that made them."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if isinstance(tree, tuple):
        parts = [_without_gradient(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


class CrossEntropy(nn.Module):
    """Teacher forcing: every word from the true words before it."""

    def __init__(
        self, model: CaptionModel, settings: CrossEntropySettings, special: SpecialIds, wants_trace: bool
    ) -> None:
        """`seen` keeps what the prototype bank observes of each part of a step, where `wants_trace` is set.

        `concepts` keeps the words of each part's patches.
        """
        super().__init__()
        self.model, self.settings, self.special, self.wants_trace = model, settings, special, wants_trace
        self.seen: list[BankObservation] = []
        self.concepts: list[Tensor] = []

    def forget(self) -> None:
        """Begin a step: what was kept of the one before is gone, taken or skipped."""
        self.seen, self.concepts = [], []

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses of this process's share of the step, the total under "loss"."""
        settings, captioner = self.settings, self.model.captioner
        pictures = captioner.encode(self.model.features(batch.inputs))
        memory = select_rows(pictures, batch.picture_of_row_R)
        inputs_RT, targets_RT = batch.tokens_RT[:, :-1], batch.tokens_RT[:, 1:]
        lengths_R = batch.lengths_R - 1
        decoded = captioner.decode(
            inputs_RT, lengths_R, memory, trace=is_used(settings.doubly_stochastic) or self.wants_trace
        )
        total, _ = caption_cross_entropy(
            decoded.logits_BTV, targets_RT, self.special.pad, settings.label_smoothing
        )
        losses = {"cross_entropy": total / shares.targets}
        loss = losses["cross_entropy"]
        weight = scheduled(settings.doubly_stochastic, shares.progress)
        if weight > 0:
            penalty, rows = doubly_stochastic(
                decoded.trace.attention_BTN, lengths_R, settings.doubly_stochastic_mean
            )
            # Rows per picture are the same in every process, so the share of rows follows from the share of
            # pictures.
            losses["doubly_stochastic"] = penalty / (shares.pictures * rows / batch.picture_count)
            loss = loss + weight * losses["doubly_stochastic"]
        weight = scheduled(settings.patch_contrast, shares.progress)
        if weight > 0:
            losses["patch_contrast"] = (
                captioner.contrast_loss(pictures, batch.labels_BN) * batch.picture_count / shares.pictures
            )
            loss = loss + weight * losses["patch_contrast"]
        weight = scheduled(settings.text_regulariser, shares.progress)
        if weight > 0:
            losses["text_regulariser"] = (
                captioner.text_loss(memory, batch.texts_RE) * batch.picture_count / shares.pictures
            )
            loss = loss + weight * losses["text_regulariser"]
        concepts_BN = getattr(pictures, "concepts_BN", None)
        if concepts_BN is not None:
            self.concepts.append(concepts_BN)
        if self.wants_trace:
            seen = BankObservation(decoded.trace, inputs_RT, lengths_R, memory, batch.picture_of_row_R)
            self.seen.append(_without_gradient(seen))
        return {"loss": loss, **losses}


def is_used(weight: Weight) -> bool:
    """Whether a loss counts at any time of its stage."""
    return weight != 0 and weight != (0, 0)


def scheduled(weight: Weight, progress: float) -> float:
    """A weight, or the point between two of them that a stage has come to."""
    return weight if isinstance(weight, float | int) else weight[0] + (weight[1] - weight[0]) * progress


class SelfCritical(nn.Module):
    """REINFORCE on CIDEr-D: L = - sum (reward - baseline) log p(sampled word), end token included, per
    sampled token.

    Decoding runs without gradient; the log-probabilities are computed again by teacher forcing, in one pass.
    """

    def __init__(
        self, model: CaptionModel, settings: SelfCriticalSettings, special: SpecialIds, reward: Reward
    ) -> None:
        super().__init__()
        self.model, self.settings, self.special, self.reward = model, settings, special, reward
        self.reward_seconds = 0.0
        """Spent on rewards so far."""

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses; "reward" is the mean reward of the captions, for the log."""
        settings, special = self.settings, self.special
        features = self.model.features(batch.inputs)
        memory = self.model.captioner.encode(features)
        tokens_RT, lengths_R = self._candidates(features)
        pictures = [image for image in batch.image_ids for _ in range(settings.samples)]
        rewards_R = self._rewards(tokens_RT, lengths_R, pictures)
        advantage_R = rewards_R - self._baseline(rewards_R, features, batch)
        rows_R = torch.arange(batch.picture_count, device=tokens_RT.device).repeat_interleave(
            settings.samples
        )
        starts_R1 = tokens_RT.new_full((len(tokens_RT), 1), special.start)
        inputs_RT = torch.cat([starts_R1, tokens_RT[:, :-1]], dim=1)
        logits_RTV = self.model.captioner.decode(inputs_RT, lengths_R, select_rows(memory, rows_R)).logits_BTV
        real_RT = torch.arange(tokens_RT.shape[1], device=tokens_RT.device) < lengths_R[:, None]
        # Decoding never says padding, start or unknown. Were they left in the softmax, nothing would ever
        # punish them, and every negative advantage would push probability onto them.
        never = torch.tensor([special.pad, special.start, special.unknown], device=tokens_RT.device)
        log_probabilities_RTV = logits_RTV.float().index_fill(-1, never, -math.inf).log_softmax(-1)
        chosen_RT = (
            log_probabilities_RTV.gather(-1, tokens_RT[..., None]).squeeze(-1).masked_fill(~real_RT, 0.0)
        )
        # Every token weighs the same: a mean within each caption would reward short good captions more than
        # long ones, and they shrink.
        per_token = -(chosen_RT * advantage_R[:, None]).sum() / real_RT.sum()
        rows = shares.pictures * settings.samples
        return {"loss": per_token * batch.picture_count / shares.pictures, "reward": rewards_R.sum() / rows}

    @torch.no_grad()
    def _candidates(self, features: VisualFeatures) -> tuple[Tensor, Tensor]:
        """Tokens without the start, and lengths with the end, of B*K captions."""
        settings, captioner = self.settings, self.model.captioner
        with _evaluating(self.model):
            memory = captioner.encode(features)
            if settings.baseline == "beam":
                found = beam_search(
                    captioner,
                    memory,
                    self.special,
                    settings.samples,
                    settings.max_length,
                    BeamOptions(n_best=settings.samples),
                )
            else:
                found = sample(captioner, memory, self.special, settings.samples, settings.max_length)
        return found.tokens_BKT.flatten(0, 1), found.lengths_BK.flatten(0, 1)

    def _rewards(self, tokens_RT: Tensor, lengths_R: Tensor, pictures: list[int | str]) -> Tensor:
        captions = [row[:length] for row, length in zip(tokens_RT.tolist(), lengths_R.tolist(), strict=True)]
        began = time.perf_counter()
        rewards = self.reward(captions, pictures)
        self.reward_seconds += time.perf_counter() - began
        return torch.tensor(rewards, device=tokens_RT.device, dtype=torch.float32)

    @torch.no_grad()
    def _baseline(self, rewards_R: Tensor, features: VisualFeatures, batch: CaptionBatch) -> Tensor:
        settings = self.settings
        if settings.baseline == "greedy":
            with _evaluating(self.model):
                found = greedy(
                    self.model.captioner,
                    self.model.captioner.encode(features),
                    self.special,
                    settings.max_length,
                )
            greedy_B = self._rewards(found.tokens_BKT[:, 0], found.lengths_BK[:, 0], list(batch.image_ids))
            return greedy_B.repeat_interleave(settings.samples)
        rewards_BK = rewards_R.view(-1, settings.samples)
        sums_B1 = rewards_BK.sum(1, keepdim=True)
        if settings.baseline == "beam":
            return (sums_B1 / settings.samples).expand_as(rewards_BK).flatten()
        return ((sums_B1 - rewards_BK) / (settings.samples - 1)).flatten()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, as at test time: what is decoded is what the model would say."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
