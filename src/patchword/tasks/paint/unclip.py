"""unCLIP as a family of painters: a prior makes the embedding of a picture, a decoder paints it.

Both work in the space of two towers, which stay as they are. They are trained in stages of one run, apart: a
stage trains the prior where `learning_rates` lets "painter.prior" learn, and else the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from patchword.data.captions import CaptionBatch
from patchword.diffuse import Sampling, between, cosine_schedule, guided, noised, sample, spaced
from patchword.ids import SpecialIds
from patchword.models.painters.clip_prior import TextSide, UnClip, UnClipConfig, best_of, scaled, silent
from patchword.tasks.paint import diffusion
from patchword.tasks.paint.composed import PaintModel, Prompt
from patchword.tasks.paint.families import Family, Wish, noise_of
from patchword.train.groups import highest_rate
from patchword.train.settings import StageSettings
from patchword.train.step import Shares

PRIOR = "painter.prior"
PRIOR_STEPS = 25
_OTHER = 2**32
"""Added to the seeds of a prior, so that its noise is not the beginning of the decoder's."""


class PriorLoss(nn.Module):
    """Squared error of the picture's embedding, predicted from the text (Ramesh et al. 2022, section 2.2)."""

    def __init__(self, model: PaintModel, special: SpecialIds) -> None:
        super().__init__()
        self.model, self.special = model, special
        self.schedule = cosine_schedule(model.painter.config.prior.steps)

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"; "cosine" is that of the prediction and the picture."""
        prior = self.model.painter.prior
        pixels_B3HW = batch.inputs.pixels_B3HW
        assert pixels_B3HW is not None  # a painter is trained from pixels
        seen_BE = scaled(self.model.see(pixels_B3HW))
        text = text_side(self.model.tell(batch.tokens_RT, self.special.pad))
        device = seen_BE.device
        if self.training and prior.config.drop_text:
            text = silent(text, torch.rand(len(seen_BE), device=device) < prior.config.drop_text)
        times_B = torch.randint(prior.config.steps, (len(seen_BE),), device=device)
        noisy_BE = noised(self.schedule, seen_BE, torch.randn_like(seen_BE), times_B)
        found_BE = prior(noisy_BE, times_B, text).float()
        cosine_B = nn.functional.cosine_similarity(found_BE, seen_BE)
        loss = ((found_BE - seen_BE) ** 2).mean(1).sum() / shares.pictures
        return {"loss": loss, "cosine": cosine_B.sum().detach() / shares.pictures}


def text_side(told: Prompt) -> TextSide:
    """What the prior is told."""
    assert told.sentence_BE is not None  # a prior works in the space of two towers
    return TextSide(told.text.tokens_BLC, told.mask_BL, told.sentence_BE)


def _objective(model: PaintModel, special: SpecialIds, stage: StageSettings) -> nn.Module:
    if highest_rate(stage, PRIOR) > 0:
        return PriorLoss(model, special)
    return diffusion.DiffusionLoss(model, special, model.painter.decoder, sees_pictures=True)


@torch.inference_mode()
def embeddings(painter: UnClip, told: Prompt, seeds: list[int]) -> Tensor:
    """Embeddings of pictures of the texts, in the scale that the decoder takes (B, E): of `prior.samples` for
    each text the nearest to it."""
    settings, text = painter.config.prior, text_side(told)
    nothing = silent(text, torch.ones(len(seeds), dtype=torch.bool, device=told.ids_BL.device))
    schedule = cosine_schedule(settings.steps)
    times = spaced(schedule, min(PRIOR_STEPS, settings.steps))
    denoise = guided(painter.prior, text, nothing, settings.guidance)
    drawn = []
    draw = noise_of([seed + _OTHER for seed in seeds], (painter.prior.embedding_width,), told.ids_BL.device)
    for _ in range(settings.samples):
        *_, found_BE = sample(denoise, schedule, draw(), times, Sampling("picture", bound=False))
        drawn.append(found_BE)
    return scaled(best_of(torch.stack(drawn), text.sentence_BE))


@torch.inference_mode()
def paint(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts: an embedding first, then the picture."""
    seen_BE = embeddings(model.painter, told, list(wish.seeds))
    return diffusion.paint_with(model.painter.decoder, told, nothing, wish, seen_BE)


@torch.inference_mode()
def vary(model: PaintModel, nothing: Prompt, pictures_B3HW: Tensor, wish: Wish) -> Tensor:
    """Other pictures with the embeddings of pictures in [-1, 1], told by no text (section 3.1, with new noise
    in place of the inverted one)."""
    seen_BE = scaled(model.see(pictures_B3HW))
    return diffusion.paint_with(model.painter.decoder, nothing, nothing, wish, seen_BE)


@torch.inference_mode()
def blend(
    model: PaintModel, nothing: Prompt, ends: tuple[Tensor, Tensor], shares: Sequence[float], wish: Wish
) -> Tensor:
    """Pictures on the way from one picture to another, told by no text (section 3.2): embeddings on the great
    circle between theirs, one for each share from 0 (the first) to 1 (the second).

    Args:
        nothing: the empty text, once for each share.
        ends: both pictures, each (1, 3, H, W) in [-1, 1].
        wish: as many seeds as shares; with one seed for all only the embedding changes.
    """
    first_1E, second_1E = (model.see(picture) for picture in ends)
    seen_BE = scaled(torch.cat([between(first_1E, second_1E, share) for share in shares]))
    return diffusion.paint_with(model.painter.decoder, nothing, nothing, wish, seen_BE)


def check(config: UnClipConfig, wish: Wish) -> None:
    """Raises ConfigError for a wish that the decoder cannot fulfil."""
    diffusion.check(config.decoder, wish)


UNCLIP = Family(_objective, paint, check, diffusion.STEPS)
