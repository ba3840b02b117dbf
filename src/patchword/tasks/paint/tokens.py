"""Painters that write tokens, as families: DALL-E and Parti. Equations:
`models/painters/token_transformer.py`.

A stage of the training teaches what has a learning rate: "painter.codec" alone, and after it everything else,
with the codec held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.data.captions import CaptionBatch
from patchword.errors import ConfigError
from patchword.ids import SpecialIds
from patchword.models.painters.token_transformer import (
    TEXT_WEIGHT,
    Dalle,
    DalleConfig,
    State,
    TransformerConfig,
)
from patchword.tasks.paint.adversarial import pixels_of
from patchword.tasks.paint.composed import PaintModel, Prompt, emptied
from patchword.tasks.paint.families import Family, TokenChoice, Wish, noise_of
from patchword.train.groups import highest_rate
from patchword.train.settings import StageSettings
from patchword.train.step import Shares

GUIDANCE = 3.0

Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""(codes (B), state) -> logits of the next code (B, K), and the state after it."""


class CodecObjective(nn.Module):
    """The codec learns to give pictures back from their codes."""

    def __init__(self, model: PaintModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"; "codes" is the share of the codebook that the batch uses."""
        pictures = to_unit(pixels_of(batch))
        codec = self.model.painter.codec
        found = codec.losses(pictures, shares.progress)
        weight = len(pictures) / shares.pictures
        losses = {"reconstruction": weight * found.reconstruction, "regulariser": weight * found.regulariser}
        used = found.ids_BN.new_tensor(len(found.ids_BN.unique()) / codec.codes, dtype=torch.float32)
        return {"loss": losses["reconstruction"] + losses["regulariser"], **losses, "codes": weight * used}


class TokenObjective(nn.Module):
    """Cross-entropy of the pictures' tokens, and for DALL-E of the texts' words."""

    def __init__(self, model: PaintModel, special: SpecialIds) -> None:
        super().__init__()
        self.model, self.special = model, special

    def forward(self, batch: CaptionBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, means per token, the total under "loss"."""
        painter, ids_BL = self.model.painter, batch.tokens_RT
        with torch.no_grad():
            codes_BN = painter.codec.encode(to_unit(pixels_of(batch)))
        if self.training and painter.config.drop_text:
            dropped_B = torch.rand(len(ids_BL), device=ids_BL.device) < painter.config.drop_text
            ids_BL = emptied(ids_BL, self.special, dropped_B)
        if isinstance(painter, Dalle):
            words_BL, real_BL = fitted(ids_BL, painter.config.text_length, self.special.pad)
            word_logits, code_logits = painter(words_BL, real_BL, codes_BN)
            targets_BL = words_BL[:, 1:].masked_fill(~real_BL[:, 1:], -100)
            words = F.cross_entropy(word_logits.flatten(0, 1), targets_BL.flatten(), reduction="sum")
            losses = {"text": words / shares.targets, "picture": _mean(code_logits, codes_BN, shares)}
            total = TEXT_WEIGHT * losses["text"] + (1 - TEXT_WEIGHT) * losses["picture"]
            return {"loss": total, **losses}
        told = self.model.tell(ids_BL, self.special.pad)
        logits = painter(painter.tell(told.text.tokens_BLC, told.mask_BL), codes_BN)
        return {"loss": _mean(logits, codes_BN, shares)}


def _mean(logits_BNK: Tensor, codes_BN: Tensor, shares: Shares) -> Tensor:
    """Cross-entropy per token, in nats."""
    total = F.cross_entropy(logits_BNK.flatten(0, 1), codes_BN.flatten(), reduction="sum")
    return total / (shares.pictures * codes_BN.shape[1])


def to_unit(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as values in [0, 1], which a codec works on."""
    return ((pictures + 1) / 2).clamp(0, 1)


def fitted(ids_BL: Tensor, length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Texts at the transformer's length, and where they are no padding.

    Raises ConfigError for texts that are longer: the training or the prompt was cut elsewhere.
    """
    if ids_BL.shape[1] > length:
        raise ConfigError(
            f"a text has {ids_BL.shape[1]} tokens, start and end counted, and the painter reads {length}: "
            "raise "
            "painter.text_length, or lower max_words"
        )
    words_BL = F.pad(ids_BL, (0, length - ids_BL.shape[1]), value=pad)
    return words_BL, words_BL != pad


def learns_codec(stage: StageSettings) -> bool:
    """Whether a stage teaches the codec. Raises ConfigError where it teaches both or nothing."""
    codec, transformer = (highest_rate(stage, f"painter.{part}") > 0 for part in ("codec", "layers"))
    if codec == transformer:
        raise ConfigError(
            f"stage {stage.name!r} teaches {'both' if codec else 'neither'} of codec and transformer: give "
            '"painter.codec" a learning rate above 0 and "" the rate 0 first, and in the next stage the '
            "reverse"
        )
    return codec


def _objective(model: PaintModel, special: SpecialIds, stage: StageSettings) -> nn.Module:
    return CodecObjective(model) if learns_codec(stage) else TokenObjective(model, special)


def check(config: TransformerConfig, wish: Wish) -> None:
    """Raises ConfigError for a wish that a painter of tokens cannot fulfil."""
    if wish.guidance not in (None, 1.0) and not config.drop_text:
        raise ConfigError(
            f"guidance is {wish.guidance:g}, and this model was trained without left-out texts "
            "(painter.drop_text = 0), so it does not know what a picture without a text is: leave guidance "
            "at "
            "1, or train it with drop_text above 0"
        )
    if wish.steps is not None or wish.percentile is not None:
        raise ConfigError(
            "a painter of tokens writes every token once and has neither steps nor a threshold: leave them "
            "out"
        )


def choose(logits_BK: Tensor, uniform_B: Tensor, how: TokenChoice) -> Tensor:
    """Codes (B), drawn by a number in [0, 1) each."""
    if how.temperature == 0:
        return logits_BK.argmax(1)
    sorted_BK, order_BK = (logits_BK.float() / how.temperature).sort(1, descending=True)
    if how.top_k is not None:
        sorted_BK = sorted_BK[:, : how.top_k]
    shares_BK = sorted_BK.softmax(1)
    sums_BK = shares_BK.cumsum(1)
    last_B1 = sums_BK.new_full((len(sums_BK), 1), sums_BK.shape[1] - 1, dtype=torch.long)
    if how.top_p is not None:
        # Shares fall, so those that begin below top_p come first; what is beyond them is never reached.
        last_B1 = (sums_BK - shares_BK < how.top_p).sum(1, keepdim=True) - 1
    wanted_B1 = uniform_B[:, None] * sums_BK.gather(1, last_B1)
    places_B1 = torch.searchsorted(sums_BK, wanted_B1, right=True)
    return order_BK.gather(1, torch.minimum(places_B1, last_B1))[:, 0]


def write_tokens(first: tuple[Tensor, State], step: Step, cells: int, wish: Wish, guidance: float) -> Tensor:
    """The codes (B, N) of pictures, one after another; with guidance the second half of all rows is
    untold.
    """
    count, device = len(wish.seeds), first[0].device
    draw = noise_of(wish.seeds, (cells,), device)
    uniform_BN = torch.special.ndtr(draw().double())
    logits, state = first
    chosen: list[Tensor] = []
    for place in range(cells):
        if place:
            last_B = chosen[-1]
            logits, state = step(torch.cat([last_B, last_B]) if len(logits) > count else last_B, state)
        told = logits[:count]
        if len(logits) > count:
            untold = logits[count:]
            told = untold + guidance * (told - untold)
        chosen.append(choose(told, uniform_BN[:, place].to(told.dtype), wish.tokens or TokenChoice()))
        wish.watch()
    return torch.stack(chosen, 1)


def _rows(told: Prompt, nothing: Prompt, guidance: float) -> Sequence[Prompt]:
    """What has to be run: one text alone is exact where guidance is 1 or 0."""
    if guidance == 1:
        return [told]
    return [nothing] if guidance == 0 else [told, nothing]


def _guidance(config: TransformerConfig, wish: Wish) -> float:
    if wish.guidance is not None:
        return wish.guidance
    return GUIDANCE if config.drop_text else 1.0


@torch.inference_mode()
def paint_parti(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts, one for each seed."""
    painter = model.painter
    guidance = _guidance(painter.config, wish)
    rows = _rows(told, nothing, guidance)
    text = painter.tell(
        torch.cat([one.text.tokens_BLC for one in rows]), torch.cat([one.mask_BL for one in rows])
    )
    ids_BN = write_tokens(
        painter.start(text),
        lambda ids_B, state: painter.step(ids_B, text, state),
        painter.cells,
        wish,
        guidance,
    )
    return 2 * painter.codec.decode(ids_BN) - 1


@torch.inference_mode()
def paint_dalle(model: PaintModel, told: Prompt, nothing: Prompt, wish: Wish) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of texts, one for each seed."""
    painter = model.painter
    guidance = _guidance(painter.config, wish)
    length = painter.config.text_length
    rows = [_fitted_told(one, length) for one in _rows(told, nothing, guidance)]
    words_BL, real_BL = (torch.cat(parts) for parts in zip(*rows, strict=True))
    ids_BN = write_tokens(painter.start(words_BL, real_BL), painter.step, painter.cells, wish, guidance)
    return 2 * painter.codec.decode(ids_BN) - 1


def _fitted_told(told: Prompt, length: int) -> tuple[Tensor, Tensor]:
    missing = length - told.ids_BL.shape[1]
    if missing < 0:
        raise ConfigError(
            f"the prompt has {told.ids_BL.shape[1]} tokens, start and end counted, and the painter reads "
            f"{length}"
        )
    return F.pad(told.ids_BL, (0, missing)), F.pad(told.mask_BL, (0, missing))


def _build_dalle(config: DalleConfig, text_width: int | None, vocabulary: int) -> nn.Module:
    return Dalle(config, vocabulary)


PARTI = Family(_objective, paint_parti, check, None, selects=False)
DALLE = Family(_objective, paint_dalle, check, None, selects=False, build=_build_dalle)
