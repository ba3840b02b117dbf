"""Training a painter on drawn scenes or on captioned pictures: its recipe.

The running average of the weights is what is validated, drawn with and saved; the weights that the optimiser
moves are part of a run's state, so that a resumed run goes the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.composed import build_text_tower
from patchword.data.captions import CaptionBatch, CaptionData, PictureInputs, PlanEntry
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord
from patchword.data.scenes.pictures import scene_data
from patchword.errors import counted
from patchword.files import write_bytes
from patchword.lookup import look_up
from patchword.tasks.paint.families import IN_A_SPACE, Wish
from patchword.tasks.paint.model import PaintingModel, build_paint_model, to_pixels
from patchword.tasks.paint.settings import PaintingSettings, PaintRun
from patchword.tasks.paint.sheet import png_of, sheet
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel
from patchword.text.words import Vocabulary
from patchword.train.average import Average
from patchword.train.data import build_vocabulary, data_facts, pixel_inputs, read_splits, with_vocabulary
from patchword.train.recipe import Recipe, Validation
from patchword.train.step import Shares

SHEETS = "sheets"
"""Folder of a run in which every validation leaves a sheet of samples."""
VALIDATED_AT_ONCE = 64
MEASURED = 64
"""Training pictures by which the scale of latents is measured."""


def paint_recipe(run: PaintRun, folder: Path, command: str) -> Recipe:
    """The training of a painter, ready for its first step. Raises ConfigError, DataError, ModelError."""
    training = PaintTraining(run, folder, command)
    family = training.painting.family
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=lambda stage, entries, generator: training.train.batch(entries, generator),
        objective=lambda stage: family.objective(training.model, training.special, run.stage[stage]),
        save=training.save,
        load=training.load,
        validate=training.validate,
        optimisers=family.optimisers,
        step=family.step,
        after_step=training.after_step,
        state=lambda: training.average.state(training.model),
        load_state=lambda tensors: training.average.load_state(training.model, tensors),
        facts=data_facts(training.train.records, training.selection.records, training.painting.vocabulary),
    )


class PaintTraining:
    """Model and data of a run, and what its stages do with them."""

    def __init__(self, run: PaintRun, folder: Path, command: str) -> None:
        self.run, self.folder = run, folder
        codec = (
            None
            if run.codec is None
            else look_up("tasks.paint.latents:LatentCodec").from_pretrained(run.codec)
        )
        painter: Any = run.painter
        size = int(painter.size) * (1 if codec is None else codec.factor)
        train, selection, inputs, dataset = _data(run, size)
        source = run.scenes if run.data is None else run.data
        assert source is not None  # the configuration has one of them
        max_words = source.max_words
        torch.manual_seed(run.seed)
        vocabulary, text_settings, tower, towers = _text(run, train, max_words)
        if codec is not None:
            codec.check(painter.channels)
            measured = inputs.load([record.file for record in train[:MEASURED]], None).pixels_B3HW
            assert measured is not None  # these inputs are pixels
            codec.measure(measured)
        settings = PaintingSettings(
            codec=None if codec is None else codec.settings,
            text=text_settings,
            towers=None if towers is None else towers.settings,
            painter=run.painter,
            vocabulary_size=vocabulary.size,
            max_words=max_words,
            drawn_world=run.scenes is not None,
        )
        self.model = build_paint_model(settings, tower, None if towers is None else towers.model, codec)
        self.average = Average(self.model, run.average)
        facts = ModelFacts(
            name=folder.name,
            description=run.description
            or f"A {run.painter.kind} that paints from text, trained with Patchword.",
            dataset=dataset,
            licence=run.licence or "not stated",
            command=command,
            limits=_limits(run, vocabulary),
        )
        self.painting = PaintingModel(self.average.model, settings, vocabulary, facts, torch.device("cpu"))
        self.special = vocabulary.special
        self.train = CaptionData.build(train, vocabulary, inputs, max_words)
        self.selection = CaptionData.build(selection, vocabulary, inputs, max_words)

    def plan(self, stage: int, epoch: int) -> list[list[PlanEntry]]:
        """The batches of an epoch: every picture once, with one of its captions; a short last batch is left
        out."""
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        batches = self.train.plan(self.run.stage[stage].batch, 1, False, generator)
        return batches if len(batches) == 1 or len(batches[-1]) == len(batches[0]) else batches[:-1]

    def after_step(self, step: int, objective: nn.Module) -> dict[str, float]:
        """The running average takes in the weights."""
        self.average.update(self.model, step)
        return {}

    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """The loss of the averaged weights on pictures that were not trained on, at fixed times and noise,
        selects, for a family whose loss says which model is best; of others the last one is kept. A sheet of
        samples is written beside it."""
        device = accelerator.device
        self._move(device)
        if not self.painting.family.selects:
            if self.run.sheet and accelerator.is_main_process:
                self._draw_sheet(stage, epoch)
            trained = sum(one.epochs for one in self.run.stage[:stage]) + epoch + 1
            return Validation(float(trained), {}, None, "epochs")
        objective = self.painting.family.objective(self.average.model, self.special, self.run.stage[stage])
        objective.eval()
        found: dict[str, float] = {}
        for place, batch in enumerate(self._selected()):
            with torch.random.fork_rng(devices=[]), torch.inference_mode():
                torch.manual_seed(place)
                shares = Shares(len(self.selection.records), len(self.selection.records), 1.0)
                for name, value in objective(batch.to(device), shares).items():
                    found[name] = found.get(name, 0.0) + float(value)
        if self.run.sheet and accelerator.is_main_process:
            self._draw_sheet(stage, epoch)
        return Validation(-found["loss"], {"scores": found}, found["loss"], "minus the loss")

    def _selected(self) -> list[CaptionBatch]:
        plan = self.selection.plan(VALIDATED_AT_ONCE, 1, False, None)
        return [self.selection.batch(entries, None) for entries in plan]

    def _draw_sheet(self, stage: int, epoch: int) -> None:
        """Samples of the first different captions of the selection, always with the same seeds."""
        first = {record.captions[0]: record for record in self.selection.records}
        texts = list(first)[: self.run.sheet]
        small = None
        side = getattr(self.run.painter, "small_size", None)
        if side is not None:  # what it enlarges is then a picture of the selection
            files = [first[text].file for text in texts]
            whole = self.selection.inputs.load(files, None).pixels_B3HW
            assert whole is not None  # these inputs are pixels
            whole = whole.to(self.painting.device)
            small = torch.nn.functional.interpolate(whole, (side, side), mode="area")
        pixels = to_pixels(self.painting.draw(texts, Wish(range(len(texts)), small=small)))
        name = f"{stage + 1}-{self.run.stage[stage].name}-epoch-{epoch + 1:04d}.png"
        (self.folder / SHEETS).mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / SHEETS / name, png_of(sheet(pixels, texts)))

    def save(self, folder: Path) -> None:
        """The averaged model as a person uses it."""
        self.painting.write(folder)

    def load(self, source: Path) -> None:
        """Weights of a folder into the averaged and the trained model; a resumed run then gets its own."""
        for model in (self.average.model, self.model):
            checkpoint.load_weights(model, source)

    def _move(self, device: torch.device) -> None:
        self.average.model.to(device)
        self.painting.device = device


def _data(
    run: PaintRun, size: int
) -> tuple[Sequence[CaptionRecord], Sequence[CaptionRecord], PictureInputs, str]:
    """Records that are trained on and that select, where their pixels come from, and what the card calls
    it."""
    if run.scenes is not None:
        records, drawn = scene_data(run.scenes, size)
        levels = " and ".join(map(str, run.scenes.levels))
        said = (
            f"drawn scenes of level {levels}: {len(records['train'])} trained on, "
            f"{len(records['val'])} others"
        )
        return records["train"], records["val"], drawn, f"{said} to select"
    assert run.data is not None  # the configuration has one of them
    train, selection = read_splits(run.data)
    preprocessing = Preprocessing(
        size=size, fit="short_side_center_crop", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    files = [record.file for record in (*train, *selection)]
    said = (
        f"{Path(run.data.annotations).name}: {len(train)} training pictures, selected on "
        f"{len(selection)} others"
    )
    return train, selection, pixel_inputs(run.data, preprocessing, files), said


def _text(
    run: PaintRun, train: Sequence[CaptionRecord], max_words: int
) -> tuple[Any, Any, nn.Module | None, TwoTowerModel | None]:
    """Vocabulary, and what reads the texts: settings of a text tower and the tower (a new one, or the frozen
    one of two towers), for a painter that works in their space the two towers, and nothing for one that reads
    the words itself."""
    if run.text_from is not None:
        found = load_two_towers(run.text_from, "cpu")
        if run.painter.kind in IN_A_SPACE:
            return found.vocabulary, None, None, found
        settings: Any = found.settings.text.model_copy(update={"trainable_from": None})
        return found.vocabulary, settings, found.model.text.requires_grad_(False), None
    if run.data is not None:
        vocabulary = build_vocabulary(run.data, list(train), run.text)
    else:
        vocabulary = Vocabulary.build((caption for record in train for caption in record.captions), 1)
    if run.text is None:
        return vocabulary, None, None, None
    settings = with_vocabulary(run.text, vocabulary, max_words)
    return vocabulary, settings, build_text_tower(settings), None


def _limits(run: PaintRun, vocabulary: Any) -> str:
    """What the card says that the model cannot do."""
    if run.scenes is None:
        return "It paints what its training captions named, and repeats what they took for granted."
    words = sorted(getattr(vocabulary, "words", ()))
    known = (
        f" and {counted(len(words), 'word')}, and nothing of the world: {', '.join(words)}." if words else "."
    )
    return f"It knows flat shapes on plain grounds{known}"
