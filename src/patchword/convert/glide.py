"""Converts an attention block of the public GLIDE code to ours.

Source: openai/glide-text2im, commit 69b5307 (MIT). Its projections lie head by head, each with its query, key
and value; ours lie one after the other, each with all heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchword.errors import ModelError
from patchword.models.painters.denoiser import TextAttention

NAMES = ("norm", "qkv", "encoder_kv", "proj_out")


def attention_from_reference(state: Mapping[str, Tensor], head_width: int) -> TextAttention:
    """Our attention with the weights of `AttentionBlock` (names such as "qkv.weight").

    Raises ModelError for missing or unknown names.
    """
    wanted = {f"{name}.{part}" for name in NAMES for part in ("weight", "bias")}
    if set(state) != wanted:
        wrong = ", ".join(sorted(wanted ^ set(state)))
        raise ModelError(f"no attention block of GLIDE with text: {wrong} are missing or unknown")
    width, text_width = state["norm.weight"].shape[0], state["encoder_kv.weight"].shape[1]
    made = TextAttention(width, text_width, head_width)
    with torch.no_grad():
        for part in ("weight", "bias"):
            getattr(made.norm, part).copy_(state[f"norm.{part}"])
            getattr(made.project, part).copy_(_in_order(state[f"qkv.{part}"], 3, head_width))
            getattr(made.project_text, part).copy_(_in_order(state[f"encoder_kv.{part}"], 2, head_width))
            getattr(made.out, part).copy_(
                state[f"proj_out.{part}"].squeeze(-1) if part == "weight" else state["proj_out.bias"]
            )
    return made


def _in_order(rows: Tensor, parts: int, head_width: int) -> Tensor:
    """Rows by head, part and number (of a convolution of length one, or a bias) as rows by part, head,
    number."""
    flat = rows.squeeze(-1) if rows.ndim == 3 else rows
    return flat.unflatten(0, (-1, parts, head_width)).transpose(0, 1).flatten(0, 2)
