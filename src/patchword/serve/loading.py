"""What a service offers, from the names of its models and its index: each model does what its folder says it
was trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI

from patchword.errors import ConfigError
from patchword.search.index import names_milvus, open_index
from patchword.serve.app import create_app
from patchword.serve.asking import QuestionAnswerer
from patchword.serve.limits import Limits
from patchword.serve.searching import IndexSearch, TowerLabels
from patchword.tasks.answer.any_picture import load_any
from patchword.tasks.caption.load import load
from patchword.tasks.paint.model import PaintingModel, load_painter
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.table import task_of


class _Kind(NamedTuple):
    """Models of which the service takes one at most."""

    name: str
    load: Callable[[str, str | None], Any]


_ONE_OF_EACH = {
    "retrieve": _Kind("two-tower", load_two_towers),
    "answer": _Kind("question-answering", load_any),
    "paint": _Kind("painting", load_painter),
}
"""By task; models of all others are captioners to choose from."""


class ShippedNames(NamedTuple):
    """Names of the shipped models."""

    captioner: str
    towers: str
    answerer: str | None
    """None: for photographs and drawings the shipped models of each."""


class Offer(NamedTuple):
    """The arguments of `create_app`."""

    models: dict[str, Any]
    pictures: IndexSearch | None
    """The index that is searched."""
    answers: QuestionAnswerer
    labels: TowerLabels
    painter: PaintingModel | None = None


def load_all(names: Sequence[str], index: Path | None, shipped: ShippedNames, device: str | None) -> Offer:
    """Load each model of `names` and open the index; of what nobody named, and what the index does not bring
    along, the shipped one.

    Raises:
        ModelError: what a name stands for cannot be had.
        ConfigError: two captioning models of the same name, or two that label, answer or paint.
    """
    models: dict[str, Any] = {}
    single: dict[str, list[Any]] = {task: [] for task in _ONE_OF_EACH}
    for name in names:
        task = task_of(name)
        if task in _ONE_OF_EACH:
            single[task].append(_ONE_OF_EACH[task].load(name, device))
            continue
        # A client is shown the last part of a folder's name, not where the folder lies.
        shown = Path(name).name or name
        if shown in models:
            raise ConfigError(f"two of the models have the name {shown!r}: rename a folder")
        models[shown] = load(name, device)
    for task, found in single.items():
        if len(found) > 1:
            raise ConfigError(
                f"{len(found)} {_ONE_OF_EACH[task].name} models were named, and the service takes one: "
                "leave the others out"
            )
    labelling, answering, painting = single.values()
    if not models:
        models[shipped.captioner] = load(shipped.captioner, device)
    search = None
    if index is not None and names_milvus(index):
        raise ConfigError(f"--index {index}: the service shows small copies, which only a folder keeps")
    if index is not None:
        with open_index(index) as named:
            searching = load_two_towers(named.name, device)
        search = IndexSearch(open_index(index, searching.identity), searching)
        labelling.append(searching)
    labels = TowerLabels(labelling[0] if labelling else load_two_towers(shipped.towers, device))
    answerer = answering[0] if answering else load_any(shipped.answerer, device)
    return Offer(models, search, answerer, labels, painting[0] if painting else None)


def app_of(
    names: Sequence[str],
    index: str | None,
    shipped: Sequence[str | None],
    device: str | None,
    token: str | None,
    limits: Limits,
) -> FastAPI:
    """The application with its models; raises as `load_all` does. `shipped` are the fields of
    `ShippedNames`."""
    captioner, towers, answerer = shipped
    known = ShippedNames(str(captioner), str(towers), answerer)
    offer = load_all(names, None if index is None else Path(index), known, device)
    return create_app(
        offer.models,
        index=offer.pictures,
        answers=offer.answers,
        labels=offer.labels,
        painter=offer.painter,
        token=token,
        limits=limits,
    )
