"""Measures the maps of `maps.py` against objects of known places: boxes of COCO, masks of drawn scenes.

    pictures with objects -> the model's caption, and the references by teacher forcing
    -> the words that name an object -> a map by every method and baseline -> metrics/pointing

Words that name an object which the picture does not show, and words that the model does not know, are counted
and left out: no map of them can be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from patchword.data.formats.instances import read_instances
from patchword.data.isolated import PictureReader
from patchword.data.scenes import describe, draw, make_scenes, masks
from patchword.data.scenes.sayings import SHAPE_WORDS
from patchword.data.scenes.world import SHAPES
from patchword.errors import DataError, ModelError, PictureError
from patchword.metrics.bootstrap import Interval, grouped_interval
from patchword.metrics.chair import Mention, mentions
from patchword.metrics.files import read_references
from patchword.metrics.pointing import (
    Region,
    area,
    box_region,
    centre_map,
    hit,
    mask_region,
    mass,
    random_map,
    removal_masks,
    uniform_map,
)
from patchword.tasks.caption.maps import METHODS, SeenPicture, ToldCaption
from patchword.tasks.caption.model import CaptioningModel
from patchword.text.words import split_english, with_plurals

CURVE_SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Shares of cells that are taken away or given at the points of the two curves."""
BASELINES = ("centre", "random", "uniform")
SAID, READ = "generated", "reference"
_ASPECT = 0.02
"""A picture may differ this much from the aspect that the annotations count in; more is another picture."""


@dataclass(frozen=True)
class Subject:
    """A picture with known objects: boxes or masks by category, in pixels of `size` (width, height)."""

    name: str
    picture: Path | Image.Image
    size: tuple[int, int]
    boxes: Mapping[str, Sequence[tuple[float, float, float, float]]] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    references: tuple[str, ...] = ()

    def regions(self, seen: tuple[float, float, float, float], hw: tuple[int, int]) -> dict[str, Region]:
        """The region of every category on the cells of a grid over the part that the model sees."""
        found = {name: box_region(boxes, seen, hw) for name, boxes in self.boxes.items()}
        found |= {name: mask_region(masks_KHW, seen, hw) for name, masks_KHW in self.masks.items()}
        # Objects wholly outside the part that the model sees cannot be pointed at.
        return {name: region for name, region in found.items() if region.on_hw.any()}


@dataclass(frozen=True)
class NamedObject:
    """One word or phrase that names an object of the picture, and how well each map fits it."""

    subject: str
    source: str
    """`generated` or `reference`."""
    caption: str
    phrase: str
    category: str
    probability: float
    """Log-probability of the phrase, given the words before it."""
    hits: dict[str, float]
    masses: dict[str, float]
    deletion: dict[str, float] = field(default_factory=dict)
    """Area under the curve, for the first phrase of each category of a picture; else empty."""
    insertion: dict[str, float] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


class Summary(NamedTuple):
    """Mean over words and its 95 % interval over pictures; None where nothing was measured."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Explanations:
    """The result of `patchword explain-check`."""

    words: tuple[NamedObject, ...]
    pictures: int
    in_vain: Counter[str]
    """Categories that generated captions name and the pictures do not show."""
    unknown: Counter[str]
    """Words of references that name an object and that the model does not know, or that come too late."""
    unreadable: tuple[str, ...]
    """Pictures that could not be used, with the reason."""
    methods: tuple[str, ...]

    @property
    def own_methods(self) -> tuple[str, ...]:
        """The methods without the baselines."""
        return tuple(method for method in self.methods if method not in BASELINES)

    def summaries(self, source: str | None = None) -> dict[str, dict[str, Summary]]:
        """Pointing, mass, deletion and insertion by method, over all words or those of one source."""
        chosen = [word for word in self.words if source in (None, word.source)]
        kinds = {"pointing": "hits", "mass": "masses", "deletion": "deletion", "insertion": "insertion"}
        rows: dict[str, dict[str, Summary]] = {method: {} for method in self.methods}
        for method in self.methods:
            for kind, attribute in kinds.items():
                values = [(word.subject, getattr(word, attribute).get(method)) for word in chosen]
                summary = _summary([(subject, value) for subject, value in values if value is not None])
                if summary is not None:
                    rows[method][kind] = summary
        return rows

    def gain(self, method: str, over: str, kind: str = "hits", source: str | None = None) -> Summary | None:
        """How much better a method is than another on the same words, of one source or all: mean of the
        differences."""
        pairs = [
            (word.subject, getattr(word, kind)[method] - getattr(word, kind)[over])
            for word in self.words
            if source in (None, word.source) and method in getattr(word, kind) and over in getattr(word, kind)
        ]
        return _summary(pairs)


def _summary(values: Sequence[tuple[str, float]]) -> Summary | None:
    if not values:
        return None
    groups: dict[str, list[float]] = {}
    for subject, value in values:
        groups.setdefault(subject, []).append(value)
    mean = float(np.mean([value for _, value in values]))
    return Summary(mean, grouped_interval(list(groups.values())))


def annotated_subjects(data: Path, images: Path, captions: Path | None, most: int) -> list[Subject]:
    """Pictures of a COCO instances file that have an object, each with at most `most` captions.

    Raises DataError where a file cannot be used, or no picture of the captions is among those with objects.
    """
    references: dict[str, list[str]] = {} if captions is None else read_references(captions)
    annotated = [one for one in read_instances(data) if one.boxes]
    found = [
        Subject(
            one.file,
            images / one.file,
            one.size,
            boxes=one.boxes,
            references=tuple((references.get(str(one.image_id)) or references.get(one.file) or ())[:most]),
        )
        for one in annotated
    ]
    first_id = annotated[0].image_id if annotated else None
    if not found:
        raise DataError(f"{data}: no picture has an object, so there is nothing to point at")
    if most and references and not any(one.references for one in found):
        raise DataError(
            f"{captions} and {data} have no picture in common: captions belong to a picture by its id or the "
            f"name of its file (for instance {next(iter(references))}, and {found[0].name} of id {first_id})"
        )
    return found


def drawn_subjects(count: int, level: int, size: int, most: int = 5, seed: int = 0) -> list[Subject]:
    """Scenes of the validation split with the exact masks of their shapes and `most` captions.

    A category is a shape.
    """
    scenes = make_scenes(count, level, "val", seed=seed)
    subjects = []
    for scene, pixels_SSC, masks_KSS in zip(scenes, draw(scenes, size), masks(scenes, size), strict=True):
        of_shape: dict[str, list[np.ndarray]] = {}
        for thing, mask_SS in zip(scene.things, masks_KSS, strict=False):
            if mask_SS.any():
                of_shape.setdefault(thing.shape, []).append(mask_SS)
        subjects.append(
            Subject(
                scene.name,
                Image.fromarray(pixels_SSC),
                (size, size),
                masks={shape: np.stack(found) for shape, found in of_shape.items()},
                references=tuple(caption.text for caption in describe(scene, most)),
            )
        )
    return subjects


def shape_synonyms() -> dict[str, str]:
    """Words of drawn scenes' captions by the shape that they name."""
    return with_plurals({word: shape for shape in SHAPES for word in SHAPE_WORDS.get(shape, (shape,))})


def check_explanations(
    model: CaptioningModel,
    subjects: Sequence[Subject],
    synonyms: Mapping[str, str],
    curves: bool = True,
    keep_maps: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Explanations:
    """Measures every method and baseline on the words that name an object.

    Args:
        subjects: pictures with objects, and references where there are any.
        synonyms: word or phrase to category.
        curves: whether deletion and insertion are measured as well, which takes most of the time.
        keep_maps: how many words keep their maps, for a page.
        progress: called with 1 after every picture.

    Raises:
        ModelError: the model's features form no grid.
        DataError: no word of any caption names an annotated object.
    """
    words: list[NamedObject] = []
    counts = _Counts(Counter(), Counter(), [])
    with PictureReader() as reader:
        for number, subject in enumerate(subjects):
            try:
                image = _opened(subject, reader)
            except PictureError as error:
                counts.unreadable.append(" ".join(str(error).split()))
            else:
                generator = np.random.default_rng(number)
                for word in _words_of(model, subject, image, synonyms, curves, generator, counts):
                    words.append(word if keep_maps > len(words) else _without_maps(word))
            if progress is not None:
                progress(1)
    if not words:
        raise DataError(
            f"no word of any caption names an object that is annotated in its picture ({len(subjects)} "
            "pictures): check that images, boxes and captions belong together, and the list of synonyms"
        )
    known = [name for name in (*METHODS, *BASELINES) if any(name in word.hits for word in words)]
    used = len(subjects) - len(counts.unreadable)
    return Explanations(
        tuple(words), used, counts.in_vain, counts.unknown, tuple(counts.unreadable), tuple(known)
    )


class _Counts(NamedTuple):
    in_vain: Counter[str]
    unknown: Counter[str]
    unreadable: list[str]


def _opened(subject: Subject, reader: PictureReader) -> Image.Image:
    image = reader.open(subject.picture)
    given, found = subject.size[0] / subject.size[1], image.width / image.height
    if abs(given / found - 1) > _ASPECT:
        raise PictureError(
            f"{subject.picture}: is {image.width}x{image.height}, and its boxes are for "
            f"{subject.size[0]}x{subject.size[1]}: give the pictures that were annotated"
        )
    return image


def _without_maps(word: NamedObject) -> NamedObject:
    return NamedObject(**{**word.__dict__, "maps": {}})


class _Phrase(NamedTuple):
    """A mention with its tokens."""

    mention: Mention
    text: str
    places: list[int]


def _words_of(
    model: CaptioningModel,
    subject: Subject,
    image: Image.Image,
    synonyms: Mapping[str, str],
    curves: bool,
    generator: np.random.Generator,
    counts: _Counts,
) -> Iterable[NamedObject]:
    preprocessing, vocabulary = model.settings.preprocessing, model.vocabulary
    looked = model.look(preprocessing.apply(image)[None])
    features = looked.features
    if features.hw is None:
        raise ModelError("the patches of this model form no grid: there are no places to point at")
    regions = subject.regions(preprocessing.seen(*subject.size), features.hw)
    classes_NK = None if looked.classes_BNK is None else looked.classes_BNK[0]
    seen = SeenPicture(model.model.captioner, vocabulary.special, features, classes_NK)
    said = model.caption_features(features, trace=False, seen=looked.concepts)[0]
    measured: set[str] = set()
    captions = [(SAID, said.text), *((READ, reference) for reference in subject.references)]
    for source, caption in captions:
        ids = vocabulary.encode(caption)
        phrases = _phrases(model, ids, caption, synonyms, regions, source, counts)
        if not phrases:
            continue
        last = max(place for phrase in phrases for place in phrase.places) + 1
        tokens_T = torch.tensor(ids[:last], device=model.device)
        maps = _maps(model, seen, tokens_T, phrases)
        chances_T = seen.log_probabilities(tokens_T, seen.memory, 1)[0].exp().tolist()
        for number, phrase in enumerate(phrases):
            own = {name: maps_Phw[number] for name, maps_Phw in maps.items()}
            own |= {"centre": centre_map(features.hw), "uniform": uniform_map(features.hw)}
            own["random"] = random_map(features.hw, generator)
            region = regions[phrase.mention.name]
            areas: tuple[dict[str, float], dict[str, float]] = ({}, {})
            if curves and phrase.mention.name not in measured:
                areas = _areas(seen, tokens_T, phrase.places, own)
            measured.add(phrase.mention.name)
            yield NamedObject(
                subject.name,
                source,
                caption,
                phrase.text,
                phrase.mention.name,
                float(np.prod([chances_T[place] for place in phrase.places])),
                {name: hit(map_hw, region) for name, map_hw in own.items()},
                {name: mass(map_hw, region) for name, map_hw in own.items()},
                *areas,
                own,
            )


def _phrases(
    model: CaptioningModel,
    ids: list[int],
    caption: str,
    synonyms: Mapping[str, str],
    regions: Mapping[str, Region],
    source: str,
    counts: _Counts,
) -> list[_Phrase]:
    """The phrases of a caption that name an object of the picture, by words that the model knows."""
    vocabulary = model.vocabulary
    # Words as the caption spells them, so that one which the model does not know still has its name.
    spelling = split_english(caption) if vocabulary.splitter == "english" else vocabulary.tokens(ids)
    words, places = spelled_words(spelling)
    phrases = []
    for mention in mentions(words, synonyms):
        text = " ".join(words[mention.start : mention.start + mention.length])
        own = [place for word in places[mention.start : mention.start + mention.length] for place in word]
        if mention.name not in regions:
            if source == SAID:
                counts.in_vain[mention.name] += 1
        elif max(own) >= model.settings.decoding.max_length or any(
            ids[place] == vocabulary.special.unknown for place in own
        ):
            counts.unknown[text] += 1
        else:
            phrases.append(_Phrase(mention, text, own))
    return phrases


def spelled_words(tokens: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Whole words in lower case with the places of their tokens; subwords mark the end of a word."""
    pieces = any(token.endswith("</w>") for token in tokens)
    words: list[str] = []
    places: list[list[int]] = []
    run: list[int] = []
    for place, token in enumerate(tokens):
        run.append(place)
        if not pieces or token.endswith("</w>"):
            words.append("".join(tokens[one] for one in run).removesuffix("</w>").lower())
            places.append(run)
            run = []
    return words, places


def _maps(
    model: CaptioningModel, seen: SeenPicture, tokens_T: torch.Tensor, phrases: Sequence[_Phrase]
) -> dict[str, np.ndarray]:
    """Maps of every method that has something to say, (P, h, w): the mean over the tokens of each phrase."""
    places = [place for phrase in phrases for place in phrase.places]
    texts = [phrase.text for phrase in phrases for _ in phrase.places]
    told = ToldCaption(seen, tokens_T, places, texts, model.text_space)
    owners = np.array([number for number, phrase in enumerate(phrases) for _ in phrase.places])
    maps = {}
    for name, method in METHODS.items():
        maps_Thw = told.map(method)
        if maps_Thw is not None:
            maps[name] = np.stack([maps_Thw[owners == number].mean(0) for number in range(len(phrases))])
    return maps


def _areas(
    seen: SeenPicture, tokens_T: torch.Tensor, places: list[int], maps: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, float]]:
    """Areas under the phrase's probability by deletion and insertion, for every map that ranks the cells."""
    ranked = {name: map_hw for name, map_hw in maps.items() if map_hw.min() < map_hw.max()}
    left = [np.stack(removal_masks(map_hw, CURVE_SHARES)) for map_hw in ranked.values()]
    if not left:
        return {}, {}
    left_XN = np.concatenate([both_2SN.reshape(-1, both_2SN.shape[-1]) for both_2SN in left])
    distinct_RN, rows_X = np.unique(left_XN, axis=0, return_inverse=True)
    chances_R = seen.phrase_probabilities(tokens_T[: max(places) + 1], places, torch.from_numpy(distinct_RN))
    chances_M2S = chances_R[rows_X.ravel()].reshape(len(ranked), 2, len(CURVE_SHARES))
    areas = [[area(CURVE_SHARES, curve_S) for curve_S in both_2S] for both_2S in chances_M2S]
    return (
        {name: deletion for name, (deletion, _) in zip(ranked, areas, strict=True)},
        {name: insertion for name, (_, insertion) in zip(ranked, areas, strict=True)},
    )
