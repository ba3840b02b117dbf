"""Flamingo: a frozen causal language model that reads pictures between its words.

Alayrac et al. 2022 (arXiv 2204.14198). With x the tokens and v the latents of the last picture before each:

    resampler: l <- l + Att(q = LN(l), kv = [LN(p); LN(l)]),  l <- l + FF(l);  LN at the end    (figure 5)
    before every n-th block of the language model:
               x <- x + tanh(a) Att(LN(x), v),  x <- x + tanh(b) FF(x),    a = b = 0 at first   (figure 4)
    loss:      - sum log p(x_t | x_<t, pictures before t)                                       (equation 1)

A token before any picture gets nothing from the attention. With gates at 0 the model is its language model,
to the last bit. The language model stays as it is: the gated blocks run as hooks before its own blocks while
a call lasts, so that any causal language model of transformers fits.

A picture is the id `MARK` among the tokens. It has no row in the language model's embedding, which is frozen;
a vector of its own stands in its place.

Shape legend (in addition to `types.py`): P pictures, F frames of a video, R latents, M pictures of a
document, W width of the pictures' features, C width of the language model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.errors import ConfigError, ModelError
from patchword.layers.attention import attend, hide
from patchword.layers.transformer import merge_heads, split_heads

MARK = -1
"""Id of a picture among the tokens."""


class FlamingoConfig(BaseModel, extra="forbid", frozen=True):
    """Sizes of the resampler and of the gated blocks."""

    kind: str = Field("flamingo", pattern="^flamingo$")
    latents: int = Field(64, gt=0, le=65536, description="vectors R that the resampler makes of a picture")
    layers: int = Field(6, gt=0, le=512, description="layers of the resampler")
    heads: int = Field(8, gt=0, le=1024, description="heads of the resampler and of the gated blocks")
    head_width: int = Field(64, gt=0, le=4096, description="width of one head")
    every: int = Field(1, gt=0, le=512, description="a gated block stands before every n-th block")
    expansion: int = Field(4, gt=0, le=64, description="inner width of feed-forwards, in widths")
    frames: int = Field(1, gt=0, le=4096, description="frames of a video; 1: pictures")
    initial_gate: float = Field(0.0, description="a and b at the start; 0: begins as the language model")


class Media(NamedTuple):
    """Pictures as the gated blocks read them: keys and values of each gated block, (B, H, M * R, D)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    pictures: int
    """M, for a row of the batch."""

    def after(self, before: Media) -> Media:
        """These pictures behind those of an earlier part."""
        keys = tuple(torch.cat(pair, 2) for pair in zip(before.keys, self.keys, strict=True))
        values = tuple(torch.cat(pair, 2) for pair in zip(before.values, self.values, strict=True))
        return Media(keys, values, before.pictures + self.pictures)

    def repeated(self, rows: int) -> Media:
        """One row's pictures for several rows, without a copy."""
        keys = tuple(part.expand(rows, -1, -1, -1) for part in self.keys)
        return Media(keys, tuple(part.expand(rows, -1, -1, -1) for part in self.values), self.pictures)


class Context(NamedTuple):
    """What was read so far: a shot is read once, and any number of questions go on from it."""

    logits_BTV: Tensor
    past: Any
    """Keys and values of the language model's own attention."""
    media: Media


class FeedForward(nn.Module):
    """W2 relu(W1 LN(x)), without biases."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width, bias=False)
        self.contract = nn.Linear(expansion * width, width, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Returns what is added to the tokens, (B, T, C)."""
        return self.contract(F.relu(self.expand(self.norm(x_BTC))))


class Heads(nn.Module):
    """Queries from one sequence, keys and values from another, without biases."""

    def __init__(self, width: int, seen: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(seen, inner, bias=False)
        self.value = nn.Linear(seen, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def project(self, seen_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, H, N, D) each."""
        return split_heads(self.key(seen_BNW), self.heads), split_heads(self.value(seen_BNW), self.heads)

    def forward(self, x_BTC: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """The context of each token, (B, T, C)."""
        context_BHTD, _ = attend(split_heads(self.query(x_BTC), self.heads), keys, values, bias)
        return self.output(merge_heads(context_BHTD))


class ResamplerLayer(nn.Module):
    """Latents attend to the patches and to themselves."""

    def __init__(self, width: int, config: FlamingoConfig) -> None:
        super().__init__()
        self.patch_norm, self.latent_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Heads(width, width, config.heads, config.head_width)
        self.feed_forward = FeedForward(width, config.expansion)

    def forward(self, latents_PRW: Tensor, patches_PNW: Tensor) -> Tensor:
        """Returns the latents, (P, R, W)."""
        normed_PRW = self.latent_norm(latents_PRW)
        seen_PNW = torch.cat((self.patch_norm(patches_PNW), normed_PRW), 1)
        latents_PRW = latents_PRW + self.attention(normed_PRW, *self.attention.project(seen_PNW))
        return latents_PRW + self.feed_forward(latents_PRW)


class Resampler(nn.Module):
    """Any number of patches, of one picture or of the frames of a video, become R latents."""

    def __init__(self, width: int, config: FlamingoConfig) -> None:
        super().__init__()
        self.latents_RW = nn.Parameter(torch.randn(config.latents, width))
        self.time_FW = nn.Parameter(torch.randn(config.frames, width)) if config.frames > 1 else None
        self.layers = nn.ModuleList(ResamplerLayer(width, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Returns latents (P, R, W) of pictures (P, N, W), or of videos (P, F, N, W).

        Raises ModelError for a video with more frames than the model was built for.
        """
        if patches.dim() == 4:
            frames = patches.shape[1]
            if self.time_FW is None or frames > len(self.time_FW):
                found = 1 if self.time_FW is None else len(self.time_FW)
                raise ModelError(
                    f"a video of {frames} frames, and the model reads {found}: take fewer frames"
                )
            patches = (patches + self.time_FW[:frames, None]).flatten(1, 2)
        latents_PRW = self.latents_RW.expand(len(patches), -1, -1)
        for layer in self.layers:
            latents_PRW = layer(latents_PRW, patches)
        return self.norm(latents_PRW)


class GatedBlock(nn.Module):
    """Cross-attention to the last picture, and a feed-forward, each behind a gate that starts closed."""

    def __init__(self, width: int, seen: int, config: FlamingoConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Heads(width, seen, config.heads, config.head_width)
        self.feed_forward = FeedForward(width, config.expansion)
        self.attention_gate = nn.Parameter(torch.tensor([config.initial_gate]))
        self.feed_gate = nn.Parameter(torch.tensor([config.initial_gate]))

    def forward(
        self, x_BTC: Tensor, keys: Tensor, values: Tensor, bias_B1TN: Tensor, has_BT1: Tensor
    ) -> Tensor:
        """Returns the tokens for the next block of the language model; `has_BT1` is 0 where a token has no
        picture before it."""
        if keys.shape[2]:
            seen_BTC = self.attention(self.norm(x_BTC), keys, values, bias_B1TN) * has_BT1
            x_BTC = x_BTC + self.attention_gate.tanh() * seen_BTC
        return x_BTC + self.feed_gate.tanh() * self.feed_forward(x_BTC)


class Flamingo(nn.Module):
    """A causal language model of transformers with gated blocks, and the resampler before them.

    `language` holds the model of transformers as `model`, its blocks as `blocks`, and says `width`; see
    `towers/language.py`.
    """

    def __init__(self, config: FlamingoConfig, language: Any, vision_width: int) -> None:
        """Raises ConfigError where there are fewer blocks than `every`."""
        super().__init__()
        if config.every > len(language.blocks):
            raise ConfigError(
                f"flamingo.every is {config.every} and the language model has {len(language.blocks)} blocks: "
                "no gated block would stand anywhere"
            )
        self.config, self.language, self.vision_width = config, language, vision_width
        self.vocabulary_size = language.vocabulary_size
        self.resampler = Resampler(vision_width, config)
        self.mark_C = nn.Parameter(torch.randn(language.width) * 0.02)
        self.places = tuple(n for n in range(len(language.blocks)) if (n + 1) % config.every == 0)
        self.gated = nn.ModuleList(GatedBlock(language.width, vision_width, config) for _ in self.places)

    def train(self, mode: bool = True) -> Flamingo:
        """As `nn.Module.train`; a language model in which nothing learns stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.language.parameters()):
            self.language.eval()
        return self

    def look(self, grid: Tensor) -> Tensor:
        """Latents (P, R, W) of the towers' grids of pictures (P, N, W) or videos (P, F, N, W)."""
        if grid.shape[-1] != self.vision_width:
            raise ModelError(
                f"the pictures' features are {grid.shape[-1]} wide and this model was built for "
                f"{self.vision_width}: take the tower that it was trained with"
            )
        return self.resampler(grid)

    def remember(self, latents_BMRW: Tensor) -> Media:
        """Projects pictures for every gated block, once for all tokens; rows with fewer pictures are padded
        by anything, for no token looks at a picture that it has not passed."""
        seen_BNW = latents_BMRW.flatten(1, 2)
        pairs = [block.attention.project(seen_BNW) for block in self.gated]
        return Media(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), latents_BMRW.shape[1])

    def forward(self, ids_BT: Tensor, media: Media | None, mask_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each; None for `media` reads the text alone.

        `mask_BT` is True at real tokens; padding stands at the end, where causality hides it anyway.
        """
        return self._run(ids_BT, media, None, False, mask_BT)[0]

    @torch.no_grad()
    def read(self, ids_BT: Tensor, latents_BMRW: Tensor | None, before: Context | None = None) -> Context:
        """Reads a part of a document, behind what was read before; `before` itself is unchanged.

        Where `before` has one row and the part several, each row goes on from it. All rows of what was read
        before have equally many pictures.
        """
        rows, past, earlier = len(ids_BT), None, None
        media = None if latents_BMRW is None else self.remember(latents_BMRW)
        if before is not None:
            past = copy.deepcopy(before.past)
            if rows > 1 and before.logits_BTV.shape[0] == 1:
                past.batch_repeat_interleave(rows)
            earlier = before.media.repeated(rows) if before.media.keys[0].shape[0] == 1 else before.media
            media = earlier if media is None else media.after(earlier)
        if media is None:
            empty_BMRW = self.resampler.latents_RW.new_zeros(rows, 0, self.config.latents, self.vision_width)
            media = self.remember(empty_BMRW)
        passed = 0 if earlier is None else earlier.pictures
        logits_BTV, past = self._run(ids_BT, media, past, True, None, passed)
        return Context(logits_BTV, past, media)

    def _run(
        self,
        ids_BT: Tensor,
        media: Media | None,
        past: Any,
        keep: bool,
        mask_BT: Tensor | None,
        passed: int = 0,
    ) -> tuple[Tensor, Any]:
        """One pass of the language model; `passed` pictures stand before the first token."""
        marks_BT = ids_BT == MARK
        x_BTC = self.language.model.get_input_embeddings()(ids_BT.clamp_min(0))
        x_BTC = torch.where(marks_BT[..., None], self.mark_C.to(x_BTC.dtype), x_BTC)
        last_BT = marks_BT.long().cumsum(1) + passed
        arguments: dict[str, Any] = {"inputs_embeds": x_BTC, "use_cache": keep, "past_key_values": past}
        if mask_BT is not None:
            arguments["attention_mask"] = mask_BT.long()
        with self._conditioned(media, last_BT):
            found = self.language.model(**arguments)
        return found.logits, found.past_key_values if keep else None

    @contextmanager
    def _conditioned(self, media: Media | None, last_BT: Tensor) -> Iterator[None]:
        """The gated blocks run before the language model's own while the context is open."""
        if media is None:
            yield
            return
        if int(last_BT.max()) > media.pictures:
            raise ModelError(
                f"a text names picture {int(last_BT.max())} and {media.pictures} were given: give each"
            )
        bias_B1TN, has_BT1 = self._visible(media, last_BT)
        hooks = []
        for place, block, keys, values in zip(self.places, self.gated, media.keys, media.values, strict=True):
            before = _gate(block, keys, values, bias_B1TN, has_BT1)
            hooks.append(self.language.blocks[place].register_forward_pre_hook(before, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _visible(self, media: Media, last_BT: Tensor) -> tuple[Tensor, Tensor]:
        """A token sees the latents of the last picture before it alone; one without sees all, times 0."""
        like = media.keys[0]
        owner_N = torch.arange(like.shape[2], device=like.device) // self.config.latents + 1
        has_BT1 = (last_BT > 0)[..., None]
        seen_BTN = (owner_N == last_BT[..., None]) | ~has_BT1
        return hide(seen_BTN[:, None], like.dtype), has_BT1.to(like.dtype)


def _gate(block: nn.Module, keys: Tensor, values: Tensor, bias: Tensor, has: Tensor) -> Any:
    """A hook that passes the first argument of a block through a gated one."""

    def before(_: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        if given:
            return (block(given[0], keys, values, bias, has), *given[1:]), named
        return given, {**named, "hidden_states": block(named["hidden_states"], keys, values, bias, has)}

    return before


class Continuation(NamedTuple):
    """What a row goes on with."""

    tokens: list[int]
    log_probability: float
    """Of the tokens, and of the end where it came."""
    complete: bool
    """False where the longest length came before the end."""


@torch.inference_mode()
def continue_greedily(model: Flamingo, read: Context, end: int, longest: int) -> list[Continuation]:
    """The likeliest next tokens of each row after what was read, up to `end` or `longest` tokens."""
    rows = [Continuation([], 0.0, False) for _ in range(len(read.logits_BTV))]
    open_rows = set(range(len(rows)))
    while True:
        best = read.logits_BTV[:, -1].float().log_softmax(-1).max(-1)
        for b, (token, share) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            if b not in open_rows or len(rows[b].tokens) == longest:
                open_rows.discard(b)
                continue
            tokens = rows[b].tokens if token == end else [*rows[b].tokens, token]
            rows[b] = Continuation(tokens, rows[b].log_probability + share, token == end)
            if token == end:
                open_rows.discard(b)
        if not open_rows:
            return rows
        read = model.read(best.indices[:, None], None, read)


def next_token_loss(logits_BTV: Tensor, ids_BT: Tensor, counted_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p of the counted tokens given those before them, and their number.

    Pictures, padding and the first token are never counted.
    """
    targets_BT = ids_BT[:, 1:].masked_fill(~counted_BT[:, 1:] | (ids_BT[:, 1:] == MARK), -100)
    total = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), targets_BT.flatten(), reduction="sum")
    return total, (targets_BT >= 0).sum()
