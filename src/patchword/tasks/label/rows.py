"""The rows that a labelling model is trained and selected on, from pixels or from stored tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchword.data.formats.labels import LabelTable
from patchword.data.labels import LabelBatch, LabelData, TokenInputs
from patchword.data.store import Store, cache_folder, fingerprint
from patchword.errors import ConfigError
from patchword.files import file_digest
from patchword.log import progress
from patchword.tasks.label.settings import LabelSections
from patchword.tasks.label.splits import read_splits
from patchword.tasks.label.tokens import DecodedInputs, expected_entries, store_tokens
from patchword.tasks.label.towers import make_towers
from patchword.train.data import pixel_inputs


class LabelRows:
    """Everything of a run but its model: towers, labels, and the rows of both splits."""

    def __init__(self, run: LabelSections, sides: tuple[bool, bool], before_last: int) -> None:
        """`before_last`: how many of the towers' last layers stored tokens have not passed."""
        self._run, data = run, run.data
        self.before_last = before_last
        table = LabelTable(Path(data.table), data.columns)
        if data.stores_tokens:
            sides = (True, True)  # a store holds both sides, whatever a model reads of it
        splits = read_splits(table, data, sides)
        self.labels, self.table = splits.labels, table
        torch.manual_seed(run.seed)
        self.towers = make_towers(run, table, splits.train)
        self.max_words = min(data.max_words, self.towers.text.max_length - 2)
        self.classes = {label: number for number, label in enumerate(splits.labels)}
        everything = np.sort(np.concatenate([splits.train, splits.selection]))
        inputs: Any = None
        if data.features is not None:
            inputs = DecodedInputs(Path(data.images), self.towers.preprocessing)
        elif sides[0]:
            exact = data.model_copy(update={"pixel_size": None}) if data.stores_tokens else data
            inputs = pixel_inputs(exact, self.towers.preprocessing, splits.files)
        if data.stores_tokens:
            inputs = TokenInputs(self._store(self._rows(everything, inputs, sides)))
        self.train, self.selection = (
            self._rows(splits.train, inputs, sides),
            self._rows(splits.selection, inputs, sides),
        )

    def data_facts(self) -> dict[str, int | str]:
        """What a run was begun with, so that a resumed one can tell whether the table is the same."""
        return {
            "training rows": len(self.train.places),
            "rows that select the model": len(self.selection.places),
            "labels": len(self.labels),
            "digest of the data": file_digest(self.table.path),
        }

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as places of rows."""
        generator = np.random.default_rng([self._run.seed, stage, epoch])
        return self.train.plan(self._run.stage[stage].batch, generator)

    def batch(self, stage: int, entries: list[int], generator: torch.Generator) -> LabelBatch:
        """Rows with their labels."""
        return self.train.batch(entries, generator)

    def _rows(self, places: np.ndarray, inputs: Any, sides: tuple[bool, bool]) -> LabelData:
        data, vocabulary = self._run.data, self.towers.vocabulary
        return LabelData(
            self.table,
            places,
            self.classes,
            vocabulary,
            self.max_words,
            Path(data.images),
            data.missing,
            sides,
            inputs,
        )

    def _store(self, rows: LabelData) -> Store:
        """The store that the configuration names, or the cached one, made where it is not there yet."""
        vision, text = self.towers.vision, self.towers.text
        if any(parameter.requires_grad for tower in (vision, text) for parameter in tower.parameters()):
            raise ConfigError(
                "stored tokens replace the lower layers, and trainable_from lets them learn: "
                "leave one of them out"
            )
        expected = expected_entries(vision, text, self.before_last, rows)
        if self._run.data.features is not None:
            return Store.open(Path(self._run.data.features), expected)
        cache = Path(self._run.data.cache) if self._run.data.cache else cache_folder()
        folder = cache / "tokens" / fingerprint([expected, rows.places.tolist()])[:20]
        if (folder / "manifest.json").exists():
            return Store.open(folder, expected)
        with progress() as bar:
            task = bar.add_task("tokens of both towers", total=len(rows.places), status="")
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            store = store_tokens(
                vision,
                text,
                self.before_last,
                rows,
                folder,
                device,
                lambda count: bar.update(task, advance=count),
            )
        return store
