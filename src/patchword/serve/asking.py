"""Questions about a picture: answers with their probabilities, and where the words of the question looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image
from pydantic import BaseModel

from patchword.checkpoints.facts import ModelFacts
from patchword.errors import DataError
from patchword.serve.abilities import Attention, attention_of
from patchword.serve.refusals import Refusal
from patchword.tasks.answer.result import Answer, Answers

_ANSWERS = 5


class QuestionAnswerer(Protocol):
    """What `patchword.tasks.answer.model.load_answerer` returns.

    Both methods raise DataError for a question without a word that the model knows, and for a picture unlike
    all that it was trained on, unless `anyway`.
    """

    @property
    def facts(self) -> ModelFacts:
        """What its model card says."""
        ...

    def ask_each(
        self,
        pictures: Sequence[Image.Image],
        questions: Sequence[str],
        n_best: int = 1,
        *,
        anyway: bool = False,
    ) -> Sequence[Sequence[Answer]]:
        """For each picture and its question `n_best` answers, best first."""

    def explain(self, picture: Image.Image, question: str, n_best: int = 3, anyway: bool = False) -> Answers:
        """The same for one, with where the words looked."""


class AskOptions(NamedTuple):
    """What may share a batch."""

    trace: bool
    anyway: bool


class AnswerOption(BaseModel):
    """An answer or a label with its probability."""

    text: str
    probability: float


class AskAnswer(BaseModel):
    """Answers, best first, and what led to them."""

    answers: list[AnswerOption]
    tokens: list[str] | None = None
    """The words of the question as the model reads them."""
    attention: Attention | None = None
    """Where each of them looked."""
    looked: list[float] | None = None
    """Share of each patch in what the answer was chosen by, on the same grid."""
    concepts: list[str] | None = None


def answered(
    model: QuestionAnswerer, items: Sequence[tuple[Image.Image, str]], options: AskOptions
) -> list[AskAnswer]:
    """The answers to each question about its picture. Raises `Refusal` for what the model will not answer."""
    try:
        if options.trace:
            return [
                _explained(model, picture, model.explain(picture, question, _ANSWERS, options.anyway))
                for picture, question in items
            ]
        pictures, questions = zip(*items, strict=True)
        found = model.ask_each(pictures, questions, _ANSWERS, anyway=options.anyway)
    except DataError as error:
        do = "ask in other words, ask about another picture, or repeat it with anyway=true"
        raise Refusal(422, "not_answered", str(error), do) from error
    return [AskAnswer(answers=_scored(answers)) for answers in found]


def _scored(answers: Sequence[Answer]) -> list[AnswerOption]:
    return [AnswerOption(text=one.text, probability=one.probability) for one in answers]


def _explained(model: QuestionAnswerer, picture: Image.Image, asked: Answers) -> AskAnswer:
    looked = (
        None
        if asked.answer_attention_hw is None
        else np.round(np.nan_to_num(asked.answer_attention_hw).ravel().astype(float), 4)
    )
    return AskAnswer(
        answers=_scored(asked.answers),
        tokens=list(asked.tokens),
        attention=None if asked.attention_Lhw is None else attention_of(model, asked.attention_Lhw, picture),
        looked=None if looked is None else looked.tolist(),
        concepts=None if asked.concepts is None else list(asked.concepts),
    )
