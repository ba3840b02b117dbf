"""What answers questions: a tower, the reader of picture and question behind it, and a sense of the pictures
that they know.
"""

from __future__ import annotations

from typing import Any

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
from patchword.models.pretraining.vilbert import StreamAnswerer
from patchword.tasks.answer.two_streams import TwoStreamsConfig, build_stream_answerer


class AnswerModel(TowerModel):
    """A tower and what answers questions from it: by choice from a list, or word by word; and a sense of what
    pictures it knows.
    """

    def __init__(
        self, tower: nn.Module, answerer: AnswerClassifier | AnswerGenerator | StreamAnswerer
    ) -> None:
        super().__init__(tower)
        self.answerer: Any = answerer  # one of three that offer the same, for which Python has no type
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
        two_streams: TwoStreamsConfig | None = None,
    ) -> AnswerModel:
        """A `generator` is a captioner that words the answers; without it they are chosen among `answers`."""
        built = build_tower(tower)
        return cls.over(built, questions, generator, vocabulary_size, answers, codebook, two_streams)

    @classmethod
    def over(
        cls,
        tower: nn.Module,
        questions: QuestionConfig,
        generator: CaptionerSettings | None,
        vocabulary_size: int,
        answers: int,
        codebook: Codebook | None = None,
        two_streams: TwoStreamsConfig | None = None,
    ) -> AnswerModel:
        """Builds the same over a tower that is given."""
        if two_streams is not None:
            return cls(tower, build_stream_answerer(two_streams, tower.width, answers))
        if generator is None:
            return cls(tower, AnswerClassifier(questions, tower.width, vocabulary_size, answers, codebook))
        encoder = QuestionEncoder(questions, tower.width, vocabulary_size, codebook)
        return cls(
            tower,
            AnswerGenerator(encoder, build_captioner(generator, questions.width, vocabulary_size, None)),
        )
