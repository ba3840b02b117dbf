"""The last block's map of an EfficientNet-Lite for one picture, in numpy: a few pictures are labelled or
searched by before torch would be imported.

The equations are those of `towers/efficientnet_lite.py`, in evaluation mode. A depthwise convolution is a sum
over its taps, each a shifted map times one number per channel; all others are matrix products.

Shape legend: H, W rows and columns, C channels, O channels after a layer, N cells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from patchword.towers.efficientnet_plan import SCALES, scaled_stages

Read = Callable[[str], np.ndarray]
"""A weight by its name in the tower, float32."""

_EPSILON = 1e-3


def last_block(pixels_3HW: np.ndarray, read: Read, kind: str) -> np.ndarray:
    """The cells (N, C) after the last block, row by row, of a picture normalised by the tower's values."""
    map_HWC = _clipped(_convolved(pixels_3HW.transpose(1, 2, 0), read, "stem", 2))
    number = 0
    for stage in scaled_stages(SCALES[kind]):
        for repeat in range(stage.blocks):
            stride = 1 if repeat else stage.stride
            map_HWC = _block(map_HWC, read, f"layers.{number}", stride, stage.expansion > 1)
            number += 1
    return map_HWC.reshape(-1, map_HWC.shape[-1])


def _block(map_HWC: np.ndarray, read: Read, name: str, stride: int, expands: bool) -> np.ndarray:
    hidden_HWC = _clipped(_pointwise(map_HWC, read, f"{name}.expand")) if expands else map_HWC
    hidden_HWC = _clipped(_depthwise(hidden_HWC, read, f"{name}.depthwise", stride))
    out_HWO = _pointwise(hidden_HWC, read, f"{name}.project")
    return map_HWC + out_HWO if out_HWO.shape == map_HWC.shape and stride == 1 else out_HWO


def _folded(read: Read, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Filters (O, I, k, k) and bias (O,) of a convolution with its normalisation."""
    scale_O = read(f"{name}.norm.weight") / np.sqrt(read(f"{name}.norm.running_var") + np.float32(_EPSILON))
    bias_O = read(f"{name}.norm.bias") - read(f"{name}.norm.running_mean") * scale_O
    return read(f"{name}.convolution.weight") * scale_O[:, None, None, None], bias_O


def _pointwise(map_HWC: np.ndarray, read: Read, name: str) -> np.ndarray:
    filters_OI11, bias_O = _folded(read, name)
    height, width, channels = map_HWC.shape
    out_NO = map_HWC.reshape(-1, channels) @ np.ascontiguousarray(filters_OI11[:, :, 0, 0].T)
    out_NO += bias_O
    return out_NO.reshape(height, width, -1)


def _depthwise(map_HWC: np.ndarray, read: Read, name: str, stride: int) -> np.ndarray:
    filters_C1kk, bias_C = _folded(read, name)
    kernel = filters_C1kk.shape[-1]
    padded_HWC, height, width = _padded(map_HWC, kernel, stride)
    taps_kkC = np.ascontiguousarray(filters_C1kk[:, 0].transpose(1, 2, 0))
    out_HWC = np.empty((height, width, map_HWC.shape[-1]), dtype=np.float32)
    product_WC = np.empty((width, map_HWC.shape[-1]), dtype=np.float32)
    for row in range(height):  # a row stays in the cache over all taps
        out_WC = out_HWC[row]
        out_WC[:] = bias_C
        for i in range(kernel):
            above_WC = padded_HWC[row * stride + i]
            for j in range(kernel):
                np.multiply(above_WC[j : j + (width - 1) * stride + 1 : stride], taps_kkC[i, j], product_WC)
                out_WC += product_WC
    return out_HWC


def _convolved(map_HWC: np.ndarray, read: Read, name: str, stride: int) -> np.ndarray:
    """A full convolution, as one product with the patches below its filters."""
    filters_OIkk, bias_O = _folded(read, name)
    kernel = filters_OIkk.shape[-1]
    padded_HWC, height, width = _padded(map_HWC, kernel, stride)
    windows_HWCkk = np.lib.stride_tricks.sliding_window_view(padded_HWC, (kernel, kernel), axis=(0, 1))
    patches_NI = windows_HWCkk[::stride, ::stride].reshape(height * width, -1)
    return (patches_NI @ filters_OIkk.reshape(len(filters_OIkk), -1).T + bias_O).reshape(height, width, -1)


def _padded(map_HWC: np.ndarray, kernel: int, stride: int) -> tuple[np.ndarray, int, int]:
    """The map with "same" padding (the odd row and column below and right), and its size afterwards."""
    around, sizes = [], []
    for side in map_HWC.shape[:2]:
        sizes.append(-(-side // stride))
        both = max(0, (sizes[-1] - 1) * stride + kernel - side)
        around.append((both // 2, both - both // 2))
    return np.pad(map_HWC, (*around, (0, 0))), sizes[0], sizes[1]


def _clipped(map_HWC: np.ndarray) -> np.ndarray:
    return np.clip(map_HWC, 0, 6, out=map_HWC)
