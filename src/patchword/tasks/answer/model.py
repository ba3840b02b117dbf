"""Question answering on pictures.

    photo -> data/pictures -> tower -> encoder.look --.
    question -> vocabulary --------------------> encoder.read -> choice from a list, or decode -> Answer

`load_answerer` returns an `AnsweringModel`; `model.ask("photo.jpg", "what color is the shape?")` runs these
steps in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import (
    build_over_tower,
    find_model,
    portable,
    published_commits,
    read_settings,
    read_vocabulary,
)
from patchword.composed import CaptionerSettings, TowerSettings
from patchword.data.captions import Inputs, padded
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.data.questions import Targets, gather
from patchword.data.records import QuestionRecord
from patchword.decode import BeamOptions, beam_search
from patchword.device import choose_device
from patchword.errors import DataError, PictureError
from patchword.layers.codebook import Codebook
from patchword.layers.familiarity import mean_patch
from patchword.models.fusion.question_answering import QuestionConfig, QuestionEncoding
from patchword.tasks.answer.composed import AnswerModel
from patchword.tasks.answer.one_or_each import one_or_each
from patchword.tasks.answer.result import Answer, Answers
from patchword.tasks.answer.two_streams import TwoStreamsConfig
from patchword.tasks.describe import describe
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords, remarks_on_length
from patchword.text.words import Vocabulary, refuse_no_text
from patchword.types import Captioner, VisualFeatures

_BEAMS = 3


class AnswerSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a question-answering model, apart from the facts about its training."""

    tower: TowerSettings
    answerer: QuestionConfig
    generator: CaptionerSettings | None = None
    two_streams: TwoStreamsConfig | None = None
    targets: Targets
    """What the model was trained on: "answer" gives probabilities over the list, "scores" an independent
    probability for each answer, "words" probabilities of word sequences."""
    answers: tuple[str, ...]
    """The list that answers are chosen from; empty where they are generated."""
    preprocessing: Preprocessing
    vocabulary_size: int = Field(gt=4, le=10_000_000)
    max_words: int = Field(gt=0, le=100_000)
    """Longest question, and longest generated answer, in words."""
    tower_sha256: str | None = None
    codebook: dict[str, Any] | None = None


class AnsweringModel:
    """A tower and an answerer with their vocabulary, list of answers and preprocessing."""

    def __init__(
        self,
        model: AnswerModel,
        settings: AnswerSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device

    def __repr__(self) -> str:
        answers = f"{len(self.settings.answers):,} answers" if self.settings.answers else "worded answers"
        return describe(self, f"questions over {self.settings.tower.kind}", answers)

    @overload
    def ask(  # type: ignore[overload-overlap]  # a path is a sequence of letters as well
        self, pictures: Picture, questions: str, n_best: int = 1, batch: int = 32, anyway: bool = False
    ) -> list[Answer]: ...

    @overload
    def ask(
        self,
        pictures: Sequence[Picture],
        questions: Sequence[str],
        n_best: int = 1,
        batch: int = 32,
        anyway: bool = False,
    ) -> list[list[Answer]]: ...

    def ask(
        self,
        pictures: Picture | Sequence[Picture],
        questions: str | Sequence[str],
        n_best: int = 1,
        batch: int = 32,
        anyway: bool = False,
    ) -> list[Answer] | list[list[Answer]]:
        """Answers one question about one picture, or the n-th of a list about the n-th of a list.

        Args:
            pictures: path, bytes or open binary file of a picture, PIL image or array (H, W, 3), or a list of
                these.
            questions: a question, or one for each picture.
            n_best: number of answers, best first; fewer where the model knows fewer.
            anyway: also answer about out-of-distribution pictures.
        Returns:
            The answers of one question, or a list of them for a list.
        Raises:
            PictureError: a picture cannot be decoded; the message has its name and the reason.
            DataError: a question has no word that the model knows, a picture is out-of-distribution, or the
                lists differ in length.
        """
        return one_or_each(
            pictures, questions, lambda some, asked: self.ask_each(some, asked, n_best, batch, anyway)
        )

    def ask_each(
        self,
        pictures: Sequence[Picture],
        questions: Sequence[str],
        n_best: int = 1,
        batch: int = 32,
        anyway: bool = False,
    ) -> list[list[Answer]]:
        """Answers the n-th question about the n-th picture. Raises what `ask` raises."""
        for question in questions:
            self.check_question(question)
        answers: list[list[Answer]] = []
        for first in range(0, len(pictures), batch):
            features = self.features([open_picture(picture) for picture in pictures[first : first + batch]])
            if not anyway:
                self.check_familiar(features, pictures[first : first + batch])
            answers += self.answer(features, questions[first : first + batch], None, n_best)
        return answers

    def explain(self, picture: Picture, question: str, n_best: int = 3, anyway: bool = False) -> Answers:
        """Returns answers, and the attention of each word of the question. Raises what `ask` raises."""
        self.check_question(question)
        features = self.features([open_picture(picture)])
        if not anyway:
            self.check_familiar(features, [picture])
        with torch.inference_mode():
            asked = self._asked(features, [question], None, trace=True)
        words = tuple(self.vocabulary.tokens(self._ids(question)))
        concepts = None
        if asked.concepts_RN is not None and self.settings.codebook is not None:
            concepts = tuple(self.settings.codebook["words"][row] for row in asked.concepts_RN[0].tolist())
        answers = tuple(self._answers(asked, n_best)[0])
        if features.hw is None or asked.looked_RLN is None:
            return Answers(question, answers, words, concepts=concepts)
        looked_Lhw = asked.looked_RLN[0].float().cpu().numpy().reshape(-1, *features.hw)
        return Answers(question, answers, words, looked_Lhw[0], looked_Lhw[1:], concepts)

    def check_question(self, question: str) -> None:
        """Raises DataError for a question without a word that the model knows."""
        refuse_no_text(question)
        ids = self.vocabulary.encode(question)
        if all(number == self.vocabulary.special.unknown for number in ids):
            like = self.facts.example or "those that it was trained on"
            raise DataError(
                f"{question!r} has no word that the model knows; ask as in its training: {like!r}"
            )

    def check_familiar(self, features: VisualFeatures, pictures: Sequence[Picture]) -> None:
        """Raises DataError for the first out-of-distribution picture.

        Such a picture lies farther from the training pictures than held-out ones of their kind; see
        `layers/familiarity.py`.
        """
        familiarity = self.model.familiarity
        for picture, distance in zip(
            pictures, familiarity.distance(mean_patch(features)).tolist(), strict=True
        ):
            if distance > familiarity.limit:
                name = (
                    picture
                    if isinstance(picture, (str, Path))
                    else getattr(picture, "filename", "") or "the picture"
                )
                raise DataError(
                    f"{name}: unlike the pictures that {self.facts.name or 'the model'} was trained on "
                    f"(distance {distance:.0f}, "
                    f"{familiarity.limit:.0f} at most), so an answer would be a guess; ask another model, "
                    "or insist with 'anyway'"
                )

    def unknown_words(self, question: str) -> list[str]:
        """Returns the words of a question that the model never learnt; it cannot distinguish them."""
        if isinstance(self.vocabulary, Subwords):
            return []
        unknown = self.vocabulary.special.unknown
        return [word for word in question.split() if unknown in self.vocabulary.encode(word)]

    def cut_off(self, question: str) -> list[str]:
        """What a person should know whose question is longer than what the model reads."""
        return remarks_on_length(self.vocabulary, question, self.settings.max_words)

    @torch.inference_mode()
    def features(self, pictures: Sequence[Image.Image]) -> VisualFeatures:
        """Returns the tower's features of decoded pictures."""
        pixels_BHWC = np.stack([self.settings.preprocessing.apply(picture) for picture in pictures])
        pixels_B3HW = torch.from_numpy(self.settings.preprocessing.normalise(pixels_BHWC)).to(self.device)
        return self.model.features(Inputs(pixels_B3HW=pixels_B3HW))

    @torch.inference_mode()
    def answer(
        self,
        features: VisualFeatures,
        questions: Sequence[str],
        picture_of_row_R: Tensor | None,
        n_best: int = 1,
    ) -> list[list[Answer]]:
        """Answers R questions about B pictures; by default, the n-th question is about the n-th picture.

        Unknown words are read as the unknown token.
        """
        return self._answers(self._asked(features, questions, picture_of_row_R, trace=False), n_best)

    def _ids(self, question: str) -> list[int]:
        return self.vocabulary.encode(question)[: self.settings.max_words]

    def _asked(
        self, features: VisualFeatures, questions: Sequence[str], picture_of_row_R: Tensor | None, trace: bool
    ) -> QuestionEncoding:
        questions_RL, lengths_R = padded(
            [self._ids(question) for question in questions], self.vocabulary.special, ends=False
        )
        encoder = self.model.answerer.encoder
        return encoder(
            features, questions_RL.to(self.device), lengths_R.to(self.device), picture_of_row_R, trace
        )

    @torch.inference_mode()
    def _answers(self, asked: QuestionEncoding, n_best: int) -> list[list[Answer]]:
        if self.settings.targets == "words":
            return self._worded(asked, n_best)
        logits_RA = self.model.answerer.choose(asked).float()
        shares_RA = logits_RA.sigmoid() if self.settings.targets == "scores" else logits_RA.softmax(1)
        best = shares_RA.topk(min(n_best, shares_RA.shape[1]), dim=1)
        return [
            [
                Answer(self.settings.answers[number], share)
                for number, share in zip(numbers, shares, strict=True)
            ]
            for numbers, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _worded(self, asked: QuestionEncoding, n_best: int) -> list[list[Answer]]:
        answerer, longest = self.model.answerer, self.settings.max_words + 1
        found = beam_search(
            cast(Captioner, answerer),  # it steps like one
            answerer.remember(asked),
            self.vocabulary.special,
            max(_BEAMS, n_best),
            longest,
            BeamOptions(n_best),
        )
        shares_RK = found.log_probabilities_BK.exp().tolist()
        return [
            [
                Answer(self.vocabulary.decode(ids[:length]), share)
                for ids, length, share in zip(rows, lengths, shares, strict=True)
                if length
            ]
            for rows, lengths, shares in zip(
                found.tokens_BKT.tolist(), found.lengths_BK.tolist(), shares_RK, strict=True
            )
        ]

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Writes the model folder, which appears under its name when it is complete; `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder; `half` stores the weights in half precision."""
        settings, weights = portable(self.settings, self.model)
        facts = self.facts.with_sources(published_commits(self.model))
        checkpoint.write_model(folder, "answer", settings, facts, weights, self.vocabulary.to_json(), half)


class QuestionAnswer(NamedTuple):
    """A question of a data set with the model's answer; None where the picture cannot be read."""

    record: QuestionRecord
    answer: Answer | None


def answer_questions(
    model: AnsweringModel,
    records: Sequence[QuestionRecord],
    images: Path,
    unreadable: Callable[[PictureError, int], None],
    batch: int = 32,
) -> Iterator[list[QuestionAnswer]]:
    """Answers the questions of a data set, some pictures at a time; each picture is opened once.

    `unreadable` is called with the error of a picture that cannot be read, and its number of questions.
    """
    pictures = gather(records)
    files = list(pictures)
    with PictureReader() as reader:
        for first in range(0, len(files), batch):
            opened, asked, lost = [], [], []
            for file in files[first : first + batch]:
                try:
                    opened.append(reader.open(images / file))
                    asked += [(len(opened) - 1, record) for record in pictures[file]]
                except PictureError as error:
                    unreadable(error, len(pictures[file]))
                    lost += pictures[file]
            yield _answered(model, opened, asked) + [QuestionAnswer(record, None) for record in lost]


def _answered(
    model: AnsweringModel, opened: list[Image.Image], asked: list[tuple[int, QuestionRecord]]
) -> list[QuestionAnswer]:
    """`asked` holds the number of its picture beside each question."""
    if not opened:
        return []
    owners_R = torch.tensor([b for b, _ in asked], device=model.device)
    answers = model.answer(model.features(opened), [record.question for _, record in asked], owners_R)
    return [QuestionAnswer(record, best[0]) for (_, record), best in zip(asked, answers, strict=True)]


def load_answerer(name: str | Path, device: str | None = None) -> AnsweringModel:
    """Loads a question-answering model by the name of a shipped one, a folder, or a hub id.

    Raises ModelError where it is no such model, or its folder is incomplete or of another format.
    """
    folder = find_model(name)
    settings, facts = read_settings(folder, "answer", AnswerSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)

    def build(tower: nn.Module) -> AnswerModel:
        codebook = None if settings.codebook is None else Codebook.described(settings.codebook)
        sizes = settings.vocabulary_size, len(settings.answers)
        parts = settings.answerer, settings.generator
        return AnswerModel.over(tower, *parts, *sizes, codebook, settings.two_streams)

    model = build_over_tower(folder, settings.tower, settings.tower_sha256, build)
    return AnsweringModel(model, settings, vocabulary, facts, choose_device(device))
