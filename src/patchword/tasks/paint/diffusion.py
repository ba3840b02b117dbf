"""Diffusion as a family of painters: its loss, and how pictures are drawn from noise.

L = E |prediction - target|^2 (+ 0.001 L_vlb where the variance is learnt)  (Nichol and Dhariwal 2021, eq. 16)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchword.data.captions import CaptionBatch
from patchword.diffuse import (
    SCHEDULES,
    Sampling,
    guided,
    noised,
    sample,
    spaced,
    target_of,
    to_picture,
    variational_bound,
)
from patchword.errors import ConfigError
from patchword.ids import SpecialIds
from patchword.models.painters.clip_prior import scaled
from patchword.models.painters.denoiser import Denoiser, DenoiserConfig
from patchword.tasks.paint.composed import PaintModel, Prompt, emptied
from patchword.tasks.paint.families import Family, Wish, noise_of
from patchword.train.settings import StageSettings
from patchword.train.step import Shares

BOUND_WEIGHT = 0.001
"""Weight of the variational bound beside the squared error; the bound is in bits per number here."""
STEPS = 25


class DiffusionLoss(nn.Module):
    """Squared error at random times, with a share of the texts left out."""

    def __init__(
        self, model: PaintModel, special: SpecialIds, denoiser: Denoiser, sees_pictures: bool = False
    ) -> None:
        """`sees_pictures`: the denoiser is told the embedding of each picture as well (unCLIP)."""
        super().__init__()
        self.model, self.special, self.sees_pictures = model, special, sees_pictures
        self._denoiser = (denoiser,)  # a part of the model already: its weights are not listed twice
        self.schedule = SCHEDULES[denoiser.config.schedule](denoiser.config.steps)

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"."""
        seen, codec = batch.inputs.pixels_B3HW, self.model.codec
        assert seen is not None  # a painter is trained from pixels
        pictures = seen if codec is None else codec.encode(seen)
        (denoiser,) = self._denoiser
        config, count, device = denoiser.config, len(pictures), pictures.device
        ids_BL = batch.tokens_RT
        if self.training and config.drop_text:
            ids_BL = emptied(ids_BL, self.special, torch.rand(count, device=device) < config.drop_text)
        told = self.model.tell(ids_BL, self.special.pad)
        # One time from each of B equal parts: the loss of a batch varies less, its mean is the same.
        share_B = (torch.rand(1, device=device) + torch.arange(count, device=device) / count) % 1
        times_B = (share_B * config.steps).long().clamp(max=config.steps - 1)
        noise = torch.randn_like(pictures)
        noisy = noised(self.schedule, pictures, noise, times_B)
        seen_BE = self._seen(seen, config.drop_picture) if self.sees_pictures else None
        small = None if config.small_size is None else self._shrunk(pictures, config)
        found = denoiser(noisy, times_B, denoiser.encode(told.text, seen_BE, small))
        channels = pictures.shape[1]
        mean = found[:, :channels].float()
        wanted = target_of(self.schedule, config.target, pictures, noise, times_B)
        losses = {"squared_error": ((mean - wanted) ** 2).flatten(1).mean(1).sum() / shares.pictures}
        if config.learnt_variance:
            drawn = to_picture(self.schedule, config.target, mean, noisy, times_B)
            learnt = found[:, channels:].float()
            bound_B = variational_bound(self.schedule, pictures, drawn, learnt, noisy, times_B)
            losses["bound"] = bound_B.sum() / shares.pictures
        total = losses["squared_error"] + BOUND_WEIGHT * losses.get("bound", 0.0)
        return {"loss": total, **losses}

    def _shrunk(self, pictures: Tensor, config: DenoiserConfig) -> Tensor:
        """The smaller pictures that a cascade enlarges; while training with noise on each, so that a step
        forgives what the step before it does badly (Ho et al. 2022, section 4.2)."""
        assert config.small_size is not None  # a cascade has one
        small = functional.interpolate(pictures, (config.small_size, config.small_size), mode="area")
        if not self.training or not config.small_noise:
            return small
        most = max(1, int(config.small_noise * config.steps))
        times_B = torch.randint(most, (len(small),), device=small.device)
        return noised(self.schedule, small, torch.randn_like(small), times_B)

    def _seen(self, pictures: Tensor, dropped: float) -> Tensor:
        seen_BE = scaled(self.model.see(pictures))
        if not self.training:
            return seen_BE
        kept_B = torch.rand(len(pictures), device=pictures.device) >= dropped
        return seen_BE * kept_B[:, None]


def _objective(model: PaintModel, special: SpecialIds, stage: StageSettings) -> nn.Module:
    return DiffusionLoss(model, special, model.painter)


@torch.inference_mode()
def paint(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts, one for each seed."""
    if model.codec is None:
        return paint_with(model.painter, told, nothing, wish)
    return model.codec.decode(paint_with(model.painter, told, nothing, wish, latent=True))


def paint_with(
    denoiser: Denoiser,
    told: Prompt,
    nothing: Prompt,
    wish: Wish,
    seen_BE: Tensor | None = None,
    latent: bool = False,
) -> Tensor:
    """Pictures by a denoiser, which may be told embeddings of pictures as well; their guidance is the text's:
    both are left out of the unconditional prediction. Latents have no bounds."""
    config = denoiser.config
    guidance = usual_guidance(config) if wish.guidance is None else wish.guidance
    schedule = SCHEDULES[config.schedule](config.steps)
    times = spaced(schedule, STEPS if wish.steps is None else wish.steps)
    device = told.ids_BL.device
    draw = noise_of(wish.seeds, (config.channels, config.size, config.size), device)
    collected: list[Tensor] | None = None if wish.maps is None else []

    def denoise(noisy: Tensor, times_B: Tensor, memory: Any) -> Tensor:
        return denoiser(noisy, times_B, memory, collected)

    unseen_BE = None if seen_BE is None else torch.zeros_like(seen_BE)
    text, without = (
        denoiser.encode(side.text, embedded, wish.small)
        for side, embedded in ((told, seen_BE), (nothing, unseen_BE))
    )
    method: Literal["ddim", "ddpm"] = "ddpm" if wish.ancestral else "ddim"
    how = Sampling(config.target, method, bound=not latent, percentile=wish.percentile)
    noise = draw()
    pictures = noise
    for drawn in sample(guided(denoise, text, without, guidance), schedule, noise, times, how, draw):
        pictures = drawn
        wish.watch()
    if collected is not None and wish.maps is not None:
        wish.maps.extend(_maps(collected, len(wish.seeds), config.size // config.patch))
    return pictures


def usual_guidance(config: DenoiserConfig) -> float:
    """Guidance where none is asked for: none where the model never learnt to do without its text."""
    return config.guidance if config.drop_text else 1.0


def check(config: DenoiserConfig, wish: Wish) -> None:
    """Raises ConfigError for guidance without dropped texts, or for more steps than the schedule has."""
    if wish.guidance not in (None, 1.0) and not config.drop_text:
        raise ConfigError(
            f"guidance is {wish.guidance:g}, and this model was trained without left-out texts "
            "(painter.drop_text = 0), so it does not know what a picture without a text is: leave it at "
            "1, or "
            "train with drop_text above 0"
        )
    if (config.small_size is None) != (wish.small is None):
        raise ConfigError(
            "this model enlarges pictures of another one: name it by --enlarge, and what paints by --model"
            if wish.small is None
            else "this model paints from the text alone and enlarges nothing: it was trained without "
            "painter.small_size"
        )
    if wish.tokens is not None:
        raise ConfigError("diffusion writes no tokens: leave temperature, top_k and top_p out")
    if wish.steps is not None and not 1 <= wish.steps <= config.steps:
        raise ConfigError(f"steps is {wish.steps}, and the model's schedule has 1 to {config.steps}")
    if wish.percentile is not None and not 0 < wish.percentile <= 1:
        raise ConfigError(f"the percentile is {wish.percentile:g}: expected above 0 and at most 1")


def _maps(collected: list[Tensor], count: int, side: int) -> list[Tensor]:
    """Attention of each cell on each text token (count, side, side, L): the mean over heads, layers and
    steps, every map enlarged to the side of the largest, normalised over the tokens."""
    total = torch.zeros(())
    for weights_BHNL in collected:
        mean_BNL = weights_BHNL[:count].mean(1)
        own = int(mean_BNL.shape[1] ** 0.5)
        map_BLhw = mean_BNL.transpose(1, 2).unflatten(2, (own, own))
        total = total.to(map_BLhw) + torch.nn.functional.interpolate(map_BLhw, (side, side), mode="bilinear")
    shares = total / total.sum(1, keepdim=True).clamp(min=1e-12)
    return [shares.permute(0, 2, 3, 1)]


DIFFUSION = Family(_objective, paint, check, STEPS)
