"""What answers questions: a tower, the reader of picture and question behind it, and a sense of the pictures
that they know.
"""

from __future__ import annotations

from torch import nn

from patchword.composed import CaptionerSettings, TowerModel, TowerSettings, build_captioner, build_tower
from patchword.layers.codebook import Codebook
from patchword.layers.familiarity import Familiarity
from patchword.models.fusion.question_answering import (
    AnswerClassifier,
    AnswerGenerator,
    QuestionConfig,
    QuestionEncoder,
)


class AnswerModel(TowerModel):
    """A tower and what answers questions from it: by choice from a list, or word by word; and a sense of what
    pictures it knows.
    """

    def __init__(self, tower: nn.Module, answerer: AnswerClassifier | AnswerGenerator) -> None:
        super().__init__(tower)
        self.answerer = answerer
        self.familiarity = Familiarity(tower.width)

    @classmethod
    def build(
        cls,
        tower: TowerSettings,
        questions: QuestionConfig,
        generator: CaptionerSettings | None,
        vocabulary_size: int,
        answers: int,
        codebook: Codebook | None = None,
    ) -> AnswerModel:
        """A `generator` is a captioner that words the answers; without it they are chosen among `answers`."""
        return cls.over(build_tower(tower), questions, generator, vocabulary_size, answers, codebook)

    @classmethod
    def over(
        cls,
        tower: nn.Module,
        questions: QuestionConfig,
        generator: CaptionerSettings | None,
        vocabulary_size: int,
        answers: int,
        codebook: Codebook | None = None,
    ) -> AnswerModel:
        """Builds the same over a tower that is given."""
        if generator is None:
            return cls(tower, AnswerClassifier(questions, tower.width, vocabulary_size, answers, codebook))
        encoder = QuestionEncoder(questions, tower.width, vocabulary_size, codebook)
        return cls(
            tower,
            AnswerGenerator(encoder, build_captioner(generator, questions.width, vocabulary_size, None)),
        )
