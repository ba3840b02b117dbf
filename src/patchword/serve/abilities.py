"""What the service needs of the objects that do the work, and how their answers look in JSON."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from pydantic import BaseModel

from patchword.checkpoints.facts import ModelFacts
from patchword.data.isolated import Upright
from patchword.data.pictures import seen_box
from patchword.tasks.caption.page import shares
from patchword.tasks.caption.result import Caption


class PictureCaptioner(Protocol):
    """What `patchword.load` returns."""

    facts: ModelFacts

    def caption(
        self, pictures: list[Image.Image], beams: int = 3, n_best: int = 1, trace: bool = False
    ) -> list[Caption]: ...


@runtime_checkable
class WordStreamer(Protocol):
    """A captioning model that can give its words one by one (greedy search)."""

    def stream(self, picture: Image.Image, trace: bool = False) -> Generator[str, None, Caption]:
        """Words as they are made; the generator's return value is the whole caption."""


class Query(NamedTuple):
    """A text as a search asks with it."""

    vector_E: np.ndarray
    remarks: tuple[str, ...] = ()
    """What a person should know of the text: words that the model does not know, and what is cut."""


class Hit(NamedTuple):
    """A picture that an index found."""

    name: str
    score: float
    key: str
    """Under which `PictureFinder.thumbnail` gives a small copy: 64 hexadecimal digits."""


class PictureFinder(Protocol):
    """Search by text."""

    def read(self, texts: Sequence[str]) -> Sequence[Query]:
        """Texts as vectors; runs in the thread of the model."""

    def nearest(self, query: Query, k: int) -> Sequence[Hit]:
        """The k nearest pictures, best first; runs beside the model, in several threads."""

    def thumbnail(self, key: str) -> bytes | None:
        """A small copy of a picture as a JPEG, or None where it is not to be had; runs beside the model, in
        several threads."""


class PictureLabeller(Protocol):
    """Labels of a picture."""

    def label(self, picture: Image.Image, labels: Sequence[str]) -> Sequence[tuple[str, float]]:
        """The labels with their probabilities, best first."""


class Attention(BaseModel):
    """Where each word looked."""

    rows: int
    columns: int
    weights: list[list[float]]
    """Per word the share of each patch, row by row."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the part of the picture that the grid covers, as shares of its width and
    height."""
    maps: list[str] = []
    """Per word the map that its weights are: "class_activation", "attention" or "none"; empty: attention for
    all."""


class Prototype(BaseModel):
    """A memory prototype that took part in a word."""

    index: int
    weight: float
    captions: list[str] = []
    """Its nearest training contexts, where the model knows them."""


class Hypothesis(BaseModel):
    """One caption of several."""

    caption: str
    log_probability: float | None
    share: float
    """Probability among the hypotheses returned."""
    complete: bool


class CaptionAnswer(BaseModel):
    """A caption, and what made it."""

    model: str
    caption: str
    log_probability: float | None
    complete: bool
    unsure: bool | None = None
    """True where the picture is unlike the training pictures or the caption is not to be trusted."""
    tokens: list[str]
    width: int
    height: int
    attention: Attention | None = None
    sentinel: list[float] | None = None
    concepts: list[str] | None = None
    prototypes: list[list[Prototype]] | None = None
    hypotheses: list[Hypothesis]
    """All of them, the caption first."""


def caption_answer(
    name: str, model: PictureCaptioner, caption: Caption, picture: Upright, trace: bool
) -> CaptionAnswer:
    """A caption as the service sends it; what made each word only where `trace` was asked for."""
    everyone = [caption, *caption.alternatives]
    hypotheses = [
        Hypothesis(
            caption=one.text, log_probability=_finite(one.log_probability), share=share, complete=one.complete
        )
        for one, share in zip(everyone, shares(everyone), strict=True)
    ]
    answer = CaptionAnswer(
        model=name,
        caption=caption.text,
        log_probability=_finite(caption.log_probability),
        complete=caption.complete,
        unsure=caption.unsure,
        tokens=list(caption.tokens),
        width=picture.width,
        height=picture.height,
        hypotheses=hypotheses,
    )
    if not trace:
        return answer
    return answer.model_copy(
        update={
            "attention": None
            if caption.shown_Thw is None
            else attention_of(model, caption.shown_Thw, picture, caption.map_names),
            "sentinel": None
            if caption.sentinel is None
            else [round(float(share), 4) for share in caption.sentinel],
            "concepts": None if caption.concepts is None else list(caption.concepts),
            "prototypes": None
            if caption.prototypes is None
            else [_spoke(caption, pairs) for pairs in caption.prototypes],
        }
    )


def _spoke(caption: Caption, pairs: Sequence[tuple[int, float]]) -> list[Prototype]:
    """Those without a part in the word (dead ones fill up the list of a small memory) are left out."""
    return [
        Prototype(index=index, weight=round(float(weight), 4), captions=list(caption.contexts.get(index, ())))
        for index, weight in pairs
        if weight > 0
    ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def attention_of(
    model: Any, maps_Thw: np.ndarray, picture: Image.Image | Upright, names: Sequence[str] = ()
) -> Attention:
    """Maps of words as the service sends them, with their names; what is not finite counts as 0."""
    words, rows, columns = maps_Thw.shape
    weights = np.nan_to_num(maps_Thw.reshape(words, rows * columns), nan=0.0, posinf=0.0, neginf=0.0)
    shares = [[round(float(weight), 4) for weight in word] for word in weights]
    return Attention(rows=rows, columns=columns, weights=shares, box=_box(model, picture), maps=list(names))


def _box(model: Any, picture: Image.Image | Upright) -> tuple[float, float, float, float]:
    """A model without recorded preprocessing (one of the hub) is taken to see the whole picture."""
    preprocessing = getattr(getattr(model, "settings", None), "preprocessing", None)
    if preprocessing is None:
        return 0.0, 0.0, 1.0, 1.0
    return seen_box(picture.width, picture.height, preprocessing)
