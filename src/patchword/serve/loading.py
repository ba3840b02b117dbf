"""What a service offers, from the names of its models and its index: each model does what its folder says it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchword import checkpoint
from patchword.data.index import open_index
from patchword.errors import ConfigError
from patchword.serve.searching import IndexSearch, TowerLabels
from patchword.tasks.caption import find_model, load
from patchword.tasks.retrieve import load_two_towers


class Offer(NamedTuple):
    """The arguments of `create_app`."""

    models: dict[str, Any]
    index: IndexSearch | None
    labels: TowerLabels


def load_all(names: Sequence[str], index: Path | None, captioner: str, towers: str, device: str | None) -> Offer:
    """Load each model of `names` and open the index; where no captioning model is named, `captioner` is taken, and where nothing is that
    can label, neither a two-tower model nor an index with one, `towers`.

    Raises:
        ModelError: what a name stands for cannot be had.
        ConfigError: two models of the same name, or two that label.
    """
    models, labelling = {}, []
    for name in names:
        if not name.startswith("hub:") and checkpoint.read_config(find_model(name)).get("task") == "retrieve":
            labelling.append(load_two_towers(name, device))
            continue
        shown = Path(name).name or name  # a client is shown the last part of a folder's name, not where the folder lies
        if shown in models:
            raise ConfigError(f"two of the models have the name {shown!r}: rename a folder")
        models[shown] = load(name, device)
    if len(labelling) > 1:
        raise ConfigError(f"{len(labelling)} two-tower models were named, and one labels pictures: leave the others out")
    if not models:
        models[captioner] = load(captioner, device)
    search = None
    if index is not None:
        with open_index(index) as named:
            searching = load_two_towers(named.name, device)
        search = IndexSearch(open_index(index, searching.identity), searching)
        labelling.append(searching)
    return Offer(models, search, TowerLabels(labelling[0] if labelling else load_two_towers(towers, device)))
