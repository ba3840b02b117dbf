"""A captioner as ONNX files, which run without torch wherever there is an onnxruntime.

    OUT/pictures.onnx    pixels (B, 3, H, W), float32, as `preprocessing` makes them -> memory_0, ... of B
                         pictures, and state_0, ... before the first token, one row for each picture
    OUT/words.onnx       tokens (R), int64, memory_..., state_... (R rows, K for each picture)
                         -> logits (R, V) of the next token, next_0, ...: the state after these tokens
    OUT/vocab.json       the words;  OUT/exported.json    preprocessing, the search, what it was made of

For a model that knows the concepts of its eyes, pictures.onnx also gives `chances` (B, W), how likely a
person's caption names each common word, and `distance` (B) from the training pictures over its limit: so a
caption that cannot be trusted is marked, and of a strange picture the concepts are named, as the model does.

The search over beams is `decode_numpy.py`. It is the model's plain search: words that the eyes are sure of do
not enter a caption, and captions are not ranked by consensus; both need the model whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Picture
from patchword.errors import ModelError
from patchword.files import whole_folder, write_json
from patchword.layers.familiarity import mean_patch
from patchword.metrics import score_captions
from patchword.onnx_graphs import (
    Graph,
    Kind,
    load_runtime,
    sample_photo,
    size_of,
    turn_into_int8,
    write_graph,
)
from patchword.tasks.caption.concepts import calibrated, word_probabilities
from patchword.tasks.caption.exported import (
    CHANCES,
    DISTANCE,
    MEMORY,
    NEXT,
    PICTURES,
    STATE,
    WORDS,
    ExportedCaptioner,
)
from patchword.tasks.caption.load import load
from patchword.tasks.caption.model import CaptioningModel
from patchword.tasks.requests import MeasuredOn
from patchword.text.imagenet import common_words

_APART = 1e-3
"""Relative difference between a graph and the model that is rounding."""


class _Pictures(nn.Module):
    """What is seen, and the state of one row per picture before the first token."""

    def __init__(self, model: CaptioningModel, kept: Sequence[int]) -> None:
        super().__init__()
        self.tower, self.captioner, self.kept = model.model.tower, model.model.captioner, kept
        self.familiarity = model.model.familiarity
        self.concepts = None if self.familiarity is None else model.settings.concepts

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, ...]:
        doubt: tuple[Tensor, ...] = ()
        if self.concepts is None or self.familiarity is None:
            features = self.tower(pixels_B3HW)
        else:
            features, logits = self.tower.look(pixels_B3HW)
            offsets_W = torch.tensor([self.concepts.offsets.get(word, 0.0) for word in common_words()])
            shares_BW = word_probabilities(logits.picture_BK)
            distance_B = self.familiarity.distance(mean_patch(features)) / self.familiarity.limit
            doubt = calibrated(shares_BW, self.concepts.slope, self.concepts.intercept, offsets_W), distance_B
        memory = self.captioner.encode(features)
        tensors = list(_tensors(memory))
        seen = (tensors[number] for number in self.kept)
        return (*seen, *_tensors(self.captioner.start(memory, 1)), *doubt)


class _Words(nn.Module):
    """One token of every row."""

    def __init__(self, model: CaptioningModel, memory: NamedTuple, state: NamedTuple) -> None:
        super().__init__()
        self.captioner, self.memory, self.state = model.model.captioner, memory, state
        self.seen = len(list(_tensors(memory)))

    def forward(self, tokens_R: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        memory = _rebuilt(self.memory, iter(tensors[: self.seen]))
        state = _rebuilt(self.state, iter(tensors[self.seen :]))
        logits_RV, following, _ = self.captioner.step(tokens_R, memory, state)
        return (logits_RV, *_tensors(following))


def _tensors(node: Any) -> Iterator[Tensor]:
    """The tensors of a nest of tuples, in order."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, tuple):
        for part in node:
            yield from _tensors(part)


def _rebuilt(node: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nest with other tensors."""
    if isinstance(node, Tensor):
        return next(tensors)
    if isinstance(node, tuple):
        parts = [_rebuilt(part, tensors) for part in node]
        return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)
    return node


class _Example(NamedTuple):
    """What goes into one step."""

    tokens_R: Tensor
    memory: Any
    state: Any

    def inputs(self) -> dict[str, Tensor]:
        named = {"tokens": self.tokens_R}
        named |= {MEMORY.format(n): tensor for n, tensor in enumerate(_tensors(self.memory))}
        return named | {STATE.format(n): tensor for n, tensor in enumerate(_tensors(self.state))}


@torch.no_grad()
def _example(model: CaptioningModel, images: int, beams: int, steps: int) -> _Example:
    """So many pictures, rows for each, and tokens that were said."""
    captioner, generator = model.model.captioner, torch.Generator().manual_seed(images)
    height, width = model.settings.preprocessing.hw
    pixels_B3HW = torch.randn(images, 3, height, width, generator=generator)
    memory = captioner.encode(model.model.tower(pixels_B3HW))
    state = captioner.start(memory, beams)
    tokens_R = torch.full((images * beams,), model.vocabulary.special.start)
    for _ in range(steps):
        _, state, _ = captioner.step(tokens_R, memory, state)
    return _Example(tokens_R, memory, state)


def _free_axes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """The axes that differ between two examples of the same tensors."""
    return {
        name: {
            axis: f"{name}_{axis}"
            for axis, (size, another) in enumerate(zip(tensor.shape, other[name].shape, strict=True))
            if size != another
        }
        for name, tensor in one.items()
    }


def export(name: str, out: Path, to: Kind, measured: MeasuredOn | None) -> Iterator[str]:
    """Write the folder; gives lines that say how near its caption of a photograph is, and the CIDEr that it
    costs. Raises what `export_captioner` raises, DataError, PictureError."""
    captioner, exported = export_captioner(name, out, to)
    same, apart = agreement(captioner, exported, [sample_photo()])
    said = f"the same caption, log-probability {apart:.1e} apart" if same else "another caption"
    yield f"{out}: {size_of(out):.1f} MiB; of a photograph it says {said}"
    if measured is not None:
        whole, search, after = (cider_of(one, measured) for one in (captioner, plain(captioner), exported))
        yield f"CIDEr {whole:.4f} as the model ships, {search:.4f} by its plain search -> {after:.4f}"


def export_captioner(name: str, out: Path, to: Kind) -> tuple[CaptioningModel, ExportedCaptioner]:
    """Write the folder, which appears when it is complete; gives the model and what was made of it.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
        ModelError: there is no such model, it is none of ours, or it has a part that ONNX cannot hold.
    """
    load_runtime()
    model = load(name, "cpu")
    if not isinstance(model, CaptioningModel):
        raise ModelError(f"{name} is a captioner of transformers, whose own tools export it")
    small, large = _example(model, 2, 3, 2), _example(model, 3, 4, 4)
    inputs = small.inputs()
    axes = _free_axes(inputs, large.inputs())
    states = [name for name in inputs if name.startswith("state_")]
    following = [NEXT.format(number) for number in range(len(states))]
    axes |= {after: axes[before] for before, after in zip(states, following, strict=True)}
    axes["logits"] = {0: "R"}
    with whole_folder(out) as aside:
        words = _Words(model, small.memory, small.state)
        write_graph(words, inputs, ["logits", *following], axes, aside / WORDS)
        used = Graph(aside / WORDS).inputs
        kept = [n for n in range(words.seen) if MEMORY.format(n) in used]
        height, width = model.settings.preprocessing.hw
        pixels = {"pixels": torch.zeros(2, 3, height, width)}
        outputs = [*(MEMORY.format(number) for number in kept), *states]
        free = {"pixels": {0: "B"}} | {name: {0: "B"} for name in outputs if 0 in axes[name]}
        eyes = _Pictures(model, kept)
        if eyes.concepts is not None:
            outputs += [CHANCES, DISTANCE]
            free |= {CHANCES: {0: "B"}, DISTANCE: {0: "B"}}
        write_graph(eyes, pixels, outputs, free, aside / PICTURES)
        _check_equal(aside / WORDS, large.inputs(), words)
        other = {"pixels": torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))}
        _check_equal(aside / PICTURES, other, eyes)
        for file in (PICTURES, WORDS) if to == "int8" else ():
            turn_into_int8(aside / file)
        write_json(aside / checkpoint.VOCABULARY, model.vocabulary.to_json(), indent=1)
        facts: dict[str, Any] = {"format": 1, "task": "caption", "to": to, "name": str(name)}
        facts |= {"preprocessing": model.settings.preprocessing.model_dump(mode="json")}
        facts |= {"decoding": model.settings.decoding.model_dump(mode="json")}
        facts |= {"concepts": None if eyes.concepts is None else eyes.concepts.model_dump(mode="json")}
        facts |= {"longest": getattr(model.settings.captioner, "max_positions", None)}
        write_json(aside / checkpoint.EXPORTED, facts, indent=1)
    return model, ExportedCaptioner(out)


def _check_equal(path: Path, given: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises ModelError where a graph gives other numbers than the module, for another batch than that of
    which it was written: a graph holds what was done for its example, and not what would be done for others.
    """
    graph = Graph(path)
    found = graph.run({name: tensor.numpy() for name, tensor in given.items()})
    with torch.no_grad():
        expected = module(*given.values())
    for name, tensor in zip(graph.outputs, expected, strict=True):
        if not np.allclose(found[name], tensor.numpy(), rtol=_APART, atol=_APART):
            raise ModelError(
                f"{name} of {path.name} is another than the model's: a part of this model cannot be written "
                "as ONNX"
            )


def plain(model: CaptioningModel) -> CaptioningModel:
    """The model with the search that an export has: no ranking by consensus, no words that must be said."""
    concepts = model.settings.concepts
    if concepts is not None:
        concepts = concepts.model_copy(update={"mention": "never"})
    settings = model.settings.model_copy(update={"consensus": None, "concepts": concepts})
    return CaptioningModel(model.model, settings, model.vocabulary, model.facts, model.device)


def agreement(
    model: CaptioningModel, exported: ExportedCaptioner, pictures: Sequence[Picture]
) -> tuple[int, float]:
    """How many captions are the same, and by how much the log-probabilities of these differ at most."""
    ours = plain(model).caption(list(pictures), trace=False)
    theirs = exported.caption(list(pictures))
    same = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.tokens == other.tokens]
    apart = [abs(one.log_probability - other.log_probability) for one, other in same]
    return len(same), max(apart, default=float("nan"))


def cider_of(captioner: Any, measured: MeasuredOn) -> float:
    """CIDEr of a captioner on a split, as a fraction. Raises DataError, PictureError."""
    records = split_records(read_captions(measured.data), measured.split)
    predictions: dict[str, str] = {}
    with PictureReader() as reader:
        for first in range(0, len(records), 32):
            some = records[first : first + 32]
            opened = [reader.open(measured.images / record.file) for record in some]
            captions = captioner.caption(opened, trace=False)
            predictions |= {
                str(record.image_id): caption.text for record, caption in zip(some, captions, strict=True)
            }
    references = {str(record.image_id): list(record.captions) for record in records}
    return score_captions(references, predictions, metrics=("cider",))["CIDEr"].value
