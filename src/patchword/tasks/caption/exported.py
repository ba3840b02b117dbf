"""An exported captioner, run by onnxruntime without torch; `tasks/caption/export.py` writes its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from patchword.checkpoints import folder as checkpoint
from patchword.config import validate
from patchword.data.pictures import Picture, Preprocessing, one_or_many, open_picture
from patchword.decode_numpy import Found, SearchOptions, beam_search
from patchword.errors import ConfigError
from patchword.onnx_graphs import Graph
from patchword.tasks.caption.doubt import as_guess, is_far, is_unsure, listed
from patchword.tasks.caption.options import OWN, ConceptSettings, DecodingOptions, DecodingSettings
from patchword.tasks.caption.result import Caption, Captions, PictureConcepts
from patchword.text.imagenet import common_words
from patchword.text.subwords import vocabulary_from_json

PICTURES, WORDS = "pictures.onnx", "words.onnx"
CHANCES, DISTANCE = "chances", "distance"
MEMORY, STATE, NEXT = "memory_{}", "state_{}", "next_{}"
"""Names of the tensors that the graphs hand to one another: what was seen, what was said, and what was said
with one token more."""


class ExportedCaptioner:
    """Takes the place of a captioning model: the captions of its plain search, marked and replaced where
    they cannot be trusted as the model does it, without traces."""

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        """Raises ModelError for a folder that is no export of a captioner; `threads` of 0 lets onnxruntime
        choose."""
        folder = Path(folder)
        needed = ("name", "longest", "preprocessing", "decoding", "concepts")
        facts = checkpoint.read_exported(folder, needed, "a captioner is")
        self.name, self.longest = str(facts["name"]), facts["longest"]
        where = folder / checkpoint.EXPORTED
        self.preprocessing = validate(facts["preprocessing"], Preprocessing, f"{where}, preprocessing")
        self.decoding = validate(facts["decoding"], DecodingSettings, f"{where}, decoding")
        concepts = facts["concepts"]
        self.concepts = (
            None if concepts is None else validate(concepts, ConceptSettings, f"{where}, concepts")
        )
        self.vocabulary = vocabulary_from_json(checkpoint.read_vocabulary(folder))
        self._pictures, self._words = (Graph(folder / name, threads) for name in (PICTURES, WORDS))

    def caption(
        self,
        pictures: Picture | Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = False,
        batch: int = 16,
        options: DecodingOptions = OWN,
    ) -> Any:
        """Captions as `CaptioningModel.caption` gives them, one for one picture, a list for a list.

        Raises ConfigError for what an export cannot do (`mention`, `dtype`, more than one hypothesis), and
        PictureError.
        """
        found, single = one_or_many(pictures)
        if options.mention or options.dtype is not None or n_best != 1:
            raise ConfigError(
                "an exported captioner takes no words that must be said, computes in its own numbers and "
                "gives one hypothesis: use the model that it was made of"
            )
        options = options if beams is None else replace(options, beams=beams)
        decoding = self.decoding.changed(options, self.longest)
        search = SearchOptions(**decoding.model_dump(), min_length=options.min_length)
        captions = Captions()
        for first in range(0, len(found), batch):
            images = [open_picture(picture) for picture in found[first : first + batch]]
            captions += self._captions_of(np.stack([self.preprocessing.apply(one) for one in images]), search)
        return captions[0] if single else captions

    def _captions_of(self, pixels_BHWC: np.ndarray, search: SearchOptions) -> list[Caption]:
        seen = self._pictures.run({"pixels": self.preprocessing.normalise(pixels_BHWC)})
        states = sum(name.startswith("state_") for name in self._words.inputs)
        said = [seen.pop(STATE.format(n)).repeat(search.beams, axis=0) for n in range(states)]

        def step(tokens_R: np.ndarray, rows_R: np.ndarray) -> np.ndarray:
            given = {STATE.format(n): tensor[rows_R] for n, tensor in enumerate(said)}
            out = self._words.run({"tokens": tokens_R.astype(np.int64), **seen, **given})
            said[:] = [out[NEXT.format(n)] for n in range(states)]
            return out["logits"]

        found = beam_search(step, len(pixels_BHWC), self.vocabulary.special, search)
        captions = [self._told(found, b) for b in range(len(pixels_BHWC))]
        if self.concepts is None:
            return captions
        words = list(common_words())
        return [
            self._doubted(caption, PictureConcepts(listed(chances_W, words, self.concepts), float(distance)))
            for caption, chances_W, distance in zip(captions, seen[CHANCES], seen[DISTANCE], strict=True)
        ]

    def _doubted(self, caption: Caption, seen: PictureConcepts) -> Caption:
        assert self.concepts is not None
        caption = replace(caption, unsure=is_unsure(caption, seen, self.concepts.doubt), named=seen.named)
        far = is_far(seen, self.concepts.doubt)
        return as_guess(caption, seen, self.concepts) if far else caption

    def _told(self, found: Found, b: int) -> Caption:
        ids = found.tokens[b]
        return Caption(
            text=self.vocabulary.decode(ids),
            log_probability=float(found.log_probabilities_B[b]),
            tokens=tuple(self.vocabulary.tokens(ids)),
            complete=bool(found.finished_B[b]),
        )
