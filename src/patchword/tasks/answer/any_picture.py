"""Questions about any picture: a model of drawings answers about drawings, two towers about photographs.

A picture is a drawing where it lies among the training pictures of the drawings' model
(layers/familiarity.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.errors import ModelError
from patchword.layers.familiarity import mean_patch
from patchword.tasks.answer.model import AnsweringModel, load_answerer
from patchword.tasks.answer.photographs import PhotographAnswerer, is_understood
from patchword.tasks.answer.result import Answer, Answers
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.table import task_of

DRAWINGS, PHOTOGRAPHS = "easy-vqa", "two-towers"


class AnyPictureAnswerer:
    """Chooses for each picture who answers, in the manner of `AnsweringModel`."""

    def __init__(self, drawings: AnsweringModel, photographs: PhotographAnswerer) -> None:
        self.drawings, self.photographs = drawings, photographs
        self._last: AnsweringModel | PhotographAnswerer = photographs

    @property
    def facts(self) -> ModelFacts:
        """What is known about who answers for photographs, whose questions most pictures get."""
        return self.photographs.facts

    @property
    def preprocessing(self) -> Preprocessing:
        """What of the last picture was seen."""
        return preprocessing_of(self._last)

    def ask_each(
        self, pictures: Sequence[Picture], questions: Sequence[str], n_best: int = 1, *, anyway: bool = False
    ) -> list[list[Answer]]:
        """Answers the n-th question about the n-th picture, and raises what the two raise."""
        return [
            self.who(picture, question, anyway).ask_each([picture], [question], n_best, anyway=anyway)[0]
            for picture, question in zip(map(open_picture, pictures), questions, strict=True)
        ]

    def explain(self, picture: Picture, question: str, n_best: int = 3, anyway: bool = False) -> Answers:
        """As `AnsweringModel.explain`, and raises what the two raise."""
        picture = open_picture(picture)
        return self.who(picture, question, anyway).explain(picture, question, n_best, anyway)

    def who(self, picture: Picture, question: str, anyway: bool) -> AnsweringModel | PhotographAnswerer:
        """Who answers a question about a picture; with `anyway` the model of drawings is also asked what
        photographs cannot be asked.

        Raises PictureError for a picture that cannot be decoded.
        """
        features = self.drawings.features([open_picture(picture)])
        familiarity = self.drawings.model.familiarity
        is_drawing = bool(familiarity.distance(mean_patch(features))[0] <= familiarity.limit)
        if not is_drawing and anyway:
            is_drawing = not is_understood(question)
        self._last = self.drawings if is_drawing else self.photographs
        return self._last

    def unknown_words(self, question: str) -> list[str]:
        """The words of a question that the one who answered last never learnt."""
        return self._last.unknown_words(question)

    def cut_off(self, question: str) -> list[str]:
        """What the one who answered last did not read of a long question."""
        return self._last.cut_off(question)


def preprocessing_of(answerer: AnsweringModel | PhotographAnswerer | AnyPictureAnswerer) -> Preprocessing:
    """What an answerer sees of a picture."""
    return answerer.settings.preprocessing if isinstance(answerer, AnsweringModel) else answerer.preprocessing


def load_any(
    name: str | Path | None, device: str | None = None
) -> AnsweringModel | PhotographAnswerer | AnyPictureAnswerer:
    """Who answers questions: a question-answering model, two towers for photographs, or without a name both
    shipped ones, each for its kind of picture.

    Raises ModelError for a model that answers no questions.
    """
    if name is None:
        towers = load_two_towers(PHOTOGRAPHS, device)
        return AnyPictureAnswerer(load_answerer(DRAWINGS, device), PhotographAnswerer(towers))
    task = task_of(name)
    if task == "answer":
        return load_answerer(name, device)
    if task != "retrieve":
        raise ModelError(
            f"{name} is a model for {task!r}: give one that answers questions, or two towers for photographs"
        )
    return PhotographAnswerer(load_two_towers(name, device))
