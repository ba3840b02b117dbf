"""Prototype memory (PMA-Net, Barraco 2023): a decoder also attends to a summary of other training samples.

    bank        keys and values of past training steps, first in, first out, capped
    prototypes  M_K = K-Means(bank keys)
                M_V = mean of the values of the nearest bank keys, weighted by exp(-distance)
    attention   softmax(Q [K + s_in ; M_K + s_mem]^T / sqrt(d_k) + mask) [V ; M_V]
                one softmax over both (placement `self_concat`)

Two further placements follow the fusion design: attention over prototypes alone, with a gate that starts at
zero, beside the cross-attention (`cross_add`) or after it (`sequential`). Prototypes are constants: no
gradient reaches bank, clustering or averages. All rows share them, and they never enter a decoder's cache.

Nothing here depends on a captioner: `PrototypeMemory`, `attend_with_prototypes` and `PrototypeRecall` work in
any decoder.

Shape legend: B images, R rows, T tokens, N keys, M prototypes, C width, H heads, D width of one head, L
decoder layers, K contexts kept for each prototype, W width of a context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from patchword.layers.attention import attend
from patchword.layers.bank import Bank, ClusterResult, cluster
from patchword.layers.linear import Linear
from patchword.layers.transformer import initialise, merge_heads, split_heads
from patchword.types import KeysAndValues

CONTEXT_WIDTH = 8
_CONTEXTS_KEPT = 4
_USE_MEMORY = 0.99  # decay of the moving average of the prototypes' attention: about a hundred observed steps


class PrototypeConfig(BaseModel):
    """How prototypes are made and where they are used. A step is one call of `observe`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    placement: Literal["self_concat", "cross_add", "sequential"] = Field(
        "self_concat",
        description="self_concat: keys and values of self-attention, one softmax with them (the paper); "
        "cross_add: beside cross-attention; sequential: after it (the two readings of the fusion design)",
    )
    count: int = Field(
        1024,
        gt=0,
        le=1_000_000,
        description="prototypes in each decoder layer; fewer are alive while the bank has under 39 for each",
    )
    neighbours: int = Field(
        32, gt=0, le=1_000_000, description="bank keys whose values make a value prototype"
    )
    bank: int = Field(
        65536,
        gt=0,
        le=100_000_000,
        description="vectors that the bank of a layer holds; the oldest leave first",
    )
    bank_every: int = Field(1, gt=0, description="steps between two additions to the bank")
    bank_at_most: int = Field(
        4096, gt=0, le=100_000_000, description="vectors added in one step; of more, a random part is taken"
    )
    start_step: int = Field(
        0,
        ge=0,
        description="step at which the bank starts to fill: "
        "the keys of the very first steps mean nothing yet",
    )
    cluster_every: int = Field(500, gt=0, description="steps between two clusterings")
    effect_after: int = Field(
        10, ge=0, description="steps from a clustering to the step at which its prototypes take effect"
    )
    iterations: int = Field(10, gt=0, le=10000, description="Lloyd iterations of a clustering")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of the clustering's own random numbers")
    weight_in_words: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="self_concat: all prototypes together begin with the weight of this many words, by a "
        "log-bias that every head learns on; absent: every prototype begins with the weight of a word",
    )
    top: int | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="self_concat: a query attends to this many prototypes, those of highest score; "
        "absent: to all",
    )
    keep_length: bool = Field(
        False,
        description="value prototypes get the mean length of the values that they are means of; averaging "
        "shortens them",
    )

    @model_validator(mode="after")
    def _takes_effect_in_time(self) -> PrototypeConfig:
        if self.effect_after >= self.cluster_every:
            raise ValueError(
                f"effect_after = {self.effect_after} is not below cluster_every = {self.cluster_every}: "
                "prototypes would be replaced before they take effect; make it smaller"
            )
        return self

    @model_validator(mode="after")
    def _words_share_the_softmax(self) -> PrototypeConfig:
        if self.placement != "self_concat" and (self.weight_in_words is not None or self.top is not None):
            given = "weight_in_words" if self.weight_in_words is not None else "top"
            raise ValueError(
                f"{given} is given and the placement is {self.placement}, where prototypes have a softmax of "
                "their own: leave it out, or set placement to self_concat"
            )
        return self


class Columns(NamedTuple):
    """The prototypes of one layer in the form that attention needs."""

    keys_HMD: Tensor
    values_HMD: Tensor
    bias_M: Tensor | None
    """Log-bias of each column; -inf where there is no prototype. None where all exist and the bias is 0."""
    own_HD: Tensor | None
    """Segment embedding of the sequence's own keys minus that of the prototypes, since a softmax depends
    only on the difference; None where prototypes have a softmax of their own."""
    share: Tensor
    """Factor of the gated placements: exp of the log-bias."""
    bias_H: Tensor | None = None
    """Log-bias of all columns, one for each head; None: 0."""
    top: int | None = None
    """How many columns a query attends to; None: all."""


class PrototypeMemory(nn.Module):
    """The prototypes of `layers` decoder layers of one width, and the bank from which they are made.

    Prototypes, their alive flags, attention and nearest contexts are buffers, saved with the model. The bank
    is allocated at the first `observe`, so a model that only captions does not pay for it; `resume_state`
    saves it.
    """

    def __init__(self, config: PrototypeConfig, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        shape = (layers, config.count)
        self.register_buffer("keys_LMC", torch.zeros(*shape, width))
        self.register_buffer("values_LMC", torch.zeros(*shape, width))
        self.register_buffer("live_LM", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("sizes_LM", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("attention_LM", torch.zeros(shape))
        self.register_buffer(
            "contexts_LMKW", torch.full((*shape, _CONTEXTS_KEPT, CONTEXT_WIDTH), -1, dtype=torch.int32)
        )
        self.register_buffer("log_bias", torch.zeros(()))
        concatenated = config.placement == "self_concat"
        self.segment_own_LC = nn.Parameter(torch.zeros(layers, width)) if concatenated else None
        self.segment_memory_LC = nn.Parameter(torch.zeros(layers, width)) if concatenated else None
        weighted = config.weight_in_words is not None
        self.bias_LH = nn.Parameter(torch.zeros(layers, heads)) if weighted else None
        """What every head has learned to add to the log-bias that corrects for the number of prototypes."""
        self._bank: Bank | None = None
        self._pending: ClusterResult | None = None
        self._steps = 0
        self._effective_at = 0
        self._generator = torch.Generator().manual_seed(config.seed)

    @property
    def placement(self) -> str:
        """Where the memory stands in the decoder."""
        return self.config.placement

    def set_log_bias(self, log_bias: float) -> None:
        """Sets the log-bias of the prototypes: 0 is fully on, -inf off; values between allow a gradual start.

        It is added to every prototype's score in `self_concat`; the gated placements multiply their addition
        by its exponential.
        """
        self.log_bias.fill_(log_bias)

    def columns(self) -> tuple[Columns | None, ...]:
        """Returns the prototypes of every layer, or None for every layer while the memory is off or empty."""
        layers = range(len(self.keys_LMC))
        some, every = bool(self.live_LM.any()), bool(self.live_LM.all())
        log_bias = float(self.log_bias)
        if not some or math.isinf(log_bias):
            return (None,) * len(layers)
        bias_LM = torch.zeros_like(self.attention_LM).masked_fill_(~self.live_LM, float("-inf"))
        if self.segment_own_LC is None or self.segment_memory_LC is None:
            biases = [None if every else bias_LM[layer] for layer in layers]
            return tuple(
                self._columns(self.keys_LMC[layer], self.values_LMC[layer], biases[layer], None)
                for layer in layers
            )
        biases = [None if every and log_bias == 0 else bias_LM[layer] + self.log_bias for layer in layers]
        own_LHD = (self.segment_own_LC - self.segment_memory_LC).unflatten(-1, (self.heads, -1))
        columns = (
            self._columns(self.keys_LMC[layer], self.values_LMC[layer], biases[layer], own_LHD[layer])
            for layer in layers
        )
        return tuple(
            one._replace(bias_H=self._bias_of_heads(layer), top=self.config.top)
            for layer, one in enumerate(columns)
        )

    def _bias_of_heads(self, layer: int) -> Tensor | None:
        """log(weight in words / prototypes that a query attends to), and what every head adds to it."""
        if self.bias_LH is None or self.config.weight_in_words is None:
            return None
        seen = self.live_LM[layer].sum().clamp(min=1, max=self.config.top)
        return math.log(self.config.weight_in_words) - seen.log() + self.bias_LH[layer]

    def _columns(
        self, keys_MC: Tensor, values_MC: Tensor, bias_M: Tensor | None, own_HD: Tensor | None
    ) -> Columns:
        keys_HMD, values_HMD = (
            x_MC.unflatten(-1, (self.heads, -1)).transpose(0, 1) for x_MC in (keys_MC, values_MC)
        )
        return Columns(keys_HMD, values_HMD, bias_M, own_HD, self.log_bias.exp())

    @torch.no_grad()
    def observe(
        self,
        observed: Sequence[KeysAndValues],
        mask_BT: Tensor,
        contexts_BTW: Tensor | None = None,
        weights_RTLM: Tensor | None = None,
    ) -> None:
        """Processes one training step: fills the bank, clusters when due, and installs finished prototypes.

        Call it after the optimiser step and from every process; never while evaluating or sampling. `mask_BT`
        is True where a key belongs to a real token (or patch). `contexts_BTW` holds up to eight token ids
        that tell a person where a key came from (-1: none). `weights_RTLM` is the attention to the prototypes
        from the trace, zero where there is no word.
        """
        config = self.config
        self._steps += 1
        if weights_RTLM is not None:
            words = (weights_RTLM.amax(dim=(2, 3)) > 0).sum().clamp(min=1)
            self.attention_LM.lerp_(
                (weights_RTLM.sum(dim=(0, 1)) / words).to(self.attention_LM.dtype), 1 - _USE_MEMORY
            )
        since = self._steps - config.start_step
        if since >= 0 and since % config.bank_every == 0 and _is_first():
            self._fill(observed, mask_BT, contexts_BTW)
        if since > 0 and since % config.cluster_every == 0:
            self._effective_at = self._steps + config.effect_after
            self._pending = self._cluster() if _is_first() else None
        if self._steps == self._effective_at:
            self._install()

    def _fill(self, observed: Sequence[KeysAndValues], mask_BT: Tensor, contexts_BTW: Tensor | None) -> None:
        rows = mask_BT.flatten().nonzero()[:, 0]
        if len(rows) > self.config.bank_at_most:
            kept = (
                torch.randperm(len(rows), generator=self._generator)[: self.config.bank_at_most].sort().values
            )
            rows = rows[kept.to(rows.device)]
        if self._bank is None:
            self._bank = Bank.empty(
                self.config.bank,
                len(self.keys_LMC),
                self.keys_LMC.shape[-1],
                CONTEXT_WIDTH,
                self.keys_LMC.device,
            )
        if contexts_BTW is None:
            contexts_BTW = mask_BT.new_full((*mask_BT.shape, CONTEXT_WIDTH), -1, dtype=torch.int32)
        self._bank.add(
            torch.stack([layer.keys_BTD.flatten(0, 1)[rows] for layer in observed]),
            torch.stack([layer.values_BTD.flatten(0, 1)[rows] for layer in observed]),
            contexts_BTW.flatten(0, 1)[rows],
        )

    def _cluster(self) -> ClusterResult | None:
        if self._bank is None or self._bank.filled == 0:
            return None
        config = self.config
        return cluster(
            self._bank,
            config.count,
            config.neighbours,
            config.iterations,
            _CONTEXTS_KEPT,
            self._generator,
            config.keep_length,
        )

    def _install(self) -> None:
        if self._pending is not None:
            self.keys_LMC.copy_(self._pending.keys_LMC)
            self.values_LMC.copy_(self._pending.values_LMC)
            self.sizes_LM.copy_(self._pending.sizes_LM)
            self.contexts_LMKW.copy_(self._pending.contexts_LMKW)
            self.live_LM.copy_(self.sizes_LM > 0)
            self._pending = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for name in ("keys_LMC", "values_LMC", "sizes_LM", "contexts_LMKW", "live_LM"):
                torch.distributed.broadcast(getattr(self, name), src=0)

    def statistics(self) -> dict[str, float]:
        """Statistics for a training log: fill of the bank, and live prototypes and attention per layer."""
        filled = 0 if self._bank is None else self._bank.filled
        numbers = {"bank_fill": filled / self.config.bank}
        numbers |= {
            f"prototypes_live_{layer}": count for layer, count in enumerate(self.live_LM.sum(dim=1).tolist())
        }
        return numbers | {
            f"memory_attention_{layer}": mass
            for layer, mass in enumerate(self.attention_LM.sum(dim=1).tolist())
        }

    def resume_state(self) -> dict[str, Tensor]:
        """Returns, as tensors, all that a bit-exact continuation needs beside the model's own state.

        That is the bank, the counters, a clustering that is not yet in effect, and the random state.
        """
        counters = torch.tensor([self._steps, self._effective_at])
        state = {"counters": counters, "generator": self._generator.get_state()}
        if self._bank is not None:
            state |= self._bank.state()
        if self._pending is not None:
            state |= {f"pending.{name}": value for name, value in self._pending._asdict().items()}
        return state

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `resume_state` returned."""
        self._steps, self._effective_at = state["counters"].tolist()
        self._generator.set_state(state["generator"].cpu())
        device = self.keys_LMC.device
        self._bank = Bank.restored(state, self.config.bank, device) if "bank.keys_LNC" in state else None
        pending = {
            name: state[f"pending.{name}"].to(device)
            for name in ClusterResult._fields
            if f"pending.{name}" in state
        }
        self._pending = ClusterResult(**pending) if pending else None

    def describe(self, words_of: Callable[[list[int]], str]) -> dict:
        """Returns the content of `prototypes.json`.

        It lists for each layer and prototype whether it is alive, its share of the bank, the attention it
        gets, and its nearest training contexts, which `words_of` turns into text.
        """
        layers, count = self.live_LM.shape
        described = [
            [self._describe(layer, number, words_of) for number in range(count)] for layer in range(layers)
        ]
        return {"placement": self.config.placement, "layers": described}

    def _describe(self, layer: int, number: int, words_of: Callable[[list[int]], str]) -> dict:
        contexts = [
            [token for token in context if token >= 0]
            for context in self.contexts_LMKW[layer, number].tolist()
        ]
        size, total = int(self.sizes_LM[layer, number]), max(1, int(self.sizes_LM[layer].sum()))
        return {
            "alive": bool(self.live_LM[layer, number]),
            "bank_share": size / total,
            "attention": float(self.attention_LM[layer, number]),
            "contexts": [words_of(context) for context in contexts if context],
        }


def attend_with_prototypes(
    queries_BHTD: Tensor,
    keys_BHND: Tensor,
    values_BHND: Tensor,
    columns: Columns,
    bias: Tensor | None = None,
    want_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Attends with one softmax over the own keys of a sequence and all prototypes.

    `bias` is additive over the own keys and broadcasts to (B, H, T, N). Returns the context (B, H, T, D) and
    the weights on prototypes (B, H, T, M), which may be None where they are not wanted. All rows are
    multiplied with one set of prototypes, which is not copied to each row.
    """
    rows, heads, length, width = queries_BHTD.shape
    plain = (
        queries_BHTD.device.type == "cpu" and queries_BHTD.dtype == columns.keys_HMD.dtype == torch.float32
    )
    stored = want_weights or torch.is_grad_enabled() or torch.jit.is_tracing()  # a graph has no such kernel
    if plain and not stored and columns.top is None:
        return _merged(queries_BHTD, keys_BHND, values_BHND, columns, bias), None
    queries_BHTD = queries_BHTD * width**-0.5
    own_BHTN = queries_BHTD @ keys_BHND.transpose(-2, -1)
    if columns.own_HD is not None:
        own_BHTN = own_BHTN + (queries_BHTD * columns.own_HD[:, None]).sum(dim=-1, keepdim=True)
    if bias is not None:
        own_BHTN = own_BHTN + bias
    # Heads first, so that all rows of a head form one matrix.
    queries_HXD, own_HXN = (x_BHTY.transpose(0, 1).flatten(1, 2) for x_BHTY in (queries_BHTD, own_BHTN))
    scores_HXM = queries_HXD @ columns.keys_HMD.transpose(-2, -1)
    if columns.bias_M is not None:
        scores_HXM = scores_HXM + columns.bias_M
    if columns.bias_H is not None:
        scores_HXM = scores_HXM + columns.bias_H[:, None, None]
    if columns.top is not None and columns.top < scores_HXM.shape[-1]:
        least_HX1 = scores_HXM.detach().topk(columns.top, dim=-1).values[..., -1:]
        scores_HXM = scores_HXM.masked_fill(scores_HXM < least_HX1, float("-inf"))
    weights_HXY = torch.cat((own_HXN, scores_HXM), dim=-1).softmax(dim=-1)
    own_HXN, weights_HXM = weights_HXY.split((own_HXN.shape[-1], scores_HXM.shape[-1]), dim=-1)
    recalled_HXD = weights_HXM @ columns.values_HMD
    own_BHTN, recalled_BHTD, weights_BHTM = (
        x_HXY.view(heads, rows, length, x_HXY.shape[-1]).transpose(0, 1)
        for x_HXY in (own_HXN, recalled_HXD, weights_HXM)
    )
    return own_BHTN @ values_BHND + recalled_BHTD, weights_BHTM


def _merged(
    queries_BHTD: Tensor, keys_BHND: Tensor, values_BHND: Tensor, columns: Columns, bias: Tensor | None
) -> Tensor:
    """The same context, merged from two attentions, so that the scores are never stored.

    A softmax over [a ; b] is the mean of the softmax over a and the softmax over b, weighted by their sums.
    torch's kernel returns the logarithm of the sum. The segment embedding adds the same number to the scores
    of all own keys, and so to their logarithm.
    """
    rows, _, length, width = queries_BHTD.shape
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    own_BHTD, own_BHT = flash(queries_BHTD, keys_BHND, values_BHND, attn_mask=bias)
    if columns.own_HD is not None:
        own_BHT = own_BHT + (queries_BHTD * columns.own_HD[:, None]).sum(dim=-1) * width**-0.5
    queries_1HXD = queries_BHTD.transpose(0, 1).flatten(1, 2)[None]
    bias_11XM = None if columns.bias_M is None else columns.bias_M.expand(1, 1, rows * length, -1)
    recalled_1HXD, recalled_1HX = flash(
        queries_1HXD, columns.keys_HMD[None], columns.values_HMD[None], attn_mask=bias_11XM
    )
    if columns.bias_H is not None:
        recalled_1HX = recalled_1HX + columns.bias_H[:, None]
    recalled_BHTD, recalled_BHT = (
        x_1HX[0].unflatten(1, (rows, length)).transpose(0, 1) for x_1HX in (recalled_1HXD, recalled_1HX)
    )
    return torch.lerp(recalled_BHTD, own_BHTD, (own_BHT - recalled_BHT).sigmoid()[..., None])


class PrototypeRecall(nn.Module):
    """Gated attention to the prototypes alone, to be added to a decoder's state.

    It computes gate * W_o attention(W_q y, M_K, M_V); the gate starts at zero.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.output = Linear(width, width)
        self.gate_C = nn.Parameter(torch.zeros(width))
        initialise(self)

    def forward(
        self, y_RTC: Tensor, columns: Columns, want_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the addition (R, T, C), and the weights (R, H, T, M) where `want_weights` is set."""
        queries_1HXD = split_heads(self.query(y_RTC), self.heads).transpose(0, 1).flatten(1, 2)[None]
        keys_1HMD, values_1HMD = columns.keys_HMD[None], columns.values_HMD[None]
        bias_1M = None if columns.bias_M is None else columns.bias_M[None]
        context_1HXD, weights_1HXM = attend(queries_1HXD, keys_1HMD, values_1HMD, bias_1M, want_weights)
        added_RTC = self.gate_C * columns.share * self.output(merge_heads(context_1HXD).view(y_RTC.shape))
        if weights_1HXM is None:
            return added_RTC, None
        return added_RTC, weights_1HXM[0].unflatten(1, y_RTC.shape[:2]).transpose(0, 1)


def _is_first() -> bool:
    """True in the one process that fills the bank and clusters; the others receive its result."""
    return (
        not (torch.distributed.is_available() and torch.distributed.is_initialized())
        or torch.distributed.get_rank() == 0
    )
