"""Pre-training of a text tower by its hidden words and the pictures of all of them: its recipe.

`patchword vokens --out` -> texts with the picture of each token -> hidden words -> text tower -> model folder
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.composed import build_text_tower
from patchword.data.captions import padded
from patchword.errors import ConfigError, DataError, counted
from patchword.files import text_digest
from patchword.models.pretraining.vokenizer import TokenBatch, VokenLanguageModel, VokenLanguageModelConfig
from patchword.tasks.pretrain.data import places, plan
from patchword.tasks.pretrain.model import PretrainedSettings, PretrainedTower
from patchword.tasks.pretrain.settings import PretrainRun
from patchword.text.spans import Span, overlapping, spans
from patchword.text.words import Vocabulary
from patchword.train.data import with_vocabulary
from patchword.train.recipe import Recipe, Validation
from patchword.train.step import Shares

_AT_ONCE = 64


class VokenText(NamedTuple):
    """A text and the pictures of its tokens, as another tokenizer found them."""

    text: str
    spans: tuple[Span, ...]
    pictures: tuple[str, ...]


def read_vokens(path: Path, limit: int) -> list[VokenText]:
    """The texts of a .jsonl that `patchword vokens --out` wrote; `limit` 0: all.

    Raises DataError naming the first line that is none, or where no text has a voken.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            vokens = row["vokens"]
            one = VokenText(
                str(row["text"]),
                tuple((int(begin), int(end)) for begin, end in (voken["span"] for voken in vokens)),
                tuple(str(voken["picture"]) for voken in vokens),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: expected a text with its vokens, as `patchword vokens --out` writes "
                f"them, found {line[:60]!r}"
            ) from error
        found.append(one)
    if not any(one.pictures for one in found):
        raise DataError(
            f"{path}: {counted(len(found), 'text')} without a voken: write them by `patchword vokens --out`"
        )
    return found[:limit] if limit else found


class VokenLanguageObjective(nn.Module):
    """The cross-entropies, weighted by the part's share of the hidden words of the step."""

    def __init__(self, model: VokenLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"."""
        share = batch.target_count / shares.targets
        losses = {name: share * value for name, value in self.model.loss(batch).items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


class VokenTraining:
    """Model and texts of a run, and what its stages do with them."""

    def __init__(self, run: PretrainRun, folder: Path, command: str) -> None:
        self.run, self.config = run, cast(VokenLanguageModelConfig, run.model)
        if run.data.vokens is None:
            raise ConfigError(
                "model.kind vokens learns from texts with their pictures: give data.vokens, a .jsonl that "
                "`patchword vokens --out` wrote"
            )
        if run.text is None:
            raise ConfigError("data.vokens are read by a text tower: add a [text] section")
        path = Path(run.data.vokens)
        texts = read_vokens(path, run.data.limit)
        self.vocabulary = Vocabulary.build([one.text for one in texts], run.data.minimum_count)
        rows = [tuple(self.vocabulary.encode(one.text)[: run.data.max_words]) for one in texts]
        kept = [(one, row) for one, row in zip(texts, rows, strict=True) if row]
        self.bank = sorted({picture for one, _ in kept for picture in one.pictures})
        place = {picture: number for number, picture in enumerate(self.bank)}
        self.rows = [row for _, row in kept]
        self.vokens = [
            [-1 if at < 0 else place[one.pictures[at]] for at in self._places(one, len(row))]
            for one, row in kept
        ]
        self.notes = []
        if len(kept) < len(texts):
            self.notes.append(f"{counted(len(texts) - len(kept), 'text')} without a word left out")
        self.digest = text_digest("\n".join(one.text for one, _ in kept))
        self.learnt, self.aside = places(len(self.rows), run.data, "texts")
        text = with_vocabulary(run.text, self.vocabulary, run.data.max_words)
        torch.manual_seed(run.seed)
        tower: Any = build_text_tower(text)
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            raise ConfigError(
                "the whole tower is frozen and nothing would be learnt: set text.trainable_from"
            )
        mask = self.vocabulary.special.unknown
        self.model = VokenLanguageModel(self.config, tower, self.vocabulary.size, len(self.bank), mask)
        self.settings = PretrainedSettings(
            text=text, vocabulary_size=self.vocabulary.size, max_words=run.data.max_words
        )
        what = "masked words" + (" and vokens" if self.config.voken_weight else "")
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or f"A {type(tower).__name__} pre-trained by {what} with Patchword, without labels.",
            dataset=f"{path.name}: {counted(len(self.learnt), 'text')}, "
            f"{counted(len(self.bank), 'picture')}, "
            f"selected on {counted(len(self.aside), 'other text')}",
            licence=run.licence or "not stated",
            command=command,
        )

    def _places(self, one: VokenText, count: int) -> list[int]:
        """For each word of ours the token of the vokenizer that shares most letters with it; -1: none."""
        return overlapping(spans(self.vocabulary, one.text, count), one.spans)

    def objective(self, stage: int) -> nn.Module:
        """The same in every stage."""
        return VokenLanguageObjective(self.model)

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as places of texts."""
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        return plan(self.learnt, self.run.stage[stage].batch, generator)

    def batch(self, stage: int, entries: list[int], generator: torch.Generator) -> TokenBatch:
        """Texts with hidden words, at least one each; start and end are never hidden."""
        special = self.vocabulary.special
        ids_BL, _ = padded([self.rows[place] for place in entries], special, ends=True)
        vokens_BL = torch.full(ids_BL.shape, -1)
        for b, place in enumerate(entries):
            vokens_BL[b, 1 : len(self.vokens[place]) + 1] = torch.tensor(self.vokens[place])
        real_BL = ids_BL != special.pad
        words_BL = real_BL & (ids_BL != special.start) & (ids_BL != special.end)
        draw_BL = torch.rand(ids_BL.shape, generator=generator).masked_fill(~words_BL, 2.0)
        hidden_BL = draw_BL < self.config.hidden
        hidden_BL.scatter_(1, draw_BL.argmin(1, keepdim=True), True)
        return TokenBatch(ids_BL, real_BL, hidden_BL, vokens_BL)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """How many hidden words, and how many vokens, are named right in the texts set aside."""
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        right = hidden = found = having = loss = 0.0
        for entries in plan(self.aside, _AT_ONCE, None):
            batch = self.batch(stage, entries, generator).to(accelerator.device)
            tokens_BLC = self.model(batch.ids_BL.masked_fill(batch.hidden_BL, self.model.mask), batch.real_BL)
            named_N = self.model.words(tokens_BLC[batch.hidden_BL]).argmax(1)
            right += float((named_N == batch.ids_BL[batch.hidden_BL]).sum())
            hidden += batch.target_count
            loss += float(self.model.loss(batch)["words"]) * batch.target_count
            if self.model.vokens is not None:
                has_BL = batch.vokens_BL >= 0
                chosen_N = self.model.vokens(tokens_BLC[has_BL]).argmax(1)
                found += float((chosen_N == batch.vokens_BL[has_BL]).sum())
                having += float(has_BL.sum())
        scores = {"hidden_words": right / hidden}
        if having:
            scores["vokens"] = found / having
        return Validation(right / hidden, {"scores": scores}, loss / hidden, "hidden words named")

    def save(self, folder: Path) -> None:
        """The tower, as other tasks take it; the heads are left out."""
        device = next(self.model.parameters()).device
        PretrainedTower(self.model.text, self.settings, self.vocabulary, self.facts, device).write(folder)

    def load(self, folder: Path) -> None:
        """The tower of a model folder into the model."""
        checkpoint.load_weights(self.model.text, folder, "text.")

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the tower: the heads."""
        return {
            name: value for name, value in self.model.state_dict().items() if not name.startswith("text.")
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The counterpart of `state`."""
        tower = {f"text.{name}": value for name, value in self.model.text.state_dict().items()}
        self.model.load_state_dict({**tower, **tensors})


def vokens_language_recipe(run: PretrainRun, folder: Path, command: str) -> Recipe:
    """The pre-training of a text tower, ready for its first step. Raises ConfigError, DataError."""
    training = VokenTraining(run, folder, command)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=training.save,
        load=training.load,
        validate=training.validate,
        state=training.state,
        load_state=training.load_state,
        names=lambda batch: [],
        notes=training.notes,
        facts={"texts": len(training.rows), "digest of the texts": training.digest},
    )
