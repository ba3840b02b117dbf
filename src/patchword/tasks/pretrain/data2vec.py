"""Pre-training by data2vec: its recipe. Nothing selects the model: the last one is the result.

pictures or texts -> gaps -> student and teacher -> tower -> model folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import find_model
from patchword.checkpoints.towers import load_tower_weights
from patchword.composed import build_text_tower, build_tower, reader_preprocessing
from patchword.errors import ConfigError, counted
from patchword.files import text_digest
from patchword.models.pretraining.data2vec import (
    Data2Vec,
    Data2VecConfig,
    Prediction,
    deviation,
    explained,
    regression_loss,
)
from patchword.tasks.pretrain.data import (
    GapBatch,
    Gaps,
    PictureGaps,
    TextGaps,
    picture_files,
    places,
    plan,
    text_lines,
)
from patchword.tasks.pretrain.model import PretrainedSettings, PretrainedTower
from patchword.tasks.pretrain.settings import PretrainRun
from patchword.text.words import Vocabulary
from patchword.train.data import DataSettings, pixel_inputs, with_vocabulary
from patchword.train.recipe import Recipe, Validation
from patchword.train.step import Shares

COLLAPSED = 0.1
"""A deviation of the targets below this is told: the teacher says nearly the same of everything."""
_AT_ONCE = 64


class Data2VecObjective(nn.Module):
    """The regression of the targets, and what tells a collapse."""

    def __init__(self, model: Data2Vec) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: GapBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"; "target_deviation" falls towards 0 in a collapse."""
        prediction = self.model(batch.inputs, batch.hidden_BT)
        loss = regression_loss(prediction, self.model.config.beta) / shares.targets
        return {"loss": loss, "target_deviation": deviation(prediction.target_PC)}


class Data2VecTraining:
    """Model and data of a run, and what its stages do with them."""

    def __init__(self, run: PretrainRun, folder: Path, command: str) -> None:
        if run.data.annotations is not None:
            raise ConfigError(
                "data2vec reads pictures or texts alone: give data.pictures or data.texts in place of "
                "data.annotations"
            )
        self.run, self.config = run, cast(Data2VecConfig, run.model)
        self.notes: list[str] = []
        reads_pictures = run.data.pictures is not None
        self._vocabulary: Vocabulary | None = None
        tower: Any
        self.gaps, tower, settings = self._pictures() if reads_pictures else self._texts()
        self.settings = settings
        torch.manual_seed(run.seed)
        self.model = Data2Vec(self.config, tower)
        what = "pictures" if reads_pictures else "texts"
        self.learnt, self.aside = places(len(self.gaps.names), run.data, what)
        source = Path(str(run.data.pictures or run.data.texts)).name
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or f"A {type(tower).__name__} pre-trained by data2vec with Patchword, without labels.",
            dataset=f"{source}: {len(self.learnt)} {what} without labels, "
            f"watched on {len(self.aside)} others",
            licence=run.licence or "not stated",
            command=command,
        )

    def _pictures(self) -> tuple[Gaps, nn.Module, PretrainedSettings]:
        run = self.run
        if run.tower is None:
            raise ConfigError("data.pictures are read by a picture tower: add a [tower] section")
        torch.manual_seed(run.seed)
        tower = build_tower(run.tower)
        _must_learn(tower, "tower")
        if run.tower_from:
            load_tower_weights(tower, find_model(run.tower_from))
        preprocessing = reader_preprocessing(tower.preprocessing)
        files = picture_files(run.data)
        data = DataSettings(
            annotations="",
            images=str(run.data.pictures),
            cache=run.data.cache,
            pixel_size=run.data.pixel_size,
            augmentation=run.data.augmentation,
        )
        pixels = pixel_inputs(data, preprocessing, files)
        gaps = PictureGaps(tuple(files), pixels, tower.hw, self.config.share, self.config.smallest_block)
        return gaps, tower, PretrainedSettings(tower=run.tower, preprocessing=preprocessing)

    def _texts(self) -> tuple[Gaps, nn.Module, PretrainedSettings]:
        run = self.run
        if run.text is None:
            raise ConfigError("data.texts are read by a text tower: add a [text] section")
        lines = text_lines(run.data)
        vocabulary = Vocabulary.build([text for _, text in lines], run.data.minimum_count)
        text = with_vocabulary(run.text, vocabulary, run.data.max_words)
        torch.manual_seed(run.seed)
        tower = build_text_tower(text)
        _must_learn(tower, "text")
        rows = tuple(tuple(vocabulary.encode(line)[: run.data.max_words]) for _, line in lines)
        kept = [place for place, row in enumerate(rows) if row]
        if len(kept) < len(rows):
            self.notes.append(f"{counted(len(rows) - len(kept), 'line')} without a word left out")
        names = tuple(lines[place][0] for place in kept)
        read = tuple(rows[place] for place in kept)
        self._vocabulary = vocabulary
        gaps = TextGaps(names, read, vocabulary.special, self.config.share, self.config.span)
        sizes = {"vocabulary_size": vocabulary.size, "max_words": run.data.max_words}
        return gaps, tower, PretrainedSettings(text=text, **sizes)

    def objective(self, stage: int) -> nn.Module:
        """The same in every stage."""
        return Data2VecObjective(self.model)

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as places of pictures or texts."""
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        return plan(self.learnt, self.run.stage[stage].batch, generator)

    def batch(self, stage: int, entries: list[int], generator: torch.Generator) -> GapBatch:
        """Pictures or texts with gaps."""
        return self.gaps.batch(entries, generator, views=True)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """What the student explains of the targets set aside, and how much these differ; the last model is
        kept, because neither number tells how good the tower is."""
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        parts = []
        for entries in plan(self.aside, _AT_ONCE, None):
            batch = self.gaps.batch(entries, generator, views=False).to(accelerator.device)
            parts.append(self.model(batch.inputs, batch.hidden_BT))
        whole = Prediction(*(torch.cat(rows) for rows in zip(*parts, strict=True)))
        spread = float(deviation(whole.target_PC))
        scores = {"explained": float(explained(whole)), "target_deviation": spread}
        event: dict[str, Any] = {"scores": scores, "collapsed": spread < COLLAPSED}
        loss = float(regression_loss(whole, self.config.beta)) / len(whole.target_PC)
        told = " (COLLAPSED: targets hardly differ; raise the decay, or normalise)"
        measure = f"explained {scores['explained']:.3f}, target deviation {spread:.3f}"
        passed = sum(one.epochs for one in self.run.stage[:stage]) + epoch + 1
        return Validation(passed, event, loss, f"{measure}{told if spread < COLLAPSED else ''}; epochs done")

    def after_step(self, step: int, objective: nn.Module) -> dict[str, float]:
        """The teacher follows."""
        self.model.follow(step)
        return {"decay": self.model.decay(step)}

    def save(self, folder: Path) -> None:
        """The tower, as other tasks take it; teacher, head and mark are left out."""
        device = next(self.model.parameters()).device
        PretrainedTower(self.model.tower, self.settings, self._vocabulary, self.facts, device).write(folder)

    def load(self, folder: Path) -> None:
        """The tower of a model folder into the student."""
        checkpoint.load_weights(self.model.tower, folder, "tower." if self.settings.tower else "text.")

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the tower."""
        return {
            name: value for name, value in self.model.state_dict().items() if not name.startswith("tower.")
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The counterpart of `state`."""
        student = {f"tower.{name}": value for name, value in self.model.tower.state_dict().items()}
        self.model.load_state_dict({**student, **tensors})


def data2vec_recipe(run: PretrainRun, folder: Path, command: str) -> Recipe:
    """The pre-training of a tower, ready for its first step. Raises ConfigError, DataError, ModelError."""
    training = Data2VecTraining(run, folder, command)
    names = training.gaps.names
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=training.save,
        load=training.load,
        validate=training.validate,
        after_step=training.after_step,
        state=training.state,
        load_state=training.load_state,
        names=lambda batch: list(batch.names),
        notes=training.notes,
        facts={"pictures or texts": len(names), "digest of their names": text_digest("\n".join(names))},
    )


def _must_learn(tower: nn.Module, section: str) -> None:
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        raise ConfigError(
            f"the whole tower is frozen and nothing would be learnt: set {section}.trainable_from"
        )
