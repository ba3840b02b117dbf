"""Converts the alignment head of the public LAPS code to our `code` variant.

Source: CrossmodalGroup/LAPS, commit 355a43b.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from patchword.errors import ModelError
from patchword.models.pairs.patch_slimming import PatchSlimming, PatchSlimmingConfig, aggregated_tokens

KEYS = {
    "aggr_net.weight.0.weight": "aggregation.norm.weight",
    "aggr_net.weight.0.bias": "aggregation.norm.bias",
    "aggr_net.weight.1.weight": "aggregation.inner.weight",
    "aggr_net.weight.1.bias": "aggregation.inner.bias",
    "aggr_net.weight.3.weight": "aggregation.outer.weight",
    "aggr_net.weight.3.bias": "aggregation.outer.bias",
    "aggr_net.scale": "aggregation.scale",
}


def from_reference(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> PatchSlimming:
    """Builds the head that computes what the public code computes with these weights.

    `state` has the reference's parameter names (`aggr_net.…`; a prefix such as that of a whole checkpoint is
    removed). Of `options`, the head needs `embed_size`, `num_patches`, `sparse_ratio` and `aggr_ratio`. The
    reference also parses `attention_weight` and `ratio_weight`, but its function does not depend on them.
    Raises ModelError for missing or unknown names, and for sizes that contradict the options.
    """
    missing = [
        name for name in ("embed_size", "num_patches", "sparse_ratio", "aggr_ratio") if name not in options
    ]
    if missing:
        raise ModelError(
            f"options of a LAPS head lack {', '.join(missing)}: pass those that the reference was built with"
        )
    named = {name[max(name.find("aggr_net."), 0) :]: tensor for name, tensor in state.items()}
    if set(named) != set(KEYS) or len(named) != len(state):
        wrong = sorted(set(named) ^ set(KEYS)) or sorted(state)
        raise ModelError(
            f"weights of a LAPS head: {', '.join(wrong[:5])} missing or unknown; expected exactly "
            f"{', '.join(KEYS)}"
        )
    width, keep = int(options["embed_size"]), float(options["sparse_ratio"])
    tokens = aggregated_tokens(int(options["num_patches"]), keep, float(options["aggr_ratio"]))
    head = PatchSlimming(PatchSlimmingConfig(width=width, keep=keep, aggregated=tokens))
    ours = head.state_dict()
    weights = {}
    for name, tensor in named.items():
        key = KEYS[name]
        # The reference stores its single scale as (1, 1, 1).
        weights[key] = tensor.reshape(()) if key == "aggregation.scale" else tensor
        if weights[key].shape != ours[key].shape:
            raise ModelError(
                f"{name} has shape {tuple(tensor.shape)}, but these options make it {tuple(ours[key].shape)}"
            )
    head.load_state_dict(weights)
    return head
