"""Captions that must say certain words: those that a person asks for, and those that the eyes are sure of.

A caption that does not say a word is searched for anew, under the constraint that it does. A picture unlike
all training pictures gets no caption but a sentence of its concepts, marked as unsure (`doubt.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from patchword.constrained import MOST_CONSTRAINTS, constrained_beam_search
from patchword.decode import BeamOptions, explain_tokens
from patchword.errors import ModelError
from patchword.layers.familiarity import mean_patch
from patchword.tasks.caption.concepts import ClassLogits, NamesClasses, concepts_of
from patchword.tasks.caption.doubt import (
    as_guess,
    forms,
    is_far,
    is_unsure,
    least_probability,
    names,
    phrase_of,
    said,
    sayable,
)
from patchword.tasks.caption.model import CaptioningModel, Perception
from patchword.tasks.caption.options import DecodingSettings
from patchword.tasks.caption.result import Caption, PictureConcepts
from patchword.types import VisualFeatures

_LEAST_LENGTH = 8
"""Tokens that a caption which says a wanted word has at least, if the plain one had as many, in models with
limits of doubt (those of before keep to what they said)."""


@torch.inference_mode()
def look(model: CaptioningModel, pixels_BHWC: np.ndarray) -> Perception:
    """Features of pictures, the classes of their cells, and, where the model was calibrated, the concepts of
    each picture and whether it is unlike all training pictures.

    Raises ModelError for a calibrated model whose tower names no classes.
    """
    settings, tower = model.settings.concepts, model.model.tower
    if not isinstance(tower, NamesClasses):
        if settings is None:
            return Perception(model.features(pixels_BHWC), None, None)
        raise ModelError(
            f"the tower of this model ({model.settings.tower.kind}) names no concepts: choose another model"
        )
    pixels_B3HW = torch.from_numpy(model.settings.preprocessing.normalise(pixels_BHWC)).to(model.device)
    return perceived(model, *tower.look(pixels_B3HW))


def perceived(model: CaptioningModel, features: VisualFeatures, logits: ClassLogits) -> Perception:
    """The same from features and classes that are known."""
    settings, familiarity = model.settings.concepts, model.model.familiarity
    if settings is None or familiarity is None:
        return Perception(features, None, logits.cells_BNK)
    distance_B = (familiarity.distance(mean_patch(features)) / familiarity.limit).tolist()
    named = concepts_of(logits.picture_BK, settings)
    concepts = [PictureConcepts(*pair) for pair in zip(named, distance_B, strict=True)]
    return Perception(features, concepts, logits.cells_BNK)


def with_words(
    model: CaptioningModel,
    caption: Caption,
    memory: NamedTuple,
    hw: tuple[int, int] | None,
    decoding: DecodingSettings,
    trace: bool,
    mention: Sequence[str],
    seen: PictureConcepts | None,
) -> Caption:
    """The caption of one picture, or another one that says the words that it must; of a strange picture a
    guess.

    What the plain search found stays as the first alternative. Raises DataError for a word of `mention` that
    the model cannot say.
    """
    settings = model.settings.concepts
    if seen is not None and settings is not None:
        caption = replace(caption, unsure=is_unsure(caption, seen, settings.doubt), named=seen.named)
        if is_far(seen, settings.doubt) and not mention:
            return as_guess(caption, seen, settings)
    words = missing_words(model, caption, mention, seen)
    return _said_anew(model, caption, memory, hw, decoding, trace, words) if words else caption


def missing_words(
    model: CaptioningModel, caption: Caption, mention: Sequence[str], seen: PictureConcepts | None
) -> list[str]:
    """What a caption must say and does not: the words of `mention`, else the sayable words that the eyes are
    sure of, and the likeliest unsaid one where the eyes are to be believed sooner. Words that no caption
    taught have a limit of their own where the settings give one, and only the likeliest of them must be said.
    """
    settings = model.settings.concepts
    wanted = list(dict.fromkeys(mention))
    if not wanted and seen is not None and settings is not None and settings.mention == "confident":
        can_be_said = [one for one in seen.named if sayable(one.word, model.vocabulary, settings.hosts)]
        new = (
            [] if settings.untaught is None else [one for one in can_be_said if not _taught(model, one.word)]
        )
        wanted = [one.word for one in can_be_said if one.probability >= settings.confident and one not in new]
        wanted += [one.word for one in new[:1] if one.probability >= (settings.untaught or 1.0)]
        off_its_ground = seen.distance > 1  # where the eyes are believed sooner, whatever was taught
        unsaid = [
            one
            for one in can_be_said
            if not names(caption.text, one.word) and (off_its_ground or one not in new)
        ]
        if unsaid and unsaid[0].probability >= least_probability(seen, settings):
            wanted.append(unsaid[0].word)
        wanted = list(dict.fromkeys(wanted))
    return [word for word in wanted if not names(caption.text, word)][:MOST_CONSTRAINTS]


def _taught(model: CaptioningModel, word: str) -> bool:
    """Whether the training captions held a word; a copy gate has more words in its vocabulary."""
    copying = getattr(model.model.captioner, "copying", None)
    if copying is None:
        return sayable(word, model.vocabulary, {})
    unknown = model.vocabulary.special.unknown
    said = [model.vocabulary.encode(form) for form in forms(word)]
    return any(all(token != unknown and bool(copying.taught_V[token]) for token in form) for form in said)


def _said_anew(
    model: CaptioningModel,
    caption: Caption,
    memory: NamedTuple,
    hw: tuple[int, int] | None,
    decoding: DecodingSettings,
    trace: bool,
    words: Sequence[str],
) -> Caption:
    settings, vocabulary, captioner = model.settings, model.vocabulary, model.model.captioner
    hosts = {} if settings.concepts is None else settings.concepts.hosts
    phrases = [phrase_of(word, vocabulary, hosts) for word in words]
    alternatives = [phrase.alternatives for phrase in phrases]
    length = decoding.max_length
    doubts = settings.concepts is not None and settings.concepts.doubt is not None
    least = min(len(caption.tokens), length - 1, _LEAST_LENGTH) if doubts else 0
    options = BeamOptions(
        no_repeat_ngram=decoding.no_repeat_ngram, no_stutter=decoding.no_stutter, min_length=least
    )
    found = constrained_beam_search(
        captioner, memory, vocabulary.special, alternatives, decoding.beams, length, options
    )
    explained = None
    if trace:
        with torch.inference_mode():
            explained = explain_tokens(
                captioner, memory, vocabulary.special, found.tokens_BKT[:, 0], found.lengths_BK[:, 0]
            )
    forced = model.caption_of(found, explained, 0, 0, hw)
    tokens = said(forced.tokens, phrases)
    text = forced.text if tokens == forced.tokens else " ".join(tokens)
    kept = replace(caption, text=text, tokens=tokens, alternatives=_kept(caption))
    return replace(
        kept,
        log_probability=forced.log_probability,
        complete=forced.complete,
        attention_Thw=forced.attention_Thw,
        sentinel=forced.sentinel,
        prototypes=forced.prototypes,
        contexts=forced.contexts,
    )


def _kept(caption: Caption) -> tuple[Caption, ...]:
    return (replace(caption, alternatives=()), *caption.alternatives)
