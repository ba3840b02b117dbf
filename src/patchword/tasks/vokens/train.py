"""Training a vokenizer on pictures with captions: its recipe.

captions -> text tower -> states; pictures -> picture tower -> vectors, once; both -> heads -> hinge
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.isolated import PictureReader
from patchword.data.records import CaptionRecord
from patchword.data.store import MANIFEST, Store, cache_folder, fingerprint, picture_files, write_store
from patchword.errors import DataError, counted
from patchword.files import text_digest
from patchword.log import progress
from patchword.models.pretraining.vokenizer import Vokenizer
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel
from patchword.tasks.vokens.model import VokenModel, VokenSettings, encode, token_states
from patchword.tasks.vokens.settings import VokensRun
from patchword.train.data import hold_out
from patchword.train.recipe import Recipe, Validation
from patchword.train.step import Shares

_BATCH = 16


class VokenBatch(NamedTuple):
    """Captions and their pictures, one of each."""

    ids_BL: Tensor
    real_BL: Tensor
    words_BL: Tensor
    pictures_BE: Tensor
    image_ids: tuple[int | str, ...]

    @property
    def target_count(self) -> int:
        """Words."""
        return int(self.words_BL.sum())

    @property
    def picture_count(self) -> int:
        """Pictures."""
        return len(self.pictures_BE)

    def to(self, device: torch.device) -> VokenBatch:
        """The same batch on a device."""
        return VokenBatch(
            self.ids_BL.to(device),
            self.real_BL.to(device),
            self.words_BL.to(device),
            self.pictures_BE.to(device),
            self.image_ids,
        )


class VokenObjective(nn.Module):
    """The heads over a text tower that stays as it is."""

    def __init__(self, model: Vokenizer, text: nn.Module) -> None:
        super().__init__()
        self.model, self.text = model, text.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VokenObjective:
        """As `nn.Module.train`; the text tower stays in evaluation mode."""
        super().train(mode)
        self.text.eval()
        return self

    def forward(self, batch: VokenBatch, shares: Shares) -> dict[str, Tensor]:
        """The hinge, weighted by the part's share of the words of the step."""
        with torch.no_grad():
            states_BLC = token_states(self.text, batch.ids_BL, batch.real_BL, self.model.config.layers)
        loss = self.model.loss(states_BLC, batch.words_BL, batch.pictures_BE)
        return {"loss": loss * (batch.target_count / shares.targets)}


def picture_vectors(towers: TwoTowerModel, images: Path, files: Sequence[str], cache: Path) -> np.ndarray:
    """What two towers give for pictures, (n, E); made once into the cache. Raises PictureError."""
    key = fingerprint({"towers": towers.identity, "pictures": picture_files(images, files), "what": "shared"})
    folder = cache / "shared" / key[:20]
    if not (folder / MANIFEST).exists():
        with progress() as bar:
            task = bar.add_task("looking at pictures", total=len(files), status="")

            def chunks() -> Iterator[dict[str, np.ndarray]]:
                with PictureReader() as reader:
                    for first in range(0, len(files), _BATCH):
                        names = files[first : first + _BATCH]
                        yield {"shared": towers.embed_images([reader.open(images / name) for name in names])}

            write_store(
                folder, files, {"fingerprint": key}, chunks(), lambda count: bar.update(task, advance=count)
            )
    store = Store.open(folder, {"fingerprint": key})
    return np.array(store.fields["shared"][store.rows(files)])


def vokens_recipe(run: VokensRun, folder: Path, command: str) -> Recipe:
    """The training of a vokenizer, ready for its first step. Raises ConfigError, DataError, ModelError."""
    training = _Training(run, folder, command)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=lambda stage: VokenObjective(training.model, training.towers.model.text),
        save=training.save,
        load=lambda source: checkpoint.load_weights(training.model, source),
        validate=training.validate,
        facts={
            "training records": len(training.train),
            "digest of the data": text_digest("\n".join(map(repr, training.records))),
        },
    )


class _Training:
    """Model and pairs of a run."""

    def __init__(self, run: VokensRun, folder: Path, command: str) -> None:
        self.run, self.towers = run, load_two_towers(run.towers, "cpu")
        records = split_records(read_captions(Path(run.data.annotations)), "train")
        records = [record for record in records if record.captions]
        self.records: list[CaptionRecord] = records[: run.data.limit] if run.data.limit else records
        self.train, self.aside = hold_out(len(self.records), run.data.held_out, "training pictures")
        if len(self.train) < 2:
            raise DataError(
                f"{run.data.annotations}: {counted(len(self.train), 'picture')} to train on, at "
                "least 2 are needed"
            )
        cache = Path(run.data.cache) if run.data.cache else cache_folder()
        files = [record.file for record in self.records]
        vectors_FE = picture_vectors(self.towers, Path(run.data.images), files, cache)
        self.vectors_FE = torch.from_numpy(vectors_FE).float()
        text = self.towers.model.text
        width = text.width * min(run.model.layers, len(text.layers))
        torch.manual_seed(run.seed)
        self.model = Vokenizer(run.model, width, self.vectors_FE.shape[1])
        self.settings = VokenSettings(
            towers=run.towers,
            identity=self.towers.identity,
            model=run.model,
            token_width=width,
            picture_width=self.vectors_FE.shape[1],
        )
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or "Vokenizer: tokens in context to pictures, trained with Patchword.",
            dataset=f"{Path(run.data.annotations).name}: {len(self.train)} training pictures, selected on "
            f"{len(self.aside)} others",
            licence=run.licence or "not stated",
            command=command,
            towers=run.towers,
            trained_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )

    def plan(self, stage: int, epoch: int) -> list[list[tuple[int, int]]]:
        """Batches of different pictures, each with one of its captions; the last ones that fill no batch
        wait."""
        random = np.random.default_rng([self.run.seed, stage, epoch])
        entries = [
            (int(place), int(random.integers(len(self.records[place].captions))))
            for place in random.permutation(self.train)
        ]
        size = self.run.stage[stage].batch
        batches = [entries[first : first + size] for first in range(0, len(entries), size)]
        return batches if len(batches) == 1 or len(batches[-1]) == size else batches[:-1]

    def batch(self, stage: int, entries: Sequence[tuple[int, int]], generator: torch.Generator) -> VokenBatch:
        """Captions as ids, and the vectors of their pictures."""
        texts = [self.records[place].captions[which] for place, which in entries]
        vectors_BE = self.vectors_FE[torch.tensor([place for place, _ in entries])]
        names = tuple(self.records[place].image_id for place, _ in entries)
        return VokenBatch(*encode(self.towers, texts, self.run.data.max_words), vectors_BE, names)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """How often a word of a caption that was set aside fits its own picture better than that of
        another."""
        self.model.eval()
        objective = VokenObjective(self.model, self.towers.model.text).eval()
        right = words = 0.0
        loss = 0.0
        entries = [(int(place), 0) for place in self.aside]
        for first in range(0, len(entries), 64):
            batch = self.batch(stage, entries[first : first + 64], torch.Generator())
            batch = batch.to(accelerator.device)
            states_BLC = token_states(objective.text, batch.ids_BL, batch.real_BL, self.run.model.layers)
            found_BLB = self.model.tokens(states_BLC) @ self.model.pictures(batch.pictures_BE).t()
            own_BL1 = found_BLB[torch.arange(len(found_BLB)), :, torch.arange(len(found_BLB))][..., None]
            share_BL = (found_BLB < own_BL1).sum(-1) / max(1, len(found_BLB) - 1)
            right += float(share_BL[batch.words_BL].sum())
            words += batch.target_count
            loss += float(self.model.loss(states_BLC, batch.words_BL, batch.pictures_BE)) * batch.target_count
        score = right / max(1.0, words)
        return Validation(
            score, {"scores": {"own_picture_first": score}}, loss / max(1.0, words), "own picture first"
        )

    def save(self, folder: Path) -> None:
        """The model as a person uses it."""
        device = next(self.model.parameters()).device
        VokenModel(self.model, self.settings, self.towers, self.facts).write(folder)
        self.model.to(device)
