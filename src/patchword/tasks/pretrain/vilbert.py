"""Pre-training by ViLBERT: its recipe. True pairs told from false ones, on pictures set aside, select it.

captions -> words hidden, texts exchanged;   pictures -> frozen tower -> regions, hidden;   both -> losses
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import find_model, restore_weights
from patchword.checkpoints.streams import begin_with
from patchword.checkpoints.towers import load_tower_weights
from patchword.composed import build_tower, reader_preprocessing
from patchword.data.captions import PictureInputs, padded
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.pictures import Preprocessing
from patchword.data.records import CaptionRecord
from patchword.errors import ConfigError
from patchword.files import text_digest
from patchword.log import progress
from patchword.models.pretraining.vilbert import VilbertConfig, region_loss, word_loss
from patchword.tasks.pretrain.data import plan
from patchword.tasks.pretrain.hard_negatives import Kinds, kinds_of, replaced
from patchword.tasks.pretrain.regions import Regions, all_regions
from patchword.tasks.pretrain.settings import PretrainRun
from patchword.tasks.pretrain.vilbert_model import TwoStreamModel, VilbertModule, VilbertSettings
from patchword.text.words import Vocabulary
from patchword.train.data import DataSettings, hold_out, pixel_inputs, stored_inputs, with_vocabulary
from patchword.train.recipe import Recipe, Validation
from patchword.train.step import Shares

_AT_ONCE = 64
_NONE = -100
POOL = 100
"""Pictures among which retrieval is measured."""


class PairBatch(NamedTuple):
    """B pictures, each with one text that may be another's."""

    names: tuple[str, ...]
    ids_BL: Tensor
    real_BL: Tensor
    shown_BL: Tensor
    """The ids that the model reads: a tenth of the hidden words are another word."""
    marked_BL: Tensor
    """Hidden words whose place shows the mark."""
    targets_BL: Tensor
    """Hidden words of true pairs; -100 elsewhere."""
    features_BNF: Tensor
    places_BN5: Tensor
    classes_BNK: Tensor | None
    hidden_BN: Tensor
    """Regions of true pairs whose classes are predicted."""
    true_B: Tensor

    @property
    def target_count(self) -> int:
        """Hidden words."""
        return int((self.targets_BL != _NONE).sum())

    @property
    def picture_count(self) -> int:
        """Number of pairs, B."""
        return len(self.names)

    def to(self, device: torch.device) -> PairBatch:
        """Moves all tensors to a device."""
        moved: dict[str, Any] = {
            name: part.to(device) for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return self._replace(**moved)


@dataclass(frozen=True)
class PairData:
    """Pictures with their encoded captions and regions."""

    files: tuple[str, ...]
    rows: tuple[tuple[tuple[int, ...], ...], ...]
    regions: Regions
    vocabulary: Vocabulary
    kinds: Kinds
    config: VilbertConfig

    def batch(self, places: Sequence[int], generator: torch.Generator) -> PairBatch:
        """True and false pairs, with hidden words and regions."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        texts, truth = [], []
        for place in places:
            own = self.rows[place][int(rng.integers(len(self.rows[place])))]
            text, true = self._text(place, own, rng)
            texts.append(text)
            truth.append(true)
        return self.hide(places, texts, truth, rng)

    def _text(self, place: int, own: tuple[int, ...], rng: np.random.Generator) -> tuple[Sequence[int], bool]:
        if rng.random() >= self.config.negatives or len(self.rows) < 2:
            return own, True
        if rng.random() < self.config.hard:
            false = replaced(own, self.kinds, rng)
            if false is not None:
                return false, False
        other = (place + 1 + int(rng.integers(len(self.rows) - 1))) % len(self.rows)
        return self.rows[other][int(rng.integers(len(self.rows[other])))], False

    def hide(
        self,
        places: Sequence[int],
        texts: Sequence[Sequence[int]],
        truth: Sequence[bool],
        rng: np.random.Generator | None,
    ) -> PairBatch:
        """The batch of these texts; without a generator nothing is hidden."""
        special, size = self.vocabulary.special, self.vocabulary.size
        ids_BL, _ = padded(texts, special, ends=True)
        real_BL = ids_BL != special.pad
        words_BL = real_BL & (ids_BL != special.start) & (ids_BL != special.end)
        true_B = torch.tensor(truth)
        features_BNF = self.regions.features_nNF[list(places)].float()
        shown_BL, marked_BL = ids_BL.clone(), torch.zeros_like(real_BL)
        chosen_BL, hidden_BN = (
            torch.zeros_like(real_BL),
            torch.zeros(features_BNF.shape[:2], dtype=torch.bool),
        )
        if rng is not None:
            drawn_BL = torch.from_numpy(rng.random(ids_BL.shape))
            chosen_BL = words_BL & (drawn_BL < self.config.share)
            how_BL = torch.from_numpy(rng.random(ids_BL.shape))
            marked_BL = chosen_BL & (how_BL < 0.8)
            # Words are 1 to size - 4: padding comes before them, the unknown word, start and end behind.
            other_BL = torch.from_numpy(rng.integers(1, max(2, size - 3), ids_BL.shape))
            shown_BL = torch.where(chosen_BL & (how_BL >= 0.9), other_BL, shown_BL)
            if self.regions.classes_nNK is not None:
                hidden_BN = torch.from_numpy(rng.random(hidden_BN.shape) < self.config.share)
                hidden_BN[:, 0] = False  # the whole picture holds what is hidden
                zeroed_BN = hidden_BN & torch.from_numpy(rng.random(hidden_BN.shape) < 0.9)
                features_BNF = features_BNF.masked_fill(zeroed_BN[..., None], 0.0)
        targets_BL = torch.where(chosen_BL & true_B[:, None], ids_BL, torch.full_like(ids_BL, _NONE))
        classes = self.regions.classes_nNK
        return PairBatch(
            names=tuple(self.files[place] for place in places),
            ids_BL=ids_BL,
            real_BL=real_BL,
            shown_BL=shown_BL,
            marked_BL=marked_BL,
            targets_BL=targets_BL,
            features_BNF=features_BNF,
            places_BN5=self.regions.places_N5.expand(len(texts), -1, -1),
            classes_BNK=None if classes is None else classes[list(places)],
            hidden_BN=hidden_BN & true_B[:, None],
            true_B=true_B,
        )


class VilbertObjective(nn.Module):
    """Hidden words, hidden regions, and pairs."""

    def __init__(self, model: VilbertModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch, shares: Shares) -> dict[str, Tensor]:
        """Named losses, the total under "loss"."""
        vilbert = self.model.vilbert
        streams = vilbert(
            batch.shown_BL, batch.real_BL, batch.features_BNF, batch.places_BN5, None, batch.marked_BL
        )
        at_BL = batch.targets_BL != _NONE
        losses = {
            "words": word_loss(vilbert.word_head(streams.text_BLC[at_BL]), batch.targets_BL[at_BL])
            / max(1.0, shares.targets),
            "pairs": nn.functional.binary_cross_entropy_with_logits(
                vilbert.pair_logits(streams).float(), batch.true_B.float(), reduction="sum"
            )
            / shares.pictures,
        }
        if vilbert.class_head is not None and batch.classes_BNK is not None:
            logits_PK = vilbert.class_head(streams.picture_BNW[batch.hidden_BN])
            count = max(1, int(batch.hidden_BN.sum()))
            losses["regions"] = region_loss(logits_PK, batch.classes_BNK[batch.hidden_BN]) / count
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


class VilbertTraining:
    """Model and data of a run, and what its stages do with them."""

    def __init__(self, run: PretrainRun, folder: Path, command: str) -> None:
        self.run, data = run, run.data
        if data.annotations is None or data.images is None or run.tower is None or run.text is None:
            raise ConfigError(
                "vilbert reads pictures with captions: give data.annotations and data.images, a [tower] and "
                "a [text] section"
            )
        train, aside = _split(data.annotations, data.held_out, data.limit)
        texts = [caption for record in train for caption in record.captions]
        self.vocabulary = Vocabulary.build(texts, data.minimum_count)
        torch.manual_seed(run.seed)
        tower = build_tower(run.tower)
        if run.tower_from:
            load_tower_weights(tower, find_model(run.tower_from))
        tower.requires_grad_(False)
        preprocessing = reader_preprocessing(tower.preprocessing)
        files = [record.file for record in (*train, *aside)]
        inputs = _pictures(run, tower, preprocessing, files)
        with progress() as bar:
            task = bar.add_task("regions", total=len(files), status="")
            kind = cast(VilbertConfig, run.model).regions
            regions = all_regions(tower, inputs, files, kind, lambda count: bar.update(task, advance=count))
        classes = 0 if regions.classes_nNK is None else regions.classes_nNK.shape[2]
        self.notes = [] if classes else ["the tower names no classes: hidden regions are not predicted"]
        self.settings = VilbertSettings(
            tower=run.tower,
            text=with_vocabulary(run.text, self.vocabulary, data.max_words),
            vilbert=run.model,
            preprocessing=preprocessing,
            vocabulary_size=self.vocabulary.size,
            max_words=data.max_words,
            classes=classes,
        )
        torch.manual_seed(run.seed)
        self.model = VilbertModule.over(tower, self.settings)
        if run.model_from:
            known = begin_with(self.model.vilbert, find_model(run.model_from), self.vocabulary)
            self.notes.append(
                f"begun with {run.model_from}: {known} of {len(self.vocabulary.words)} words were read there"
            )
        rows = [self._encoded(record) for record in (*train, *aside)]
        unknown = (self.vocabulary.special.unknown,)
        kinds = kinds_of([row for some in rows[: len(train)] for row in some], without=unknown)
        count = len(train)
        self.train = self._data(files[:count], rows[:count], _part(regions, slice(0, count)), kinds)
        self.aside = self._data(files[count:], rows[count:], _part(regions, slice(count, None)), kinds)
        self.facts = ModelFacts(
            name=folder.name,
            description=run.description
            or f"Two streams pre-trained by ViLBERT over a {run.tower.kind} tower with Patchword.",
            dataset=f"{Path(data.annotations).name}: {len(train)} training pictures, "
            f"selected on {len(aside)} others",
            licence=run.licence or "not stated",
            command=command,
        )

    def _encoded(self, record: CaptionRecord) -> tuple[tuple[int, ...], ...]:
        most = self.run.data.max_words
        return tuple(tuple(self.vocabulary.encode(caption)[:most]) for caption in record.captions)

    def _data(
        self,
        files: Sequence[str],
        rows: Sequence[tuple[tuple[int, ...], ...]],
        regions: Regions,
        kinds: Kinds,
    ) -> PairData:
        config = cast(VilbertConfig, self.run.model)
        return PairData(tuple(files), tuple(rows), regions, self.vocabulary, kinds, config)

    def plan(self, stage: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as places of pictures."""
        generator = np.random.default_rng([self.run.seed, stage, epoch])
        return plan(np.arange(len(self.train.files)), self.run.stage[stage].batch, generator)

    def batch(self, stage: int, entries: list[int], generator: torch.Generator) -> PairBatch:
        """Pairs with hidden words and regions."""
        return self.train.batch(entries, generator)

    def objective(self, stage: int) -> nn.Module:
        """The same in every stage."""
        return VilbertObjective(self.model)

    def whole(self) -> TwoStreamModel:
        """The model as a person uses it."""
        device = next(self.model.parameters()).device
        return TwoStreamModel(self.model, self.settings, self.vocabulary, self.facts, device)

    @torch.inference_mode()
    def validate(self, stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        """How well true texts are told from others' and from hard ones, and hidden words with and without
        the picture."""
        self.model.eval()
        scores = measure(self.model, self.aside, accelerator.device)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if name != "pair_auc")
        return Validation(scores["pair_auc"], {"scores": scores}, measure=f"{told}, pair AUC")


@torch.inference_mode()
def measure(model: VilbertModule, data: PairData, device: torch.device) -> dict[str, float]:
    """AUC of true against others' texts, share of hard false texts that score below the true one, and share
    of hidden words that are found: with the picture, with none (all features zero), with another one."""
    rng = np.random.default_rng(0)
    true, other, pairs = [], [], []
    words = {name: [0, 0] for name in ("words", "words_without_picture", "words_other_picture")}
    for entries in plan(np.arange(len(data.files)), _AT_ONCE, None):
        own = [data.rows[place][0] for place in entries]
        next_ones = [data.rows[(place + 1) % len(data.rows)][0] for place in entries]
        true.append(_pair_logits(model, data, entries, own, device))
        other.append(_pair_logits(model, data, entries, next_ones, device))
        hard = [replaced(text, data.kinds, rng) for text in own]
        kept = [number for number, text in enumerate(hard) if text is not None]
        if kept:
            places = [entries[number] for number in kept]
            found = _pair_logits(model, data, places, [hard[number] or [] for number in kept], device)
            pairs.append(true[-1][kept] - found)
        batch = data.hide(entries, own, [True] * len(entries), rng).to(device)
        shown = (batch.features_BNF, torch.zeros_like(batch.features_BNF), batch.features_BNF.roll(1, 0))
        for counts, features_BNF in zip(words.values(), shown, strict=True):
            right, all_of_them = _words_found(model, batch._replace(features_BNF=features_BNF))
            counts[0], counts[1] = counts[0] + right, counts[1] + all_of_them
    positive, negative = torch.cat(true), torch.cat(other)
    higher = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    scores = {"pair_auc": float(higher.mean())}
    if pairs:
        scores["hard"] = float((torch.cat(pairs) > 0).double().mean())
    return scores | {name: right / max(1, count) for name, (right, count) in words.items()}


@torch.inference_mode()
def retrieval(
    model: VilbertModule,
    data: PairData,
    device: torch.device,
    advance: Callable[[int], None],
    pool: int = POOL,
) -> dict[str, float]:
    """R@1, R@5 and R@10 both ways within pools of `pool` pictures and their first captions, and the size of
    the pools: every text is read with every picture, which takes pool^2 passes for each pool."""
    model.eval()
    size = min(pool, len(data.files))
    above: dict[str, list[int]] = {"picture_to_text": [], "text_to_picture": []}
    for first in range(0, len(data.files) - size + 1, size):
        places = list(range(first, first + size))
        texts = [data.rows[place][0] for place in places]
        logits = torch.stack([_pair_logits(model, data, [place] * size, texts, device) for place in places])
        own = logits.diagonal()
        above["picture_to_text"] += (logits > own[:, None]).sum(1).tolist()
        above["text_to_picture"] += (logits > own[None]).sum(0).tolist()
        advance(size)
    found = {
        f"{way}_R@{k}": float(np.mean([rank < k for rank in ranks]))
        for way, ranks in above.items()
        for k in (1, 5, 10)
    }
    return {**found, "pool": float(size)}


def _pair_logits(
    model: VilbertModule,
    data: PairData,
    places: Sequence[int],
    texts: Sequence[Sequence[int]],
    device: torch.device,
) -> Tensor:
    batch = data.hide(places, texts, [True] * len(places), None).to(device)
    streams = model.vilbert(batch.ids_BL, batch.real_BL, batch.features_BNF, batch.places_BN5)
    return model.vilbert.pair_logits(streams).cpu()


def _words_found(model: VilbertModule, batch: PairBatch) -> tuple[int, int]:
    """Of hidden words those that are found; all of them show the mark."""
    at_BL = batch.targets_BL != _NONE
    if not at_BL.any():
        return 0, 0
    streams = model.vilbert(batch.ids_BL, batch.real_BL, batch.features_BNF, batch.places_BN5, None, at_BL)
    best_P = model.vilbert.word_head(streams.text_BLC[at_BL]).argmax(-1)
    return int((best_P == batch.targets_BL[at_BL]).sum()), int(at_BL.sum())


def _split(annotations: str, held_out: int, limit: int) -> tuple[list[CaptionRecord], list[CaptionRecord]]:
    train = split_records(read_captions(Path(annotations)), "train")
    kept, aside = hold_out(len(train), held_out, "training pictures")
    chosen = [train[place] for place in kept]
    return chosen[:limit] if limit else chosen, [train[place] for place in aside]


def _pictures(
    run: PretrainRun, tower: nn.Module, preprocessing: Preprocessing, files: Sequence[str]
) -> PictureInputs:
    data = run.data
    if data.features is not None:
        return stored_inputs(Path(data.features), tower, preprocessing, run.stage)
    settings = DataSettings(
        annotations="", images=str(data.images), cache=data.cache, pixel_size=data.pixel_size
    )
    return pixel_inputs(settings, preprocessing, files)


def _part(regions: Regions, part: slice) -> Regions:
    classes = None if regions.classes_nNK is None else regions.classes_nNK[part]
    return Regions(regions.features_nNF[part], regions.places_N5, classes)


def vilbert_recipe(run: PretrainRun, folder: Path, command: str) -> Recipe:
    """The pre-training of two streams, ready for its first step.

    Raises ConfigError, DataError, ModelError.
    """
    training = VilbertTraining(run, folder, command)
    names = (*training.train.files, *training.aside.files)
    return Recipe(
        model=training.model,
        stages=run.stage,
        plan=training.plan,
        batch=training.batch,
        objective=training.objective,
        save=lambda target: training.whole().write(target),
        load=lambda source: restore_weights(training.model, source, None),
        validate=training.validate,
        names=lambda batch: list(batch.names),
        notes=training.notes,
        facts={"pictures": len(names), "digest of their names": text_digest("\n".join(names))},
    )
