"""What a data set says about its pictures, whatever file it was written in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionRecord:
    """One picture and its captions."""

    image_id: int | str
    """The id under which predictions and references meet: the number of COCO, or the name of the file where there is no number."""
    file: str
    """Path of the picture, relative to the folder of the pictures."""
    captions: tuple[str, ...]
    """Captions as written, but with white space collapsed; none only where the split is test."""
    split: str | None = None
    """train, val, test, or None where the data set does not say."""
    tokens: tuple[tuple[str, ...], ...] | None = None
    """Per caption, the words that came with the data set (Karpathy JSON); None where there are none."""


@dataclass(frozen=True)
class QuestionRecord:
    """One question about one picture, with the answers that people gave."""

    question_id: int | str
    image_id: int | str
    file: str
    question: str
    answers: tuple[str, ...]
    """One where the data set knows the right one, ten in VQA v2 (one per person); none only where the split is test."""
    kind: str
    """What sort of question it is, as the data set says, else by its answer or its first words: scores are told apart by it."""
    split: str | None = None

    @property
    def answer(self) -> str:
        """The answer that most gave, of equally frequent ones the first; empty where there is none."""
        return Counter(self.answers).most_common(1)[0][0] if self.answers else ""


@dataclass(frozen=True)
class LabelRecord:
    """One row of a table: a picture, the text that goes with it, and its labels."""

    where: str
    """File and line, for messages."""
    place: int
    """Byte of the file at which the row begins: its name in stores and batches."""
    file: str
    """Path of the picture, relative to the folder of the pictures; empty where the row has none."""
    text: str
    """With white space collapsed; empty where the row has none."""
    labels: tuple[str, ...]
    """One, or several where the table says so; none where the row has no label."""
    split: str | None = None
