"""Captions of a stream of pictures, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch

from patchword.data.pictures import Picture
from patchword.errors import PictureError
from patchword.lookup import look_up
from patchword.tasks.caption.options import DecodingOptions, Precision
from patchword.tasks.caption.result import Caption


def captions_of(
    captioner: Any,
    pictures: Iterable[Picture],
    options: DecodingOptions,
    trace: bool,
    batch: int,
    unreadable: Callable[[Picture, PictureError], None] | None,
) -> Iterator[Caption]:
    """A caption for each picture, in order; pictures are taken from the iterable `batch` at a time, and not
    before they are needed.

    `unreadable` hears of a picture that cannot be decoded, which then has no caption; without it such a
    picture raises PictureError.
    """
    pictures = iter(pictures)
    with look_up("data.isolated:PictureReader")() as reader:
        while chunk := list(islice(pictures, batch)):
            images = []
            for picture in chunk:
                try:
                    images.append(reader.open(picture))
                except PictureError as error:
                    if unreadable is None:
                        raise
                    unreadable(picture, error)
            if images:
                yield from captioner.caption(images, trace=trace, batch=batch, options=options)


def computing_in(precision: Precision | None, device: torch.device) -> AbstractContextManager:
    """Products in a shorter format where one is asked for; sums and probabilities stay in float32."""
    if precision in (None, "float32"):
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))
