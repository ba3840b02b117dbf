"""A question about a picture, or a list of pictures with a question each: all that answers takes both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from patchword.data.pictures import Picture, one_or_many
from patchword.errors import DataError
from patchword.tasks.answer.result import Answer

AnswerEach = Callable[[list[Picture], Sequence[str]], list[list[Answer]]]
"""The answers to the n-th question about the n-th picture, best first."""


def one_or_each(
    pictures: Picture | Sequence[Picture], questions: str | Sequence[str], answer_each: AnswerEach
) -> list[Answer] | list[list[Answer]]:
    """The answers of one question about one picture, or a list of them for a list of each.

    Raises DataError where the lists differ in length, PictureError for what is no picture, and what
    `answer_each` raises.
    """
    listed, single = one_or_many(pictures)
    if single:
        return answer_each(listed, [str(questions)])[0]
    if isinstance(questions, str) or len(questions) != len(listed):
        found = "one question" if isinstance(questions, str) else f"{len(questions)} questions"
        raise DataError(f"{found} for {len(listed)} pictures: give a list with one for each")
    return answer_each(listed, questions)
