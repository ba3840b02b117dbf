"""Training a few-shot model: its recipe. The loss on documents that were not trained on selects it.

documents -> vocabulary -> ids with pictures -> tower, resampler, gated blocks -> model folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import find_model, restore_weights
from patchword.checkpoints.towers import load_tower_weights
from patchword.composed import build_tower, reader_preprocessing
from patchword.data.captions import PictureInputs
from patchword.data.formats.interleaved import Document, read_documents
from patchword.data.formats.readers import held_out_by_name, read_captions, split_records
from patchword.data.records import CaptionRecord
from patchword.errors import ConfigError, counted
from patchword.files import text_digest
from patchword.tasks.interleave.composed import FewShotModule, InterleaveObjective, without_gradient
from patchword.tasks.interleave.data import DocumentBatch, Documents, encode, from_captions, plan
from patchword.tasks.interleave.model import FewShotModel, FewShotSettings, Shot
from patchword.tasks.interleave.settings import DocumentSettings, InterleaveRun
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.train.data import DataSettings, hold_out, pixel_inputs, stored_inputs
from patchword.train.recipe import Recipe, Validation

_AT_ONCE = 32
_BLIND = 1000.0
"""What is taken from the score of stages without pictures."""


class Splits:
    """Documents to train on and to select with; of captioned pictures they are made anew for every epoch."""

    def __init__(self, data: DocumentSettings) -> None:
        self._data, path = data, Path(data.documents)
        self._records: list[CaptionRecord] = []
        if path.is_dir() or path.suffix.lower() in (".jsonl", ".ndjson"):
            train, self.selection = _split(read_documents(path), data)
        else:
            records = read_captions(path)
            self._records = split_records(records, "train")
            chosen = split_records(records, "val")
            if data.held_out:
                kept, aside = hold_out(len(self._records), data.held_out, "training pictures")
                chosen = [self._records[place] for place in aside]
                self._records = [self._records[place] for place in kept]
            train = from_captions(self._records, data.pictures_per_document, None)
            self.selection = from_captions(chosen, data.pictures_per_document, None)
        self.train = train[: data.limit] if data.limit else train
        if not self.train or not self.selection:
            raise ConfigError(
                f"{path}: {counted(len(self.train), 'document')} to train on and "
                f"{len(self.selection)} to select with; "
                "both are needed"
            )

    def epoch(self, generator: np.random.Generator) -> list[Document]:
        """The training documents of an epoch."""
        if not self._records:
            return self.train
        made = from_captions(self._records, self._data.pictures_per_document, generator)
        return made[: self._data.limit] if self._data.limit else made

    @property
    def texts(self) -> list[str]:
        """All training texts, for the vocabulary."""
        if self._records:
            return [caption for record in self._records for caption in record.captions]
        return [part.text for document in self.train for part in document.parts if part.text is not None]

    @property
    def files(self) -> list[str]:
        """Every picture once."""
        named = [file for one in (*self.train, *self.selection) for file in one.images]
        return list(dict.fromkeys([*(record.file for record in self._records), *named]))


def _split(documents: list[Document], data: DocumentSettings) -> tuple[list[Document], list[Document]]:
    if all(one.split is None for one in documents):
        documents = [
            one._replace(split="val" if held_out_by_name(one.name) else "train") for one in documents
        ]
    train = [one for one in documents if one.split == "train"]
    if not data.held_out:
        return train, [one for one in documents if one.split == "val"]
    kept, aside = hold_out(len(train), data.held_out, "training documents")
    return [train[place] for place in kept], [train[place] for place in aside]


class InterleaveTraining:
    """Model and documents of a run, and what its stages do with them."""

    def __init__(self, run: InterleaveRun, folder: Path, command: str) -> None:
        self.run, data = run, run.data
        self.splits = Splits(data)
        self.vocabulary: Any = (
            Vocabulary.build(self.splits.texts, data.minimum_count)
            if data.tokenizer is None
            else Subwords.from_folder(data.tokenizer)
        )
        torch.manual_seed(run.seed)
        language = _with_vocabulary(run, self.vocabulary.size)
        tower = build_tower(run.tower)
        if run.tower_from:
            load_tower_weights(tower, find_model(run.tower_from))
        self.model = FewShotModule.over(tower, language, run.flamingo)
        if self.model.flamingo.language.vocabulary_size < self.vocabulary.size:
            raise ConfigError(
                f"the tokenizer has {self.vocabulary.size} tokens and the language model "
                f"{self.model.flamingo.language.vocabulary_size}: they do not belong together"
            )
        if data.max_tokens > self.model.flamingo.language.max_length:
            raise ConfigError(
                f"data.max_tokens is {data.max_tokens} and the language model reads "
                f"{self.model.flamingo.language.max_length}: make them fit"
            )
        preprocessing = reader_preprocessing(tower.preprocessing)
        pictures = DataSettings(
            annotations="", images=data.images, cache=data.cache, pixel_size=data.pixel_size
        )
        self.inputs: PictureInputs = (
            pixel_inputs(pictures, preprocessing, self.splits.files)
            if data.features is None
            else stored_inputs(Path(data.features), tower, preprocessing, run.stage)
        )
        self.selection = self._encoded(self.splits.selection)
        self.settings = FewShotSettings(
            tower=run.tower,
            language=language,
            flamingo=run.flamingo,
            preprocessing=preprocessing,
            vocabulary_size=self.vocabulary.size,
            max_tokens=data.max_tokens,
        )
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or f"A few-shot model over a {run.tower.kind} tower and a frozen language model, trained with "
            "Patchword.",
            dataset=f"{Path(data.documents).name}: {len(self.splits.train)} training documents, "
            f"selected on {len(self.splits.selection)} others",
            licence=run.licence or "not stated",
            command=command,
        )
        self._epoch: tuple[tuple[int, int], Documents] | None = None

    def _encoded(self, documents: list[Document]) -> Documents:
        data = self.run.data
        rows = [encode(one, self.vocabulary, data.max_tokens, data.max_pictures) for one in documents]
        return Documents(tuple(rows), self.vocabulary.special.pad, self.inputs)

    def _documents(self, stage: int, epoch: int) -> Documents:
        """The documents of an epoch, which follow from the seed, stage and epoch alone."""
        if self._epoch is None or self._epoch[0] != (stage, epoch):
            generator = np.random.default_rng([self.run.seed, stage, epoch, 1])
            self._epoch = (stage, epoch), self._encoded(self.splits.epoch(generator))
        return self._epoch[1]

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as places of documents."""
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        return plan(len(self._documents(stage, epoch).rows), self.run.stage[stage].batch, generator)

    def batch(self, stage: int, entries: list[int], generator: torch.Generator) -> DocumentBatch:
        """Documents with their pictures; those of the epoch whose plan was asked for last."""
        if self._epoch is None:
            raise ConfigError("a batch was asked for before the plan of its epoch")
        return self._epoch[1].batch(entries, generator)

    def objective(self, stage: int) -> nn.Module:
        """The cross-entropy of the texts, with or without pictures."""
        return InterleaveObjective(self.model, self.run.stage[stage].pictures)

    def whole(self) -> FewShotModel:
        """The model as a person uses it."""
        device = next(self.model.parameters()).device
        return FewShotModel(self.model, self.settings, self.vocabulary, self.facts, device)

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """The loss per token on documents set aside selects; how often the last text is said exactly, after
        so many shots, is logged."""
        objective = InterleaveObjective(self.model, self.run.stage[stage].pictures)
        total, count = 0.0, 0
        for entries in plan(len(self.selection.rows), _AT_ONCE, None):
            found = without_gradient(objective, self.selection.batch(entries, None).to(accelerator.device))
            total, count = total + found[0], count + found[1]
        loss = total / max(1, count)
        scores = {"loss": loss}
        if self.run.stage[stage].pictures and self.run.asked:
            asked = self.splits.selection[: self.run.asked]
            for shots in self.run.shots:
                exact = exactly_said(self.whole(), asked, Path(self.run.data.images), shots)
                if exact is not None:
                    scores[f"exact_{shots}"] = exact
        told = "".join(f"{name} {value:.3f}, " for name, value in scores.items() if name != "loss")
        if self.run.stage[stage].pictures:
            return Validation(-loss, {"scores": scores}, loss, f"{told}minus loss")
        # A model that looks at pictures is always better than one that does not yet.
        return Validation(-loss - _BLIND, {"scores": scores}, loss, f"minus loss (minus {_BLIND:.0f}: blind)")

    def load(self, folder: Path) -> None:
        """The weights of a model folder into the model."""
        restore_weights(self.model, folder, None)


def exactly_said(model: FewShotModel, documents: list[Document], images: Path, shots: int) -> float | None:
    """Share of the documents whose last text is said word by word after `shots` earlier pictures with their
    texts; None where no document has so many."""
    right = asked = 0
    for document in documents:
        pairs = captioned(document)
        if len(pairs) <= shots:
            continue
        *earlier, (file, text) = pairs[len(pairs) - shots - 1 :]
        said = model.ask(images / file, "", [Shot(images / name, words) for name, words in earlier])
        expected = model.vocabulary.decode(model.vocabulary.encode(text))
        right, asked = right + (said == [expected]), asked + 1
    return right / asked if asked else None


def captioned(document: Document) -> list[tuple[str, str]]:
    """Pictures directly followed by a text."""
    pairs = zip(document.parts, document.parts[1:], strict=False)
    return [(one.image, two.text) for one, two in pairs if one.image and two.text]


def _with_vocabulary(run: InterleaveRun, size: int) -> Any:
    """A language model with random weights gets the size of the vocabulary and room for a document."""
    if run.language.architecture is None:
        return run.language
    sizes = {"vocab_size": size, "max_position_embeddings": max(2 * run.data.max_tokens, 64)}
    fields = {**run.language.architecture, **sizes}
    if fields.get("model_type") == "gpt2":
        fields["n_positions"] = fields.pop("max_position_embeddings")
    return run.language.model_copy(update={"architecture": fields})


def interleave_recipe(run: InterleaveRun, folder: Path, command: str) -> Recipe:
    """The training of a few-shot model, ready for its first step.

    Raises ConfigError, DataError, ModelError.
    """
    training = InterleaveTraining(run, folder, command)
    texts = "\n".join(map(repr, (*training.splits.train, *training.splits.selection)))
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=lambda target: training.whole().write(target),
        load=training.load,
        validate=training.validate,
        names=lambda batch: list(batch.names),
        facts={
            "documents": len(training.splits.train),
            "words": training.vocabulary.size,
            "digest of the documents": text_digest(texts),
        },
    )
