"""Questions about photographs, answered by two towers whose eyes name ImageNet's classes.

    question -> kind and thing (patterns) -> an answer by what the towers measure, or a refusal

    presence  "is there a dog?"                p(yes) = sigmoid(bias + w_c z + known (b + w_p logit p))
              z: scaled cosine of the picture and the thing's prompts, less that of the mean picture
              p: the classifier's probability of the thing's word; known: 1 for a word of ImageNet, else 0
    what      "what is it?"                    the classifier's likeliest words, where it is sure of one

Weights and bias are fitted on questions made from the captions of training pictures
(`benchmarks/photo_questions.py`). Colours and numbers are refused: nothing here was found to tell them well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.errors import DataError, ModelError
from patchword.tasks.answer.result import Answer, Answers
from patchword.tasks.retrieve.labels import TEMPLATES
from patchword.tasks.retrieve.model import TwoTowerModel
from patchword.text.imagenet import common_words

_LEAST_SHARE = 1e-5
_MOST_WORDS = 3
_PICTURE = r"(?:the|this) (?:picture|photo|photograph|image)"
_ARTICLE = r"(?:an? |any |some |the )?"
_PLACE = rf"(?: (?:here|there|visible|in it|in {_PICTURE}))?"
_KINDS = {
    "presence": re.compile(
        rf"(?:(?:is|are) there {_ARTICLE}|(?:do|can) you see {_ARTICLE}|is (?:this|it|that) an? |"
        rf"does {_PICTURE} (?:show|have|contain) {_ARTICLE})(?P<thing>.+?){_PLACE}"
    ),
    "what": re.compile(
        rf"what(?: is|'s|s| are) (?:(?:it|this|that|these|shown){_PLACE}|in (?:it|{_PICTURE})|"
        r"this (?:thing|object|animal))|what do you see|what does .* show"
    ),
    "colour": re.compile(r"(?:what|which) colou?r\b.*"),
    "count": re.compile(r"how (?:many|much)\b.*"),
}
CAN = f'photographs can be asked "is there a dog?" (a thing in {_MOST_WORDS} words at most) and "what is it?"'


class PhotographQuestion(NamedTuple):
    """A question that can be answered: its kind, and the thing that it is about ("" for "what")."""

    kind: str
    thing: str


def understood(question: str) -> PhotographQuestion:
    """The kind and the thing of a question.

    Raises DataError for any other question, with what can be asked.
    """
    plain = re.sub(r"[\s?.!]+", " ", question.lower()).strip()
    for kind, pattern in _KINDS.items():
        found = pattern.fullmatch(plain)
        if found is None:
            continue
        if kind in ("colour", "count"):
            what = "tell colours" if kind == "colour" else "count"
            raise DataError(f"{question!r}: these models cannot {what}; {CAN}")
        thing = found.groupdict().get("thing") or ""
        if len(thing.split()) <= _MOST_WORDS:
            return PhotographQuestion(kind, thing)
    raise DataError(f"{question!r} is no question that can be answered about a photograph; {CAN}")


def is_understood(question: str) -> bool:
    """Whether photographs can be asked a question."""
    try:
        understood(question)
    except DataError:
        return False
    return True


class PhotographAnswerer:
    """Two towers that answer questions about photographs, in the manner of `AnsweringModel`."""

    def __init__(self, towers: TwoTowerModel) -> None:
        """Raises ModelError for towers that were not fitted to answer, or whose eyes name no classes."""
        found = towers.settings.questions
        if found is None or not hasattr(towers.model.vision, "look"):
            raise ModelError(
                f"{towers.facts.name or 'this model'} answers no questions: take the shipped two-towers, or "
                "a question-answering model"
            )
        self.towers, self.fitted = towers, found

    @property
    def facts(self) -> ModelFacts:
        """What is known about the towers, with a question that they answer."""
        return self.towers.facts.model_copy(update={"example": "is there a dog?"})

    @property
    def preprocessing(self) -> Preprocessing:
        """What the eyes see of a picture."""
        return self.towers.settings.preprocessing

    def ask_each(
        self,
        pictures: Sequence[Picture],
        questions: Sequence[str],
        n_best: int = 1,
        batch: int = 16,
        anyway: bool = False,
    ) -> list[list[Answer]]:
        """Answers the n-th question about the n-th picture; with `anyway` also where the classifier is not
        sure what it shows.

        Raises DataError for a question that cannot be answered, PictureError for a picture that cannot be
        decoded.
        """
        asked = [understood(question) for question in questions]
        answers: list[list[Answer]] = []
        for first in range(0, len(pictures), batch):
            seen = self.look(pictures[first : first + batch])
            answers += [
                self.answers(one, seen, b, anyway)[:n_best]
                for b, one in enumerate(asked[first : first + batch])
            ]
        return answers

    def explain(self, picture: Picture, question: str, n_best: int = 3, anyway: bool = False) -> Answers:
        """The answers to one question. Raises what `ask_each` raises."""
        answers = self.ask_each([picture], [question], n_best, anyway=anyway)[0]
        return Answers(question, tuple(answers), tuple(question.rstrip("?").split()))

    def unknown_words(self, question: str) -> list[str]:
        """No word: the sentence encoder spells every word by its parts."""
        return []

    def cut_off(self, question: str) -> list[str]:
        """Nothing: a question that is understood is short."""
        return []

    @torch.inference_mode()
    def look(self, pictures: Sequence[Picture]) -> PictureEvidence:
        """What the towers make of pictures. Raises PictureError for one that cannot be decoded."""
        vision = self.towers.model.vision
        features, logits = vision.look(self.towers.pixels([open_picture(one) for one in pictures]))
        shares_BK = logits.picture_BK.float().softmax(-1).cpu().numpy()
        vectors_BE = self.towers.model.pictures_of(features).float().cpu().numpy()
        return PictureEvidence(vectors_BE, shares_BK)

    def answers(
        self, asked: PhotographQuestion, seen: PictureEvidence, b: int, anyway: bool = False
    ) -> list[Answer]:
        """Answers about picture b, best first.

        Raises DataError where the classifier is not sure what it shows, unless `anyway`.
        """
        if asked.kind == "what":
            found = _what(seen.shares_BK[b])
            if found[0].probability < self.fitted.sure and not anyway:
                best, share = found[0].text, found[0].probability
                raise DataError(
                    f"nothing in the picture is recognised well enough: likeliest is {best!r} with a "
                    f"probability of {share:.2f}, and {self.fitted.sure:.2f} is needed; insist with 'anyway' "
                    "or ask whether it shows a certain thing"
                )
            return found
        yes = self.presence(asked.thing, seen, b)
        return sorted([Answer("yes", yes), Answer("no", 1 - yes)], key=lambda one: -one.probability)

    def presence(self, thing: str, seen: PictureEvidence, b: int) -> float:
        """Probability that picture b shows a thing, where half of the questions are answered by yes."""
        fitted = self.fitted
        cosine, known, logit = self.signs(thing, seen, b, self._centre_E)
        total = fitted.bias + fitted.cosine * cosine + fitted.known_bias * known + fitted.known * logit
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, total))))

    def signs(
        self, thing: str, seen: PictureEvidence, b: int, centre_E: np.ndarray
    ) -> tuple[float, float, float]:
        """What the probability hangs on: z, whether the classifier has the word, and logit p or 0."""
        z = self._scale * float(self.prompt(thing, TEMPLATES) @ (seen.vectors_BE[b] - centre_E))
        word = known_word(thing)
        if word is None:
            return z, 0.0, 0.0
        share = float(seen.shares_BK[b][list(common_words()[word])].sum())
        share = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
        return z, 1.0, math.log(share / (1 - share))

    def prompt(self, thing: str, templates: Sequence[str]) -> np.ndarray:
        """The unit vector (E,) of a thing's prompts, as for labels."""
        if (thing, tuple(templates)) not in self._prompts:
            named = [template.format(thing) for template in templates]
            mean_E = self.towers.embed_texts(named).mean(0)
            self._prompts[thing, tuple(templates)] = mean_E / np.linalg.norm(mean_E)
        return self._prompts[thing, tuple(templates)]

    @cached_property
    def _prompts(self) -> dict[tuple[str, tuple[str, ...]], np.ndarray]:
        return {}

    @cached_property
    def _centre_E(self) -> np.ndarray:
        return np.array(self.fitted.centre, dtype=np.float32)

    @cached_property
    def _scale(self) -> float:
        return float(self.towers.model.scale().detach())


class PictureEvidence(NamedTuple):
    """What the towers make of B pictures: unit vectors, and the classifier's probabilities."""

    vectors_BE: np.ndarray
    shares_BK: np.ndarray


def known_word(thing: str) -> str | None:
    """The common word of ImageNet's classes that a thing is, in the singular or the plural."""
    words = common_words()
    for word in (thing, thing.removesuffix("s"), thing.removesuffix("es")):
        if word in words:
            return word
    return None


def _what(shares_K: np.ndarray) -> list[Answer]:
    answers = [Answer(word, float(shares_K[list(own)].sum())) for word, own in common_words().items()]
    return sorted(answers, key=lambda one: -one.probability)
