"""The parts that all towers over transformers' modules share.

These are masks, heads, freezing, strict loading and preprocessing values. A tower has
`embed(inputs) -> (tokens, mask)`, `layers[i](tokens, mask) -> tokens` and `finish(...) -> features`, and the
whole is their composition. The layers are thin views of transformers' modules, which the tower owns under
`model`. A view holds no weights, so a state dict has transformers' names. `trainable_from` says how much is
trained: None freezes the tower, k trains the layers k, k+1, ... and what follows them, 0 trains everything,
and the number of layers trains only what follows the last one (a norm, a projection). Frozen parts stay in
evaluation mode, whatever `train()` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from patchword.errors import ConfigError, ModelError
from patchword.hub import find_published
from patchword.layers.adapters import Adapter
from patchword.layers.attention import attend, hide
from patchword.towers.settings import AdaptersConfig


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the pixels that a tower was trained on.

    These are plain values; the decoding of pictures is in `data/pictures.py`.
    """

    size: int
    """Side of the square picture that the tower takes, in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["crop", "squash"]
    """crop: scale the shorter side to `resize` pixels, then cut the central square. squash: scale to the
    square and ignore the aspect ratio."""
    resample: Literal["bicubic", "bilinear"]
    resize: int
    """Length of the shorter side before a crop; equal to `size` for squash."""


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def attend_heads(
    queries_BHQD: Tensor, keys_BHND: Tensor, values_BHND: Tensor, mask_BN: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention from Q rows to N tokens, with the heads joined again.

    Args:
        mask_BN: True at tokens that may be attended to, or (B, Q, N) where the rows differ; None for all.
    Returns:
        (B, Q, H * D).
    """
    bias = None
    if mask_BN is not None:
        bias = hide(mask_BN[:, None, None, :] if mask_BN.dim() == 2 else mask_BN[:, None], queries_BHQD.dtype)
    joined_BHQD, _ = attend(queries_BHQD, keys_BHND, values_BHND, bias, dropout=dropout)
    return joined_BHQD.transpose(1, 2).flatten(2)


def split_heads(rows_BNC: Tensor, heads: int) -> Tensor:
    """Views (B, N, H * D) as (B, H, N, D)."""
    return rows_BNC.view(*rows_BNC.shape[:-1], heads, rows_BNC.shape[-1] // heads).transpose(1, 2)


def run_layers(
    layers: nn.ModuleList | Sequence[Any],
    tokens: Tensor,
    mask: Tensor | None,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Returns the tokens after the layers start, start + 1, ..., stop - 1.

    Tokens stored before layer k continue with start=k.
    """
    for layer in layers[start:stop]:
        tokens = layer(tokens, mask)
    return tokens


def check_picture_size(pixels_B3HW: Tensor, height: int, width: int, tower: str) -> None:
    """Raises ModelError unless the pictures are (B, 3, height, width)."""
    if pixels_B3HW.dim() != 4 or tuple(pixels_B3HW.shape[1:]) != (3, height, width):
        raise ModelError(
            f"the {tower} tower was given pixels of shape {tuple(pixels_B3HW.shape)} and expects (B, 3, "
            f"{height}, {width}): "
            "prepare the pictures with the tower's own preprocessing values"
        )


class Parts(NamedTuple):
    """The modules of a tower in the order in which tokens pass them; one entry of `blocks` per layer."""

    embedding: tuple[nn.Module, ...]
    blocks: tuple[tuple[nn.Module, ...], ...]
    ending: tuple[nn.Module, ...]


class PartlyFrozenModule(nn.Module):
    """A module that is trained from one layer on (see the top of this file).

    Its frozen parts stay in evaluation mode.
    """

    def freeze_below(self, parts: Parts, first: int | None) -> None:
        """Trains the layers first, first + 1, ... and the ending.

        0 trains everything, the number of layers only the ending, and None nothing.

        Raises:
            ConfigError: `first` is beyond the last part that can be trained.
        """
        highest = len(parts.blocks) - (0 if parts.ending else 1)
        if first is not None and first > highest:
            raise ConfigError(
                f"trainable_from is {first}, and the tower has {len(parts.blocks)} layers: "
                f"choose 0 to {highest}, or leave it out to freeze the tower"
            )
        # These modules are registered elsewhere; named tuples do not register them a second time.
        self.parts = parts
        lower = len(parts.blocks) if first is None else first
        frozen = [
            *([] if first == 0 else parts.embedding),
            *(module for block in parts.blocks[:lower] for module in block),
        ]
        frozen += parts.ending if first is None else ()
        self.requires_grad_(True)
        for module in frozen:
            module.requires_grad_(False)
        # A tuple, because the modules are already registered once, under the tower's model.
        self._frozen = tuple(frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> PartlyFrozenModule:
        """Sets the mode, as `nn.Module.train` does, but leaves frozen parts in evaluation mode.

        They have no dropout, and their batch statistics do not change.
        """
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def load_published(model_class: Any, source: str, revision: str | None, arguments: dict[str, Any]) -> Any:
    """Loads published weights from a folder or the hub, in torch's default dtype.

    transformers fills missing weights with random numbers; this refuses them.

    Args:
        arguments: further arguments of the model class, such as that it has no pooler.
    Raises:
        ModelError: the source cannot be read, or has no weights for some parameter of the tower.
    """
    # Imported here, because our own towers do not need transformers.
    from transformers.utils import logging

    found = find_published(source, revision)
    dtype, said = torch.get_default_dtype(), logging.get_verbosity()
    # One tower of a CLIP checkpoint leaves the other's weights unused, and transformers would list them all.
    logging.set_verbosity_error()
    try:
        model, report = model_class.from_pretrained(
            source,
            revision=found.commit,
            local_files_only=found.local,
            use_safetensors=True,  # others may hold code
            output_loading_info=True,
            dtype=dtype,
            **arguments,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"no {model_class.__name__} weights could be read from {source!r}: {error}"
        ) from error
    finally:
        logging.set_verbosity(said)
    missing = sorted(str(key) for key in (*report["missing_keys"], *report.get("mismatched_keys", ())))
    if missing:
        raise ModelError(
            f"{source!r} has no weights for {len(missing)} parameters of {model_class.__name__}, the first "
            f"is {missing[0]}: "
            "they would start random; use weights made for this kind of tower"
        )
    return model


def last_adapters(
    config: AdaptersConfig | None, depth: int, width: int
) -> tuple[nn.ModuleList, list[Adapter | None]]:
    """Returns the adapters that a tower owns, and the adapter (or None) of each of its `depth` blocks.

    There are none where `config` is None. Raises ConfigError where there are more adapters than blocks.
    """
    if config is None:
        return nn.ModuleList(), [None] * depth
    if config.blocks > depth:
        raise ConfigError(
            f"adapters.blocks is {config.blocks}, and the tower has {depth} blocks: choose 1 to {depth}"
        )
    adapters = [Adapter(width, config.bottleneck) for _ in range(config.blocks)]
    return nn.ModuleList(adapters), [*[None] * (depth - config.blocks), *adapters]


def by_value(tower: Any) -> Any:
    """Returns the tower's configuration with its architecture in place of its source.

    A model folder that holds the weights records this.
    """
    if hasattr(tower.config, "weights"):
        return tower.config.model_copy(update={"weights": "none"})
    if getattr(tower.config, "source", None) is None:
        return tower.config
    return tower.config.model_copy(
        update={"source": None, "revision": None, "architecture": tower.model.config.to_diff_dict()}
    )
