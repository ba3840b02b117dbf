"""CHAIR (Rohrbach et al. 2018): the rate of hallucinated objects in captions.

An object is hallucinated when a caption names it and the picture does not show it. CHAIRi = hallucinated
objects / named objects; CHAIRs = captions with a hallucinated object / captions. Lower is better.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from patchword.errors import DataError
from patchword.metrics.scores import Score

Image = TypeVar("Image", bound=Hashable)
"""How pictures are told apart: by their ids."""


class Mention(NamedTuple):
    """One object that a caption names."""

    start: int
    """Place of its first word."""
    length: int
    """Number of its words."""
    name: str


def mentions(words: Sequence[str], synonyms: Mapping[str, str]) -> list[Mention]:
    """Returns the objects that a caption names, in order; the longest phrase wins.

    `synonyms` maps a word or phrase ("hot dog", with its plural) to an object.
    """
    longest = max((len(phrase.split()) for phrase in synonyms), default=0)
    found, at = [], 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            name = synonyms.get(" ".join(words[at : at + length]))
            if name is not None:
                found.append(Mention(at, length, name))
                at += length
                break
        else:
            at += 1
    return found


def mentioned_objects(words: Sequence[str], synonyms: Mapping[str, str]) -> list[str]:
    """Returns the names of the objects that a caption names, in order, as `mentions` finds them."""
    return [mention.name for mention in mentions(words, synonyms)]


def chair(
    predictions: Mapping[Image, Sequence[str]],
    objects: Mapping[Image, set[str]],
    synonyms: Mapping[str, str],
) -> dict[str, Score]:
    """Returns `CHAIRs` and `CHAIRi`, with the share of hallucinated objects of each caption.

    predictions: image id -> words; objects: image id -> objects in the picture (from instance annotations,
    and from the references for the paper's convention); synonyms as for `mentioned_objects`. Raises DataError
    for an image without annotations.
    """
    if not predictions:
        raise DataError("CHAIR: no predictions given")
    named = vain = captions = 0
    shares: dict[Hashable, float] = {}
    for image, words in predictions.items():
        if image not in objects:
            raise DataError(
                f"CHAIR: image {image} has no object annotations; give an empty set if it shows no known "
                "object"
            )
        mentioned = mentioned_objects(words, synonyms)
        wrong = sum(name not in objects[image] for name in mentioned)
        named, vain, captions = named + len(mentioned), vain + wrong, captions + (wrong > 0)
        shares[image] = wrong / len(mentioned) if mentioned else 0.0
    return {
        "CHAIRs": Score(
            captions / len(predictions), {image: float(share > 0) for image, share in shares.items()}
        ),
        "CHAIRi": Score(vain / named if named else 0.0, shares),
    }
