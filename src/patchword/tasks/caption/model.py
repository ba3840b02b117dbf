"""Captions for pictures, from a photograph to words: the page to read first.

    photo -> data/pictures -> tower -> captioner.encode -> decode -> vocabulary -> Caption

`load` gives a `CaptioningModel`; `model.caption(...)` goes through these steps in order.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import model_card, portable
from patchword.composed import CaptionerSettings, CaptionModel, TowerSettings, prototypes_of
from patchword.constrained import MOST_CONSTRAINTS, constrained_beam_search
from patchword.data.captions import Inputs
from patchword.data.pictures import Picture, Preprocessing, open_picture, seen_part
from patchword.decode import Decodings, beam_search, explain_tokens, greedy_steps, select_rows
from patchword.html.pictures import small_jpeg
from patchword.layers.familiarity import mean_patch
from patchword.lookup import look_up
from patchword.tasks.caption.concepts import (
    ConceptSettings,
    NamesClasses,
    concepts_of,
    guess,
    names,
    phrase_of,
    said,
    sayable,
)
from patchword.tasks.caption.prototypes import context_words, write_prototypes
from patchword.tasks.caption.result import Caption, Captions, Concept
from patchword.tasks.describe import describe
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.types import Trace, VisualFeatures


class DecodingSettings(BaseModel, extra="forbid", frozen=True):
    """How captions are searched for where the caller does not say."""

    beams: int = Field(3, gt=0, description="hypotheses that the search follows; 1 is greedy")
    max_length: int = Field(20, gt=1, description="longest caption in tokens, the end token included")
    length_penalty: float = Field(0.0, ge=0, description="0: sum of log-probabilities decides; 1: their mean")
    no_repeat_ngram: int = Field(0, ge=0, description="no n words in a row occur twice; 0: allowed")


class ModelSettings(BaseModel, extra="forbid", frozen=True):
    """What config.json of a captioning model says beside the facts about its training."""

    tower: TowerSettings
    captioner: CaptionerSettings
    preprocessing: Preprocessing
    decoding: DecodingSettings
    vocabulary_size: int
    tower_sha256: str | None = None
    """Digest of a frozen public tower that the folder names by id and revision instead of holding its weights."""
    concepts: ConceptSettings | None = None
    """What is known about the concepts that the tower names (`patchword concepts`); None: nothing is said about them."""
    codebook: dict[str, Any] | None = None
    """Words, templates and tower of the codebook, for models with region alignment; its embeddings are among the weights."""


class PictureConcepts(NamedTuple):
    """What the tower names in a picture, and whether the picture is unlike all training pictures."""

    named: tuple[Concept, ...]
    unsure: bool


class Looked(NamedTuple):
    """What a model's eyes make of B pictures."""

    features: VisualFeatures
    concepts: list[PictureConcepts] | None
    """None where the model knows no concepts."""
    classes_BNK: Tensor | None
    """Logits of the tower's classes at each cell; None for a tower that names none."""


class CaptioningModel:
    """A tower, a captioner, a vocabulary and the preprocessing that belongs to them."""

    def __init__(
        self,
        model: CaptionModel,
        settings: ModelSettings,
        vocabulary: Vocabulary | Subwords,
        card: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.card, self.device = settings, vocabulary, card, device

    def __repr__(self) -> str:
        kinds = f"{self.settings.captioner.kind} over {self.settings.tower.kind}"
        return describe(self, kinds, f"{self.vocabulary.size:,} words")

    @property
    def text_space(self) -> Any:
        """The words of region alignment and the tower's classes in one text space (`maps.TextSpace`); None without them."""
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
        mention: Sequence[str] = (),
    ) -> Caption: ...
    @overload
    def caption(
        self,
        pictures: Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        batch: int = 16,
        mention: Sequence[str] = (),
    ) -> Captions: ...
    def caption(
        self,
        pictures: Picture | Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        batch: int = 16,
        mention: Sequence[str] = (),
    ) -> Caption | Captions:
        """Caption one picture, or a list of them.

        Args:
            pictures: path, PIL image or array (H, W, 3), or a list of these.
            beams: hypotheses of the search; the model's own setting where left out.
            n_best: how many hypotheses come back; all but the best as `alternatives`.
            trace: whether the attention maps are computed, and a small copy of the picture is kept with them.
            mention: words that every caption must say; without them the model's own setting decides whether what
                its eyes are sure of must be said.

        Returns:
            A Caption for one picture, a list for a list, in its order.

        Raises:
            PictureError: a picture that cannot be decoded, with its name and the reason.
            DataError: a word of `mention` that the model cannot say.
        """
        if isinstance(pictures, (str, Path, Image.Image, np.ndarray)):
            return self.caption([pictures], beams, n_best, trace, batch, mention)[0]
        captions = Captions()
        for first in range(0, len(pictures), batch):
            images = [open_picture(picture) for picture in pictures[first : first + batch]]
            pixels_BHWC = np.stack([self.settings.preprocessing.apply(image) for image in images])
            looked = self.look(pixels_BHWC)
            found = self.caption_features(looked.features, beams, n_best, trace, mention, looked.concepts)
            captions += (
                [
                    self._shown(one, image, looked, b)
                    for b, (one, image) in enumerate(zip(found, images, strict=True))
                ]
                if trace
                else found
            )
        return captions

    def _shown(self, caption: Caption, picture: Image.Image, looked: Looked, b: int) -> Caption:
        """The caption of picture b with what a page shows: the picture, and under each word the map that measures best."""
        seen = seen_part(picture, self.settings.preprocessing.fit, self.settings.preprocessing.hw)
        caption = replace(caption, picture=small_jpeg(seen))
        if self.text_space is None or looked.classes_BNK is None:
            return caption
        best: Caption = look_up("tasks.caption.maps:with_best_maps")(
            caption, self.text_space, looked.classes_BNK[b], looked.features.hw
        )
        return best

    def stream(self, picture: Picture, trace: bool = False) -> Generator[str, None, Caption]:
        """The words of one picture's caption, each as soon as it is known: greedy search, for a search with beams knows its first word
        only when it has ended. The generator's return value is the whole Caption.

        Raises PictureError when the picture cannot be decoded.
        """
        image = open_picture(picture)
        looked = self.look(self.settings.preprocessing.apply(image)[None])
        features = looked.features
        decoding, captioner, special = self.settings.decoding, self.model.captioner, self.vocabulary.special
        with torch.inference_mode():
            memory = captioner.encode(features)
        said, found = 0, None
        for found in greedy_steps(captioner, memory, special, decoding.max_length, decoding.no_repeat_ngram):
            words = self.vocabulary.tokens(found.tokens_BKT[0, 0].tolist())
            yield from words[said:]
            said = len(words)
        if not trace:
            return self._caption(found, None, 0, 0, features.hw)
        with torch.inference_mode():
            explained = explain_tokens(
                captioner, memory, special, found.tokens_BKT[:, 0], found.lengths_BK[:, 0]
            )
        return self._shown(self._caption(found, explained, 0, 0, features.hw), image, looked, 0)

    @torch.inference_mode()
    def features(self, pixels_BHWC: np.ndarray) -> VisualFeatures:
        """The tower's features of pictures that went through the preprocessing's geometry (uint8)."""
        pixels_B3HW = torch.from_numpy(self.settings.preprocessing.normalise(pixels_BHWC)).to(self.device)
        return self.model.features(Inputs(pixels_B3HW=pixels_B3HW))

    @torch.inference_mode()
    def look(self, pixels_BHWC: np.ndarray) -> Looked:
        """As `features`, and of each picture what the tower names and whether it is like the training pictures."""
        settings, tower, familiarity = self.settings.concepts, self.model.tower, self.model.familiarity
        knows = settings is not None and familiarity is not None
        if not isinstance(tower, NamesClasses) or not (knows or tower.text_space):
            return Looked(self.features(pixels_BHWC), None, None)
        pixels_B3HW = torch.from_numpy(self.settings.preprocessing.normalise(pixels_BHWC)).to(self.device)
        features, logits = tower.look(pixels_B3HW)
        concepts = None
        if settings is not None and familiarity is not None:
            unsure_B = (familiarity.distance(mean_patch(features)) > familiarity.limit).tolist()
            named = concepts_of(logits.picture_BK, settings)
            concepts = [PictureConcepts(*pair) for pair in zip(named, unsure_B, strict=True)]
        return Looked(features, concepts, logits.cells_BNK)

    @torch.inference_mode()
    def caption_features(
        self,
        features: VisualFeatures,
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = True,
        mention: Sequence[str] = (),
        seen: Sequence[PictureConcepts] | None = None,
    ) -> list[Caption]:
        """Search and words for features of B pictures; `seen` is what `look` says of them.

        Raises DataError for a word of `mention` that the model cannot say.
        """
        decoding, captioner, special = self.settings.decoding, self.model.captioner, self.vocabulary.special
        memory = captioner.encode(features)
        width = max(decoding.beams if beams is None else beams, n_best)
        found = beam_search(
            captioner,
            memory,
            special,
            width,
            decoding.max_length,
            decoding.length_penalty,
            n_best,
            decoding.no_repeat_ngram,
        )
        traces: list[Trace | None] = [None] * n_best
        if trace:
            for k in range(n_best):
                traces[k] = explain_tokens(
                    captioner, memory, special, found.tokens_BKT[:, k], found.lengths_BK[:, k].clamp(min=1)
                )
        captions = [self._captions_of(found, traces, b, features.hw) for b in range(len(found.tokens_BKT))]
        return [
            self._with_words(
                caption,
                select_rows(memory, torch.tensor([b], device=self.device)),
                features.hw,
                width,
                trace,
                mention,
                one,
            )
            for b, (caption, one) in enumerate(zip(captions, seen or [None] * len(captions), strict=True))
        ]

    def _with_words(
        self,
        caption: Caption,
        memory: NamedTuple,
        hw: tuple[int, int] | None,
        beams: int,
        trace: bool,
        mention: Sequence[str],
        seen: PictureConcepts | None,
    ) -> Caption:
        """The caption, or another one that says the words that it must; of a strange picture a guess by its concepts."""
        settings = self.settings.concepts
        wanted = list(dict.fromkeys(mention))
        if seen is not None and settings is not None:
            caption = replace(caption, unsure=seen.unsure, named=seen.named)
            if seen.unsure and not wanted:
                text = guess(seen.named, settings)
                return replace(
                    caption, text=text, tokens=tuple(text.split()), attention_Thw=None, sentinel=None, prototypes=None,
                    alternatives=(caption, *caption.alternatives),
                )  # fmt: skip
            if settings.mention == "confident" and not wanted:
                wanted = [one.word for one in seen.named if one.probability >= settings.confident]
        wanted = [word for word in wanted if not names(caption.text, word)][:MOST_CONSTRAINTS]
        hosts = {} if settings is None else settings.hosts
        if not mention:
            wanted = [word for word in wanted if sayable(word, self.vocabulary, hosts)]
        if not wanted:
            return caption
        phrases = [phrase_of(word, self.vocabulary, hosts) for word in wanted]
        decoding, special, captioner = self.settings.decoding, self.vocabulary.special, self.model.captioner
        found = constrained_beam_search(
            captioner,
            memory,
            special,
            [phrase.alternatives for phrase in phrases],
            beams,
            decoding.max_length,
            decoding.no_repeat_ngram,
        )
        explained = None
        if trace:
            explained = explain_tokens(
                captioner, memory, special, found.tokens_BKT[:, 0], found.lengths_BK[:, 0]
            )
        forced = self._caption(found, explained, 0, 0, hw)
        words = said(forced.tokens, phrases)
        text = forced.text if words == forced.tokens else " ".join(words)
        kept = (replace(caption, alternatives=()), *caption.alternatives)
        return replace(
            forced,
            text=text,
            tokens=words,
            concepts=caption.concepts,
            unsure=caption.unsure,
            named=caption.named,
            alternatives=kept,
        )

    def _captions_of(
        self, found: Decodings, traces: list[Trace | None], b: int, hw: tuple[int, int] | None
    ) -> Caption:
        found_K = [
            k for k in range(found.tokens_BKT.shape[1]) if math.isfinite(found.log_probabilities_BK[b, k])
        ]
        # A model whose weights blew up finds nothing: its first, empty, hypothesis says so by its log-probability.
        hypotheses = [self._caption(found, traces[k], b, k, hw) for k in found_K or [0]]
        return replace(hypotheses[0], alternatives=tuple(hypotheses[1:]))

    def _caption(
        self, found: Decodings, trace: Trace | None, b: int, k: int, hw: tuple[int, int] | None
    ) -> Caption:
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
            known = self.card.get("prototype_captions", {})
            contexts = {
                index: tuple(known[str(index)])
                for index in set(best_T.indices.flatten().tolist())
                if str(index) in known
            }
        return Caption(
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

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete. `half` stores fp16."""
        checkpoint.write_model_atomically(Path(folder), lambda partial: self.write(partial, half))

    def write(self, folder: Path, half: bool = False) -> None:
        """The files of the model folder, without the care for interruptions that `save` takes."""
        settings, weights = portable(self.settings, self.model)
        card = {key: value for key, value in self.card.items() if key != "prototype_captions"}
        config = {"task": "caption", **card, **settings.model_dump(mode="json")}
        checkpoint.write_model(folder, config, weights, self.vocabulary.to_json(), model_card(card), half)
        prototypes = prototypes_of(self.model.captioner)
        if prototypes is not None:
            concepts = [] if settings.codebook is None else settings.codebook["words"]
            words_of = context_words(self.vocabulary.decode, prototypes.placement, concepts)
            write_prototypes(folder, prototypes.describe(words_of))

    def push_to_hub(self, repository: str, private: bool = True) -> str:
        """Upload the model folder to a hub repository; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save(folder)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))
