"""Stores tokens of two frozen towers, so that an epoch of prompt fusion costs only the fused layers.

The store has one entry per row of a table: the tokens before the last layers of each tower in fp16, with
texts padded to the longest. Training from the store equals training from the pictures after the same cast, as
long as pictures are not augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.data.captions import Inputs
from patchword.data.isolated import PictureReader
from patchword.data.labels import LabelBatch, LabelData, TokenInputs
from patchword.data.pictures import Preprocessing
from patchword.data.store import Store, fingerprint, write_store
from patchword.errors import ConfigError
from patchword.towers.layered import run_layers


@dataclass(frozen=True)
class DecodedInputs:
    """Pictures that are decoded on request.

    For a single pass over them, a cache would cost more than it saves.
    """

    images: Path
    preprocessing: Preprocessing
    reader: PictureReader = field(default_factory=PictureReader)

    def load(self, files: Sequence[str], generator: torch.Generator | None) -> Inputs:
        """Decodes the pictures of these files; nothing is augmented. Raises PictureError."""
        opened = [self.reader.open(self.images / name) for name in files]
        pixels_BHWC = np.stack([self.preprocessing.apply(picture) for picture in opened])
        return Inputs(pixels_B3HW=torch.from_numpy(self.preprocessing.normalise(pixels_BHWC)))


def expected_entries(vision: nn.Module, text: nn.Module, before_last: int, rows: LabelData) -> dict[str, Any]:
    """Returns the entries that a store must have to be used.

    They name towers, layers, preprocessing, the current table, and how texts are cut.
    """
    assert rows.inputs is not None and not isinstance(rows.inputs, TokenInputs)  # it is made of pictures
    status = rows.table.path.stat()
    return {
        "towers": fingerprint([checkpoint.weights_digest(vision), checkpoint.weights_digest(text)]),
        "before_last": before_last,
        "preprocessing": rows.inputs.preprocessing.model_dump(mode="json"),
        "table": fingerprint(
            [status.st_size, status.st_mtime_ns, rows.table.columns.model_dump(mode="json")]
        ),
        "max_words": rows.max_words,
    }


def store_tokens(
    vision: nn.Module,
    text: nn.Module,
    before_last: int,
    rows: LabelData,
    folder: Path,
    device: torch.device,
    advance: Callable[[int], None],
    batch: int = 64,
) -> Store:
    """Writes the store of the tokens before the last `before_last` layers of both towers.

    The folder appears when it is complete.

    Raises:
        ConfigError: a tower whose layers cannot be called one by one, or that has fewer layers.
        DataError, PictureError: a row lacks something, or a picture cannot be decoded.
    """
    check_depth(vision, text, before_last)
    vision, text = vision.to(device).eval(), text.to(device).eval()
    longest = longest_text(rows)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for places in rows.plan(batch, None):
            yield _lower(vision, text, before_last, rows.batch(places, None).to(device), longest)

    entries = expected_entries(vision, text, before_last, rows)
    return write_store(folder, [str(place) for place in rows.places.tolist()], entries, chunks(), advance)


def check_depth(vision: nn.Module, text: nn.Module, before_last: int) -> None:
    """Raises ConfigError for a tower whose layers cannot be called one by one, or that has fewer layers."""
    for tower in (vision, text):
        if not tower.appendable or tower.depth < before_last:
            found = f"a {type(tower).__name__} of {tower.depth} layers"
            raise ConfigError(
                f"tokens before the last {before_last} layers were asked for, of {found}: use a ViT and a "
                "BERT that have them"
            )


def longest_text(rows: LabelData) -> int:
    """Tokens of the longest text, its two marks included."""
    lengths = (
        len(rows.vocabulary.encode(rows.table.read(int(place)).text)[: rows.max_words])
        for place in rows.places
    )
    return max(lengths, default=0) + 2


def _lower(
    vision: nn.Module, text: nn.Module, before_last: int, batch: LabelBatch, longest: int
) -> dict[str, np.ndarray]:
    """The fields of a store for one batch."""
    image_BNC = picture_tokens(vision, before_last, batch.pixels_and_ids()[0])
    return {"image": image_BNC, **text_fields(text, before_last, batch, longest)}


# Inference mode is set here and not around the moves of the towers, which may be trained afterwards.


@torch.inference_mode()
def picture_tokens(vision: nn.Module, before_last: int, pixels_B3HW: Tensor) -> np.ndarray:
    """(B, N, C) before the last layers, fp16."""
    image_BNC, _ = vision.embed(pixels_B3HW)
    image_BNC = run_layers(vision.layers, image_BNC, None, 0, vision.depth - before_last)
    return image_BNC.half().cpu().numpy()


@torch.inference_mode()
def text_fields(text: nn.Module, before_last: int, batch: LabelBatch, longest: int) -> dict[str, np.ndarray]:
    """What the store holds of the texts of a batch: tokens before the last layers, fp16, and how many."""
    assert batch.ids_BL is not None  # the rows are those of a table
    text_BLC, mask_BL = text.embed(batch.ids_BL, batch.mask_BL)
    text_BLC = run_layers(text.layers, text_BLC, mask_BL, 0, text.depth - before_last)
    text_BLC = nn.functional.pad(text_BLC, (0, 0, 0, longest - text_BLC.shape[1]))
    lengths_B = torch.zeros(len(batch.ids_BL)) if batch.mask_BL is None else batch.mask_BL.sum(1)
    return {
        "text": text_BLC.half().cpu().numpy(),
        "length": lengths_B.to(torch.int32).cpu().numpy(),
    }
