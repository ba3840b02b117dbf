"""The records of data sets, independent of the file format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionRecord:
    """One picture and its captions."""

    image_id: int | str
    """The id by which predictions and references are matched: COCO's number, or the file name where there
    is no number."""
    file: str
    """Path of the picture, relative to the folder of the pictures."""
    captions: tuple[str, ...]
    """Captions as written, with white space collapsed; empty only in the test split."""
    split: str | None = None
    """train, val, test, or None where the data set does not say."""
    tokens: tuple[tuple[str, ...], ...] | None = None
    """For each caption, the words that came with the data set (Karpathy JSON); None where there are none."""


@dataclass(frozen=True)
class QuestionRecord:
    """One question about one picture, with people's answers."""

    question_id: int | str
    image_id: int | str
    file: str
    question: str
    answers: tuple[str, ...]
    """One where the data set gives a single correct answer, ten in VQA v2 (one per person); empty only in
    the test split."""
    kind: str
    """Kind of the question, from the data set, or else from its answer or first words; scores are listed
    by it."""
    split: str | None = None

    @property
    def answer(self) -> str:
        """The most frequent answer, of equally frequent ones the first; empty where there is none."""
        return Counter(self.answers).most_common(1)[0][0] if self.answers else ""


@dataclass(frozen=True)
class LabelRecord:
    """One row of a table: a picture, the text that goes with it, and its labels."""

    where: str
    """File and line, for messages."""
    place: int
    """Byte of the file at which the row begins; it names the row in stores and batches."""
    file: str
    """Path of the picture, relative to the folder of the pictures; empty where the row has none."""
    text: str
    """Text with white space collapsed; empty where the row has none."""
    labels: tuple[str, ...]
    """One label, or several where the table allows it; empty where the row has none."""
    split: str | None = None
