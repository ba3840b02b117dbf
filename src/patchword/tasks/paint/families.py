"""The families of painters: what a training and `patchword paint` need of each, as values.

A new family is one line of `PAINTERS`, and one value in a file of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patchword.config import ByKind, Kind, KindSettings
from patchword.errors import ConfigError
from patchword.ids import SpecialIds
from patchword.lookup import look_up
from patchword.tasks.paint.composed import PaintModel, Prompt
from patchword.train.groups import single_optimiser
from patchword.train.settings import StageSettings
from patchword.train.step import OptimiserStep, one_step

PAINTERS = {
    "denoiser": Kind("models.painters.denoiser", "DenoiserConfig", "Denoiser"),
    "unclip": Kind("models.painters.clip_prior", "UnClipConfig", "UnClip"),
    "conditional_gan": Kind("models.painters.conditional_gan", "ConditionalGanConfig", "ConditionalGan"),
    "stack_gan": Kind("models.painters.stack_gan", "StackGanConfig", "StackGan"),
    "attn_gan": Kind("models.painters.attn_gan", "AttnGanConfig", "AttnGan"),
    "df_gan": Kind("models.painters.df_gan", "DfGanConfig", "DfGan"),
    "dalle": Kind("models.painters.token_transformer", "DalleConfig", "Dalle"),
    "parti": Kind("models.painters.token_transformer", "PartiConfig", "Parti"),
}
FAMILIES = {
    "denoiser": "tasks.paint.diffusion:DIFFUSION",
    "unclip": "tasks.paint.unclip:UNCLIP",
    "conditional_gan": "tasks.paint.conditional:CONDITIONAL",
    "stack_gan": "tasks.paint.stacked:STACKED",
    "attn_gan": "tasks.paint.attentive:ATTENTIVE",
    "df_gan": "tasks.paint.deep_fusion:DEEP_FUSION",
    "dalle": "tasks.paint.tokens:DALLE",
    "parti": "tasks.paint.tokens:PARTI",
}
"""Where the family of each kind is, as "module:name"; imported when a model of the kind is."""
IN_A_SPACE = frozenset({"unclip"})
"""Kinds that work in the space of two towers, and need both of them."""

READS_WORDS = frozenset({"dalle"})
"""Kinds that read the words themselves and have no text tower."""

PainterSettings = Annotated[KindSettings, ByKind(PAINTERS)]


class TokenChoice(NamedTuple):
    """How a painter that writes tokens draws each of them."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only so many of the likeliest tokens."""
    top_p: float | None = None
    """Only the fewest tokens that hold this share of the probability."""


class Wish(NamedTuple):
    """How pictures are to be drawn; None is the family's own choice."""

    seeds: Sequence[int]
    """One for each picture; a picture follows from its text, its seed and the rest of the wish."""
    guidance: float | None = None
    steps: int | None = None
    percentile: float | None = None
    """Dynamic thresholding, for a family that has it."""
    ancestral: bool = False
    """Random steps (DDPM) in place of DDIM, for a family that has both."""
    watch: Callable[[], None] = lambda: None
    """Called after each step."""
    tokens: TokenChoice | None = None
    """How tokens are chosen; None for a family that writes none."""
    small: Tensor | None = None
    """Smaller pictures (B, 3, h, w) in [-1, 1] that are enlarged, by a family that does so."""
    maps: list[Tensor] | None = None
    """Collects attention on the words (B, N, L), for a family that attends to them."""


def texts_of(prompt: Any, seeds: Sequence[int]) -> list[str]:
    """One text for each seed. Raises ConfigError where several were given and there are not as many."""
    if not isinstance(prompt, list | tuple):
        return [prompt] * len(seeds)  # what is no text at all is refused where texts are checked
    texts = list(prompt)
    if len(texts) != len(seeds):
        raise ConfigError(f"{len(texts)} prompts and {len(seeds)} seeds: give one seed for each prompt")
    return texts


def build_told(settings: Any, text_width: int | None, vocabulary: int) -> nn.Module:
    """A painter that is told by the text tower."""
    painter: nn.Module = PAINTERS[settings.kind].part_class()(settings, text_width)
    return painter


class Family(NamedTuple):
    """What one family of painters brings."""

    objective: Callable[[PaintModel, SpecialIds, StageSettings], nn.Module]
    """(model, special ids, stage) -> named losses of a batch, see `train/recipe.py`."""
    paint: Callable[[PaintModel, Prompt, Prompt, Wish], Tensor]
    """(model, texts, nothing, wish) -> pictures (B, 3, H, W) in [-1, 1]."""
    check: Callable[[Any, Wish], None]
    """(settings, wish): raises ConfigError for a wish that such a model cannot fulfil."""
    steps: int | None
    """Usual number of steps; None where there is no choice."""
    optimisers: Callable[[nn.Module, StageSettings], tuple[torch.optim.Optimizer, ...]] = single_optimiser
    step: OptimiserStep = one_step
    selects: bool = True
    """Whether the loss on other pictures says which model is best; if not, the last one is the result."""
    build: Callable[[Any, int | None, int], nn.Module] = build_told
    """(settings, width of the text tower, size of the vocabulary) -> the painter with random weights."""


def family_of(settings: Any) -> Family:
    """The family of a painter by its settings."""
    found: Family = look_up(FAMILIES[settings.kind])
    return found


MOST_GUIDANCE = 1000.0


def check_wish(wish: Wish) -> None:
    """Raises ConfigError for seeds that are none, and a guidance that is no number."""
    for seed in wish.seeds:
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
            raise ConfigError(f"a seed is {seed!r}: expected whole numbers from 0 to 2**63 - 1")
    if not len(wish.seeds):
        raise ConfigError("no seed was given: one picture is painted for each")
    if wish.guidance is not None and not 0 <= wish.guidance <= MOST_GUIDANCE:
        raise ConfigError(f"guidance is {wish.guidance}: expected 0 to {MOST_GUIDANCE:g}")


def noise_of(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Callable[[], Tensor]:
    """A source of standard normal numbers (B, *shape), of which each picture has its own by its seed.

    A seed gives the same numbers whatever else is in the batch, and on every device.
    """
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(shape, generator=source) for source in sources]).to(device)
