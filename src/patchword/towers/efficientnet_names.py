"""Names of the tensors in EfficientNet-Lite's published weights, in the words of `efficientnet_lite.py`."""

from __future__ import annotations

from patchword.errors import ModelError

_PARTS = {
    "_expand_conv": "expand.convolution",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.convolution",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.convolution",
    "_bn2": "project.norm",
}
_ENDS = {
    "_conv_stem": "stem.convolution",
    "_bn0": "stem.norm",
    "_conv_head": "head.convolution",
    "_bn1": "head.norm",
    "_fc": "classifier",
}


def our_name(published: str) -> str:
    """Returns the name in this file of a published tensor.

    Raises ModelError for a name that EfficientNet-Lite does not have.
    """
    parts = published.split(".")
    if parts[0] == "_blocks" and len(parts) == 4 and parts[2] in _PARTS:
        return f"layers.{parts[1]}.{_PARTS[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _ENDS:
        return f"{_ENDS[parts[0]]}.{parts[1]}"
    raise ModelError(
        f"the weights have a tensor {published}, and no part of EfficientNet-Lite is called so: "
        "they are another model's"
    )
