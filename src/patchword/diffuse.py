"""Diffusion: noise schedules, what a denoiser predicts, and how pictures are drawn from it.

    q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I)    a_t = prod_{s <= t} (1 - beta_s)   (Ho et al. 2020, eq. 4)
    v_t = sqrt(a_t) eps - sqrt(1 - a_t) x_0                                     (Salimans and Ho 2022, app. D)
    x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) eps + sigma z                   (Song et al. 2021, eq. 12)
    eps~ = eps(x_t | nothing) + w (eps(x_t | text) - eps(x_t | nothing))         (Ho and Salimans 2021, eq. 6)

A denoiser is any function of noisy pictures and their times; `decode.py` does the same for words. Nothing
here knows a model.

Shape legend: B pictures, C channels, H W their sides, T times of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from patchword.errors import ConfigError

Target = Literal["noise", "picture", "velocity"]
"""What a denoiser predicts: eps, x_0 or v."""
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy pictures (B, C, H, W), times (B)) -> the prediction, C channels, or 2 C where the variance is
learnt."""


class Schedule(NamedTuple):
    """How much of the picture is left at each of T times."""

    kept_T: Tensor
    """a_t, float64, falling: the share of variance that is still the picture."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.kept_T)

    def kept(self, times_B: Tensor, like: Tensor) -> Tensor:
        """a_t of each picture as (B, 1, 1, 1), of the type of `like`."""
        return self.kept_T.to(like.device)[times_B].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """beta rises linearly (Ho et al. 2020, section 4)."""
    return _from_betas(torch.linspace(first, last, steps, dtype=torch.float64))


def scaled_linear_schedule(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Schedule:
    """The root of beta rises linearly: the schedule of latent diffusion (Rombach et al. 2022)."""
    return _from_betas(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2)


def cosine_schedule(steps: int = 1000, largest: float = 0.999) -> Schedule:
    """a_t falls like a squared cosine (Nichol and Dhariwal 2021, eq. 17); no beta is above `largest`."""
    at = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
    return _from_betas((1 - kept[1:] / kept[:-1]).clamp(max=largest))


SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "linear": linear_schedule,
    "scaled_linear": scaled_linear_schedule,
    "cosine": cosine_schedule,
}


def _from_betas(betas_T: Tensor) -> Schedule:
    return Schedule(torch.cumprod(1 - betas_T, 0))


def noised(schedule: Schedule, pictures: Tensor, noise: Tensor, times_B: Tensor) -> Tensor:
    """x_t of pictures (B, C, H, W), or of anything else whose first axis is B."""
    kept = schedule.kept(times_B, pictures)
    return kept.sqrt() * pictures + (1 - kept).sqrt() * noise


def target_of(schedule: Schedule, kind: Target, pictures: Tensor, noise: Tensor, times_B: Tensor) -> Tensor:
    """What a denoiser of this kind should predict."""
    if kind == "noise":
        return noise
    if kind == "picture":
        return pictures
    kept = schedule.kept(times_B, pictures)
    return kept.sqrt() * noise - (1 - kept).sqrt() * pictures


def to_picture(
    schedule: Schedule, kind: Target, prediction: Tensor, noisy: Tensor, times_B: Tensor
) -> Tensor:
    """x_0 from a prediction."""
    if kind == "picture":
        return prediction
    kept = schedule.kept(times_B, noisy)
    if kind == "noise":
        return (noisy - (1 - kept).sqrt() * prediction) / kept.sqrt()
    return kept.sqrt() * noisy - (1 - kept).sqrt() * prediction


def to_noise(schedule: Schedule, pictures: Tensor, noisy: Tensor, times_B: Tensor) -> Tensor:
    """eps that leads from x_0 to x_t."""
    kept = schedule.kept(times_B, noisy)
    return (noisy - kept.sqrt() * pictures) / (1 - kept).sqrt()


def bounded(pictures: Tensor, percentile: float | None) -> Tensor:
    """x_0 brought into [-1, 1]: cut off, or with a percentile in (0, 1] by dynamic thresholding.

    Dynamic thresholding (Saharia et al. 2022, section 2.3) cuts each picture at s, that percentile of its
    absolute values, and divides by s; s is at least 1, so that a picture within bounds stays as it is.
    """
    if percentile is None:
        return pictures.clamp(-1, 1)
    highest = torch.quantile(pictures.abs().flatten(1).float(), percentile, dim=1).clamp(min=1)
    highest = highest.to(pictures.dtype).view(-1, *[1] * (pictures.ndim - 1))
    return pictures.clamp(-highest, highest) / highest


def joined(first: Any, second: Any) -> Any:
    """Two conditions as one batch: tensors are joined at their first axis, tuples part by part."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, tuple):
        parts = [joined(a, b) for a, b in zip(first, second, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return first


def guided(
    denoise: Callable[[Tensor, Tensor, Any], Tensor], text: Any, nothing: Any, scale: float
) -> Denoise:
    """Classifier-free guidance, both predictions in one pass over 2 B pictures.

    A scale of 1 is the conditional and 0 the unconditional prediction itself, bit for bit, in one pass over
    B. Where the variance is learnt, only the first C channels are guided and the text's variance is kept, as
    in GLIDE.
    """
    if scale in (0, 1):
        only = text if scale == 1 else nothing
        return lambda noisy, times_B: denoise(noisy, times_B, only)
    both = joined(text, nothing)

    def predict(noisy: Tensor, times_B: Tensor) -> Tensor:
        channels = noisy.shape[1]
        found = denoise(torch.cat([noisy, noisy]), torch.cat([times_B, times_B]), both)
        with_text, without = found.chunk(2)
        mean = without[:, :channels] + scale * (with_text[:, :channels] - without[:, :channels])
        return torch.cat([mean, with_text[:, channels:]], 1) if found.shape[1] > channels else mean

    return predict


class Sampling(NamedTuple):
    """How pictures are drawn."""

    target: Target = "noise"
    method: Literal["ddim", "ddpm"] = "ddim"
    eta: float = 0.0
    """DDIM: share of the posterior's noise; 1 is DDPM with the smaller variance."""
    bound: bool = True
    """Bring x_0 into [-1, 1] at every step; latents have no bounds."""
    percentile: float | None = None
    """Dynamic thresholding, see `bounded`."""


def spaced(schedule: Schedule, steps: int) -> list[int]:
    """`steps` times from the noisiest to 0, evenly spaced. Raises ConfigError where there are not so many."""
    if not 1 <= steps <= schedule.steps:
        raise ConfigError(f"steps is {steps}: expected a whole number from 1 to {schedule.steps}")
    if steps == 1:
        return [schedule.steps - 1]
    return [round(t) for t in torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).tolist()]


def sample(
    denoise: Denoise,
    schedule: Schedule,
    noise: Tensor,
    times: Sequence[int],
    how: Sampling,
    draw: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Turns noise into pictures; yields x after every step, the last one is the picture.

    Args:
        noise: x at the first of `times` (B, C, H, W).
        times: falling, see `spaced`.
        draw: gives new noise of that shape; needed where steps are random (DDPM, eta above 0).
    """
    noisy, draw = noise, draw or _no_noise
    for place, time in enumerate(times):
        before = times[place + 1] if place + 1 < len(times) else None
        times_B = torch.full((len(noisy),), time, device=noisy.device)
        found = denoise(noisy, times_B)
        channels = noisy.shape[1]
        pictures = to_picture(schedule, how.target, found[:, :channels], noisy, times_B)
        if how.bound:
            pictures = bounded(pictures, how.percentile)
        kept_before = 1.0 if before is None else float(schedule.kept_T[before])
        step = Step(float(schedule.kept_T[time]), kept_before)
        if before is None:
            noisy = pictures
        elif how.method == "ddim":
            noisy = _ddim_step(step, pictures, noisy, how.eta, draw)
        else:
            noisy = step.mean(pictures, noisy)
            log_variance = step.log_variance(found[:, channels:] if found.shape[1] > channels else None)
            noisy = noisy + (0.5 * log_variance).exp() * draw()
        yield noisy


def _no_noise() -> Tensor:
    raise ConfigError("the steps of this sampler are random: give `draw`, or choose DDIM with an eta of 0")


def _ddim_step(step: Step, pictures: Tensor, noisy: Tensor, eta: float, draw: Callable[[], Tensor]) -> Tensor:
    direction = (noisy - math.sqrt(step.kept) * pictures) / math.sqrt(1 - step.kept)
    sigma = eta * math.sqrt(step.smaller_variance)
    moved = math.sqrt(step.before) * pictures + math.sqrt(max(0.0, 1 - step.before - sigma**2)) * direction
    return moved + sigma * draw() if sigma > 0 else moved


class Step(NamedTuple):
    """One step back in time, from a_t to a_s with s < t; steps may skip times."""

    kept: float
    before: float

    @property
    def beta(self) -> float:
        """Noise that is added from s to t."""
        return 1 - self.kept / self.before

    @property
    def smaller_variance(self) -> float:
        """Variance of q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        return (1 - self.before) / (1 - self.kept) * self.beta

    def mean(self, pictures: Tensor, noisy: Tensor) -> Tensor:
        """Mean of q(x_s | x_t, x_0) (eq. 7)."""
        of_picture = math.sqrt(self.before) * self.beta / (1 - self.kept)
        of_noisy = math.sqrt(1 - self.beta) * (1 - self.before) / (1 - self.kept)
        return of_picture * pictures + of_noisy * noisy

    def log_variance(self, learnt: Tensor | None) -> Tensor:
        """The smaller variance, or where it is learnt between that and beta (Nichol and Dhariwal 2021,
        eq. 15): -1 is the smaller and 1 the larger one."""
        smaller = math.log(max(self.smaller_variance, 1e-20))
        if learnt is None:
            return torch.tensor(smaller, dtype=torch.float64)  # of one number: it keeps the pictures' type
        share = (learnt + 1) / 2
        return share * math.log(self.beta) + (1 - share) * smaller


def inverted(
    denoise: Denoise, schedule: Schedule, pictures: Tensor, times: Sequence[int], target: Target
) -> Tensor:
    """DDIM backwards: the noise from which `sample` with these (falling) times comes back near the pictures.

    The pictures count as x at the last of `times`, which is nearly without noise.
    """
    noisy, rising = pictures, [*reversed(times)]
    for now, later in zip(rising, rising[1:], strict=False):
        times_B = torch.full((len(noisy),), now, device=noisy.device)
        found = to_picture(schedule, target, denoise(noisy, times_B)[:, : noisy.shape[1]], noisy, times_B)
        direction = to_noise(schedule, found, noisy, times_B)
        kept = float(schedule.kept_T[later])
        noisy = math.sqrt(kept) * found + math.sqrt(1 - kept) * direction
    return noisy


def between(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation of rows (B, E), and of noise: the way between two points of a sphere."""
    a, b = first.flatten(1), second.flatten(1)
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True))
    angle = cosine.clamp(-1 + 1e-7, 1 - 1e-7).acos()
    mixed = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
    return mixed.view_as(first)


def variational_bound(
    schedule: Schedule, pictures: Tensor, found: Tensor, learnt: Tensor, noisy: Tensor, times_B: Tensor
) -> Tensor:
    """L_vlb of each picture in bits per number (B) (Nichol and Dhariwal 2021, eq. 4 to 7).

    It is the divergence between the true step and the model's, where the model's mean is held fixed so that
    only the variance `learnt` (in [-1, 1], see `Step.log_variance`) is trained by it. At time 0 it is the
    likelihood of the picture under the model's last step, as a density.
    """
    kept = schedule.kept(times_B, pictures)
    last_B = times_B == 0
    before = torch.where(
        last_B.view_as(kept), torch.ones_like(kept), schedule.kept((times_B - 1).clamp(0), pictures)
    )
    beta = 1 - kept / before
    smaller = (1 - before) / (1 - kept) * beta
    # At time 0 the true variance is 0; as in the public code, that of time 1 stands in its place.
    first = Step(float(schedule.kept_T[1]), float(schedule.kept_T[0])).smaller_variance
    smaller = torch.where(last_B.view_as(kept), torch.full_like(kept, first), smaller)
    share = (learnt + 1) / 2
    log_variance = share * beta.log() + (1 - share) * smaller.log()

    def mean(x: Tensor) -> Tensor:
        return (before.sqrt() * beta * x + (1 - beta).sqrt() * (1 - before) * noisy) / (1 - kept)

    gap = (mean(pictures) - mean(found.detach())) ** 2
    divergence = 0.5 * (log_variance - smaller.log() + (smaller + gap) / log_variance.exp() - 1)
    likelihood = 0.5 * (
        math.log(2 * math.pi) + log_variance + (pictures - mean(found.detach())) ** 2 / log_variance.exp()
    )
    chosen = torch.where(last_B.view_as(kept), likelihood, divergence)
    return chosen.flatten(1).mean(1) / math.log(2)
