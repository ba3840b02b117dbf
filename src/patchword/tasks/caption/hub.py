"""Captioners that transformers knows (BLIP, GIT, BLIP-2 and other image-text-to-text models) behind the
interface of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Picture, one_or_many, open_picture
from patchword.errors import ConfigError, ModelError, PictureError
from patchword.hub import find_published
from patchword.tasks.caption.batches import captions_of, computing_in
from patchword.tasks.caption.options import OWN, DecodingOptions
from patchword.tasks.caption.result import Caption, Captions
from patchword.tasks.describe import describe

LONGEST = 30
"""Tokens of a caption where nothing else is asked for; one that is cut there is not `complete`."""


class HubCaptioner:
    """A processor and a model of transformers; captions come from its own `generate`, without a prompt."""

    def __init__(self, model: Any, processor: Any, facts: ModelFacts, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.processor, self.facts, self.device = processor, facts, device

    @classmethod
    def load(cls, name: str, revision: str | None, device: torch.device) -> HubCaptioner:
        """Loads from a folder or a hub id, at one of its revisions; from safetensors only, which hold no
        code.

        Raises ModelError when it cannot be had or is no image-text-to-text model.
        """
        found = find_published(name, revision)
        at = {"revision": found.commit, "local_files_only": found.local}
        try:
            processor = AutoProcessor.from_pretrained(name, **at)
            model, report = AutoModelForImageTextToText.from_pretrained(
                name, use_safetensors=True, output_loading_info=True, **at
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"transformers gives no captioner for {name!r}: {error}") from error
        if report["missing_keys"]:
            first = sorted(str(key) for key in report["missing_keys"])[0]
            raise ModelError(
                f"{name!r} lacks weights of {type(model).__name__} ({first} and others): they would be random"
            )
        description = f"{type(model).__name__} of transformers, from {name}"
        sources = {} if found.commit is None else {name: found.commit}
        return cls(model, processor, ModelFacts(name=name, description=description, sources=sources), device)

    def __repr__(self) -> str:
        return describe(self, type(self.model).__name__)

    @overload
    def caption(  # type: ignore[overload-overlap]  # a path is a sequence of letters as well
        self,
        pictures: Picture,
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = False,
        batch: int = 8,
        options: DecodingOptions = OWN,
    ) -> Caption: ...
    @overload
    def caption(
        self,
        pictures: Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = False,
        batch: int = 8,
        options: DecodingOptions = OWN,
    ) -> Captions: ...
    def caption(
        self,
        pictures: Picture | Sequence[Picture],
        beams: int | None = None,
        n_best: int = 1,
        trace: bool = False,
        batch: int = 8,
        options: DecodingOptions = OWN,
    ) -> Caption | Captions:
        """Captions as `CaptioningModel.caption` does; these models have no trace, so no attention map.

        Captions are cut at `LONGEST` tokens unless `options.max_length` says otherwise.
        Raises ConfigError for words that must be said: transformers' own search takes none.
        """
        if options.mention:
            raise ConfigError(
                "--mention works with Patchword's own captioners: leave it out, or name one of these"
            )
        pictures, single = one_or_many(pictures)
        if single:
            return self.caption(pictures, beams, n_best, trace, batch, options)[0]
        if beams is not None:
            options = replace(options, beams=beams)
        captions = Captions()
        for first in range(0, len(pictures), batch):
            images = [open_picture(picture) for picture in pictures[first : first + batch]]
            with computing_in(options.dtype, self.device):
                captions += self._generate(images, n_best, options)
        return captions

    def captions(
        self,
        pictures: Iterable[Picture],
        options: DecodingOptions = OWN,
        trace: bool = False,
        batch: int = 8,
        unreadable: Callable[[Picture, PictureError], None] | None = None,
    ) -> Iterator[Caption]:
        """Captions a stream, as `CaptioningModel.captions` does."""
        return captions_of(self, pictures, options, trace, batch, unreadable)

    @torch.inference_mode()
    def _generate(self, images: list[Image.Image], n_best: int, options: DecodingOptions) -> list[Caption]:
        inputs = self.processor(images=images, return_tensors="pt").to(self.device)
        beams = max(options.beams or 3, n_best)
        given = {
            "length_penalty": options.length_penalty,
            "no_repeat_ngram_size": options.no_repeat,
            "min_new_tokens": options.min_length or None,
        }
        found = self.model.generate(
            **inputs,
            num_beams=beams,
            num_return_sequences=n_best,
            max_new_tokens=options.max_length or LONGEST,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **{name: value for name, value in given.items() if value is not None},
        )
        totals = self._log_probabilities(found, beams)
        hypotheses = [self._caption(row, total) for row, total in zip(found.sequences, totals, strict=True)]
        results = []
        for first in range(0, len(hypotheses), n_best):
            best, *others = hypotheses[first : first + n_best]
            results.append(Caption(**{**vars(best), "alternatives": tuple(others)}))
        return results

    def _log_probabilities(self, found: Any, beams: int) -> list[float]:
        """Sum over the generated tokens, the end token included."""
        indices = found.beam_indices if beams > 1 else None
        scores_RT = self.model.compute_transition_scores(
            found.sequences, found.scores, indices, normalize_logits=beams == 1
        )
        return scores_RT.masked_fill(~torch.isfinite(scores_RT), 0.0).sum(1).tolist()

    def _caption(self, ids: torch.Tensor, total: float) -> Caption:
        tokenizer = self.processor.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        words = tuple(
            piece
            for piece in tokenizer.convert_ids_to_tokens(ids.tolist())
            if piece not in tokenizer.all_special_tokens
        )
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        return Caption(
            text=text,
            log_probability=total,
            tokens=words,
            complete=any(int(number) in ends for number in ids[1:]),
        )
