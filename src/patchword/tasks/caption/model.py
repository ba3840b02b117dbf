"""Captions for pictures, from a photograph to words: the page to read first.

    photo -> data/pictures -> tower -> captioner.encode -> decode -> vocabulary -> Caption

`load` gives a `CaptioningModel`; `model.caption(...)` goes through these steps in order.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from patchword import hub
from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import portable, published_commits
from patchword.composed import CaptionerSettings, CaptionModel, TowerSettings, prototypes_of
from patchword.data.captions import Inputs
from patchword.data.pictures import Picture, Preprocessing, one_or_many, open_picture, seen_part
from patchword.decode import BeamOptions, Decodings, beam_search, explain_tokens, select_rows
from patchword.errors import PictureError
from patchword.html.pictures import small_jpeg
from patchword.lookup import look_up
from patchword.tasks.caption.batches import captions_of, computing_in
from patchword.tasks.caption.options import OWN, ConceptSettings, DecodingOptions, DecodingSettings
from patchword.tasks.caption.prototypes import FILE as PROTOTYPES
from patchword.tasks.caption.prototypes import context_words
from patchword.tasks.caption.result import Caption, Captions, PictureConcepts
from patchword.tasks.describe import describe
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.types import Trace, VisualFeatures


class ConsensusSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How captions are re-ranked by what people say of pictures like theirs (`consensus.py`)."""

    weight: float = Field(ge=0, description="weight of the agreement beside the log-probability")
    candidates: int = Field(5, ge=1, le=100, description="captions that are compared")
    ngrams: int = Field(ge=0, le=1_000_000, description="n-grams that are predicted")


class ModelSettings(BaseModel, extra="forbid", frozen=True):
    """What config.json of a captioning model says beside the facts about its training."""

    tower: TowerSettings
    captioner: CaptionerSettings
    preprocessing: Preprocessing
    decoding: DecodingSettings
    vocabulary_size: int = Field(gt=4, le=10_000_000)
    tower_sha256: str | None = None
    """Digest of a frozen public tower that the folder names by id and revision instead of holding its
    weights."""
    concepts: ConceptSettings | None = None
    """What is known about the concepts that the tower names (`patchword concepts`); None: nothing is said
    about them."""
    consensus: ConsensusSettings | None = None
    """How captions are re-ranked (`patchword consensus`); None: the search's probability decides."""
    codebook: dict[str, Any] | None = None
    """Words, templates and tower of the codebook, for models with region alignment; its embeddings are
    among the weights."""


class Perception(NamedTuple):
    """What a model's eyes make of B pictures."""

    features: VisualFeatures
    concepts: list[PictureConcepts] | None
    """None where the model knows no concepts."""
    classes_BNK: Tensor | None
    """Logits of the tower's classes at each cell; None for a tower that names none."""


_LOOKED_AT_ONCE = 4


class CaptioningModel:
    """A tower, a captioner, a vocabulary and the preprocessing that belongs to them."""

    def __init__(
        self,
        model: CaptionModel,
        settings: ModelSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
        prototype_captions: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device
        self.prototype_captions = prototype_captions or {}
        """Training contexts of each prototype of the last layer, for models with a memory."""

    def __repr__(self) -> str:
        kinds = f"{self.settings.captioner.kind} over {self.settings.tower.kind}"
        return describe(self, kinds, f"{self.vocabulary.size:,} words")

    @property
    def text_space(self) -> Any:
        """The words of region alignment and the tower's classes in one text space (`maps.TextSpace`); None
        without them."""
        alignment = getattr(self.model.captioner, "region_alignment", None)
        names_KE = getattr(self.model.tower, "names_KE", None)
        return (
            None
            if alignment is None
            else look_up("tasks.caption.maps:TextSpace")(alignment.codebook, names_KE)
        )

    @overload
    def caption(  # type: ignore[overload-overlap]  # a path is a sequence of letters as well
        self,
        pictures: Picture,
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        batch: int = 16,
        options: DecodingOptions = OWN,
    ) -> Caption: ...
    @overload
    def caption(
        self,
        pictures: Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        batch: int = 16,
        options: DecodingOptions = OWN,
    ) -> Captions: ...
    def caption(
        self,
        pictures: Picture | Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        batch: int = 16,
        options: DecodingOptions = OWN,
    ) -> Caption | Captions:
        """Caption one picture, or a list of them.

        Args:
            pictures: path, bytes or open binary file of a picture, PIL image or array (H, W, 3), or a list of
                these.
            beams: hypotheses of the search; the model's own setting where left out.
            n_best: how many hypotheses come back; all but the best as `alternatives`.
            trace: whether the attention maps are computed, and a small copy of the picture is kept with them.
            options: lengths, repetition and precision of the search, where they shall differ from the
                model's own.

        Returns:
            A Caption for one picture, a list for a list, in its order.

        Raises:
            PictureError: a picture that cannot be decoded, with its name and the reason.
            ConfigError: options out of range.
            DataError: a word of `options.mention` that the model cannot say.
        """
        pictures, single = one_or_many(pictures)
        if single:
            return self.caption(pictures, beams, n_best, trace, batch, options)[0]
        if beams is not None:
            options = replace(options, beams=beams)
        captions = Captions()
        for first in range(0, len(pictures), batch):
            images = [open_picture(picture) for picture in pictures[first : first + batch]]
            pixels_BHWC = np.stack([self.settings.preprocessing.apply(image) for image in images])
            with computing_in(options.dtype, self.device):
                looked = self.look(pixels_BHWC)
                found = self.caption_features(looked.features, None, n_best, trace, options, looked.concepts)
            captions += (
                [
                    self.shown(one, image, looked, b)
                    for b, (one, image) in enumerate(zip(found, images, strict=True))
                ]
                if trace
                else found
            )
        return captions

    def captions(
        self,
        pictures: Iterable[Picture],
        options: DecodingOptions = OWN,
        trace: bool = False,
        batch: int = 16,
        unreadable: Callable[[Picture, PictureError], None] | None = None,
    ) -> Iterator[Caption]:
        """Captions of a stream of pictures, as they come: `batch` pictures are taken from it at a time, and
        not before they are needed.

        `unreadable` hears of a picture that cannot be decoded, which then has no caption; without it such a
        picture raises PictureError.
        """
        return captions_of(self, pictures, options, trace, batch, unreadable)

    def shown(self, caption: Caption, picture: Image.Image, looked: Perception, b: int) -> Caption:
        """The caption of picture b with what a page shows: the picture, and under each word the map that
        measures best."""
        seen = seen_part(picture, self.settings.preprocessing)
        caption = replace(caption, picture=small_jpeg(seen))
        if self.text_space is None or looked.classes_BNK is None:
            return caption
        best: Caption = look_up("tasks.caption.maps:with_best_maps")(
            caption, self.text_space, looked.classes_BNK[b], looked.features.hw
        )
        return best

    def stream(self, picture: Picture, trace: bool = False) -> Generator[str, None, Caption]:
        """The words of one picture's caption, each as soon as it is known: greedy search, for a search with
        beams knows its first word only when it has ended. The generator's return value is the whole Caption.

        Raises PictureError when the picture cannot be decoded.
        """
        caption: Caption = yield from look_up("tasks.caption.streamed:words_of")(self, picture, trace)
        return caption

    @torch.inference_mode()
    def features(self, pixels_BHWC: np.ndarray) -> VisualFeatures:
        """The tower's features of pictures that went through the preprocessing's geometry (uint8)."""
        pixels_B3HW = torch.from_numpy(self.settings.preprocessing.normalise(pixels_BHWC)).to(self.device)
        return self.model.features(Inputs(pixels_B3HW=pixels_B3HW))

    @torch.inference_mode()
    def look(self, pixels_BHWC: np.ndarray) -> Perception:
        """Returns the features, what the tower names in each picture, and whether it is like the training
        pictures. A processor looks at a few pictures at a time: it is no faster with more, and the maps of
        each take 25 MiB."""
        size = _LOOKED_AT_ONCE if self.device.type == "cpu" else max(1, len(pixels_BHWC))
        parts = [
            self._looked(pixels_BHWC[first : first + size]) for first in range(0, len(pixels_BHWC), size)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _looked(self, pixels_BHWC: np.ndarray) -> Perception:
        if self.settings.concepts is None and getattr(self.model.tower, "text_space", None) is None:
            return Perception(self.features(pixels_BHWC), None, None)
        looked: Perception = look_up("tasks.caption.mention:look")(self, pixels_BHWC)
        return looked

    @torch.inference_mode()
    def caption_features(
        self,
        features: VisualFeatures,
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        options: DecodingOptions = OWN,
        seen: Sequence[PictureConcepts] | None = None,
    ) -> list[Caption]:
        """Search and words for features of B pictures; `seen` is what `look` says of them.

        Raises DataError for a word of `options.mention` that the model cannot say.
        """
        captioner, special = self.model.captioner, self.vocabulary.special
        options = options if beams is None else replace(options, beams=beams)
        decoding = self._decoding(options)
        memory = captioner.encode(features)
        found = self._searched(features, memory, n_best, options)
        traces: list[Trace | None] = [None] * n_best
        if trace:
            for k in range(n_best):
                traces[k] = explain_tokens(
                    captioner, memory, special, found.tokens_BKT[:, k], found.lengths_BK[:, k].clamp(min=1)
                )
        captions = [self._captions_of(found, traces, b, features.hw) for b in range(len(found.tokens_BKT))]
        if not options.mention and seen is None:
            return captions
        say = look_up("tasks.caption.mention:with_words")
        of_each = [None] * len(captions) if seen is None else seen
        return [
            say(self, caption, _one(memory, b), features.hw, decoding, trace, options.mention, of_each[b])
            for b, caption in enumerate(captions)
        ]

    def _searched(
        self, features: VisualFeatures, memory: NamedTuple, n_best: int, options: DecodingOptions
    ) -> Decodings:
        """The hypotheses of a beam search, ranked by consensus where the model has one; that is among more of
        them unless the caller says how many beams there are."""
        captioner, special = self.model.captioner, self.vocabulary.special
        decoding, consensus = self._decoding(options), self.settings.consensus
        width = max(decoding.beams, n_best)
        if consensus is not None and options.beams is None:
            width = max(width, consensus.candidates)
        found = beam_search(
            captioner,
            memory,
            special,
            width,
            decoding.max_length,
            BeamOptions(
                n_best if consensus is None else width,
                decoding.length_penalty,
                no_repeat_ngram=decoding.no_repeat_ngram,
                no_stutter=decoding.no_stutter,
                min_length=options.min_length,
            ),
        )
        if consensus is None:
            return found
        rank = look_up("tasks.caption.consensus:ranked")
        ranked = rank(self.model.consensus, consensus.weight, features, found, special)
        return Decodings._make(part[:, :n_best] for part in ranked)

    def _decoding(self, options: DecodingOptions) -> DecodingSettings:
        own = self.settings.decoding
        if options == OWN:
            return own
        # Recurrent captioners have no positions that could be used up.
        return own.changed(options, getattr(self.settings.captioner, "max_positions", None))

    def _captions_of(
        self, found: Decodings, traces: list[Trace | None], b: int, hw: tuple[int, int] | None
    ) -> Caption:
        found_K = [
            k for k in range(found.tokens_BKT.shape[1]) if math.isfinite(found.log_probabilities_BK[b, k])
        ]
        # A model whose weights blew up finds nothing: its first, empty, hypothesis says so by its
        # log-probability.
        hypotheses = [self.caption_of(found, traces[k], b, k, hw) for k in found_K or [0]]
        return replace(hypotheses[0], alternatives=tuple(hypotheses[1:]))

    def caption_of(
        self, found: Decodings, trace: Trace | None, b: int, k: int, hw: tuple[int, int] | None
    ) -> Caption:
        """Hypothesis k of picture b in words, with what made each of them where a trace is given."""
        ids = found.tokens_BKT[b, k, : int(found.lengths_BK[b, k])].tolist()
        words = tuple(self.vocabulary.tokens(ids))
        attention_Thw, sentinel, concepts, prototypes, contexts = None, None, None, None, {}
        if trace is not None and trace.attention_BTN is not None and hw is not None:
            attention_Thw = (
                trace.attention_BTN[b, : len(words)].float().cpu().numpy().reshape(len(words), *hw)
            )
        if trace is not None and trace.sentinel_BT is not None:
            sentinel = tuple(trace.sentinel_BT[b, : len(words)].tolist())
        if trace is not None and trace.concepts_BN is not None and self.settings.codebook is not None:
            concepts = tuple(self.settings.codebook["words"][row] for row in trace.concepts_BN[b].tolist())
        if trace is not None and trace.prototype_weights_BTLM is not None:
            weights_TM = trace.prototype_weights_BTLM[b, : len(words), -1]
            best_T = weights_TM.topk(min(3, weights_TM.shape[1]))
            prototypes = tuple(
                tuple(zip(indices, values, strict=True))
                for indices, values in zip(best_T.indices.tolist(), best_T.values.tolist(), strict=True)
            )
            known = self.prototype_captions
            contexts = {
                index: known[index] for index in set(best_T.indices.flatten().tolist()) if index in known
            }
        caption = Caption(
            text=self.vocabulary.decode(ids),
            log_probability=float(found.log_probabilities_BK[b, k]),
            tokens=words,
            complete=bool(found.finished_BK[b, k]),
            attention_Thw=attention_Thw,
            sentinel=sentinel,
            concepts=concepts,
            prototypes=prototypes,
            contexts=contexts,
        )
        if trace is None or trace.copies is None:
            return caption
        explained: Caption = look_up("tasks.caption.copying:with_copies")(caption, ids, trace.copies, b, hw)
        return explained

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete. `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """The files of the model folder, without the care for interruptions that `save` takes."""
        settings, weights = portable(self.settings, self.model)
        prototypes, more = prototypes_of(self.model.captioner), {}
        if prototypes is not None:
            concepts = [] if settings.codebook is None else settings.codebook["words"]
            words_of = context_words(self.vocabulary.decode, prototypes.placement, concepts)
            more[PROTOTYPES] = prototypes.describe(words_of)
        facts = self.facts.with_sources(published_commits(self.model))
        words = self.vocabulary.to_json()
        checkpoint.write_model(folder, "caption", settings, facts, weights, words, half, more)

    def push_to_hub(self, repository: str, private: bool = True) -> str:
        """Upload the model to a repository of the hub, named OWNER/NAME; returns the address of the commit.

        Raises ModelError when the hub does not take it.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save(folder)
            return hub.upload(folder, repository, private)


def _joined(parts: Sequence[Perception]) -> Perception:
    """What was made of some pictures after the other, as if of all at once."""
    features = VisualFeatures._make(
        torch.cat(field) if isinstance(field[0], Tensor) else field[0]
        for field in zip(*(part.features for part in parts), strict=True)
    )
    concepts = [one for part in parts for one in part.concepts or ()]
    classes = [part.classes_BNK for part in parts if part.classes_BNK is not None]
    return Perception(features, concepts or None, torch.cat(classes) if classes else None)


def _one(memory: NamedTuple, b: int) -> NamedTuple:
    """The memory of one picture of several."""
    rows = torch.tensor([b], device=next(part for part in memory if isinstance(part, torch.Tensor)).device)
    return select_rows(memory, rows)
