"""How good a captioner is while it is trained: captions of the selection, decoded and scored, and their loss.

Figures under teacher forcing flatter, so they stand apart from those of decoded captions. CIDEr selects the
model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from patchword.data.captions import CaptionData
from patchword.device import wait
from patchword.files import write_json
from patchword.log import progress
from patchword.lookup import look_up
from patchword.losses import caption_cross_entropy
from patchword.tasks.caption.model import CaptioningModel
from patchword.train.recipe import Validation

SCORE = "metrics:score_captions"
_AT_ONCE = 64
_SAMPLES = 24


@dataclass(frozen=True)
class CaptionValidation:
    """The pictures that select the model, and the run folder that their captions are written to."""

    selection: CaptionData
    folder: Path

    def measure(self, model: CaptioningModel, name: str, writes: bool) -> Validation:
        """Decode the pictures of the selection and score them; `writes` puts them into predictions/."""
        model.model.eval()
        forced = self._teacher_forced(model)
        predictions, seconds = self._decoded(model)
        found = look_up(SCORE)(self._references(predictions), predictions)
        values = {name: one.value for name, one in found.items()}
        if writes:
            self._write(name, predictions)
        speed = round(len(predictions) / seconds, 2)
        event = {"scores": values, "teacher_forced": forced, "captions_per_second": speed}
        return Validation(values["CIDEr"], event, forced["loss"], "CIDEr")

    def _decoded(self, model: CaptioningModel) -> tuple[dict[str, str], float]:
        """Captions by image id, and the seconds that encoder and search took from the tower's features on."""
        predictions: dict[str, str] = {}
        seconds = 0.0
        with progress() as bar:
            task = bar.add_task("validation", total=len(self.selection.records), status="")
            for entries in self.selection.plan(_AT_ONCE, 1, False, None):
                batch = self.selection.batch(entries, None)
                inputs = batch.inputs.to(model.device)
                with torch.inference_mode():
                    features = model.model.features(inputs)
                wait(model.device)
                began = time.perf_counter()
                captions = model.caption_features(features, trace=False)
                # Captions are text: nothing of them is still under way.
                seconds += time.perf_counter() - began
                predictions |= {
                    str(image): caption.text for image, caption in zip(batch.image_ids, captions, strict=True)
                }
                bar.update(task, advance=len(entries))
        return predictions, seconds

    @torch.inference_mode()
    def _teacher_forced(self, model: CaptioningModel) -> dict[str, float]:
        """Loss per word, top-5 accuracy and BLEU-4 of the words predicted from the true ones before them.

        These are the figures of the PyTorch course on Show, Attend and Tell.
        """
        total, words, hits = 0.0, 0, 0
        predictions: dict[str, str] = {}
        pad, captioner = model.vocabulary.special.pad, model.model.captioner
        for entries in self.selection.plan(_AT_ONCE, 1, False, None):
            batch = self.selection.batch(entries, None).to(model.device)
            memory = captioner.encode(model.model.features(batch.inputs))
            targets_RT = batch.tokens_RT[:, 1:]
            logits_RTV = captioner.decode(batch.tokens_RT[:, :-1], batch.lengths_R - 1, memory).logits_BTV
            loss, count = caption_cross_entropy(logits_RTV, targets_RT, pad)
            real_RT = targets_RT != pad
            found_RT = (logits_RTV.topk(5, dim=-1).indices == targets_RT[..., None]).any(-1)
            total, words = total + loss.item(), words + int(count)
            hits += int((found_RT & real_RT).sum())
            for image, row, length in zip(
                batch.image_ids, logits_RTV.argmax(-1).tolist(), (batch.lengths_R - 2).tolist(), strict=True
            ):
                predictions[str(image)] = model.vocabulary.decode(row[:length])
        bleu = look_up(SCORE)(self._references(predictions), predictions, metrics=("bleu",))["Bleu_4"].value
        return {"loss": total / max(1, words), "top5": hits / max(1, words), "bleu4": bleu}

    def _references(self, predictions: Mapping[str, str]) -> dict[str, list[str]]:
        """What people said of the pictures; a picture of a shard that cannot be decoded has no prediction."""
        ids = ((str(record.image_id), record) for record in self.selection.records)
        return {name: list(record.captions) for name, record in ids if name in predictions}

    def _write(self, name: str, predictions: Mapping[str, str]) -> None:
        """The captions in COCO's results format, and for the report the first ones beside the references."""
        folder = self.folder / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        records = [one for one in self.selection.records if str(one.image_id) in predictions]
        said = {record.image_id: predictions[str(record.image_id)] for record in records}
        write_json(
            folder / f"{name}.json", [{"image_id": key, "caption": text} for key, text in said.items()]
        )
        samples = [
            {
                "image_id": record.image_id,
                "file": record.file,
                "caption": said[record.image_id],
                "references": list(record.captions),
            }
            for record in records[:_SAMPLES]
        ]
        write_json(self.folder / "samples.json", samples, indent=1)
