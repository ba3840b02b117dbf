"""Training captions in the text space of the two-tower model that owns the captioner's vision tower.

They are embedded once and kept in memory: captions -> vocabulary and text tower -> unit vectors in fp16 (1
KiB per caption at width 512).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from patchword.checkpoints.folder import tower_id
from patchword.data.records import CaptionRecord
from patchword.errors import ConfigError
from patchword.log import progress
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel

_AT_ONCE = 1024


def text_towers(name: str, tower: str) -> TwoTowerModel:
    """Loads the two-tower model `name` on the CPU.

    Raises ConfigError where its vision tower is not `tower`, that of the codebook.
    """
    towers = load_two_towers(name, "cpu")
    found = tower_id(towers.model.vision)
    if found != tower:
        raise ConfigError(
            f"text_from names {name}, whose vision tower is {found!r}, and the codebook's is {tower!r}: its "
            "text space is another; "
            "name the two-tower model that tower and codebook were taken from"
        )
    return towers


def embed_captions(
    towers: TwoTowerModel, records: Sequence[CaptionRecord], device: torch.device
) -> tuple[np.ndarray, ...]:
    """Returns for each record the vectors of its captions, (captions, E) fp16.

    A caption without a word that the text tower knows becomes zeros; a loss against it has no gradient.
    """
    towers.model.to(device)
    towers.device = device
    captions = [caption for record in records for caption in record.captions]
    vectors_NE = np.zeros((len(captions), towers.settings.two_towers.width), dtype=np.float16)
    known = [row for row, caption in enumerate(captions) if towers.knows(caption)]
    with progress() as bar:
        task = bar.add_task("embedding captions", total=len(known), status="")
        for first in range(0, len(known), _AT_ONCE):
            rows = known[first : first + _AT_ONCE]
            vectors_NE[rows] = towers.embed_texts([captions[row] for row in rows])
            bar.update(task, advance=len(rows))
    ends = np.cumsum([len(record.captions) for record in records])[:-1]
    return tuple(np.split(vectors_NE, ends))
