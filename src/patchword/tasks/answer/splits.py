"""Which questions are trained on, which select the model, and which answers there are to choose from."""

from __future__ import annotations

from collections import Counter

import numpy as np

from patchword.data.formats.questions import read_questions
from patchword.data.formats.readers import split_records
from patchword.data.records import QuestionRecord
from patchword.errors import DataError, counted
from patchword.tasks.answer.settings import QuestionDataSettings
from patchword.train.data import hold_out


def read_question_splits(data: QuestionDataSettings) -> tuple[list[QuestionRecord], list[QuestionRecord]]:
    """Training questions, and those on which the model is selected, about other pictures.

    Raises ConfigError where nothing is left.
    """
    records = read_questions(data.annotations, data.answers)
    train = split_records(records, "train")
    files = list(dict.fromkeys(record.file for record in train))
    if data.held_out:
        kept, apart = hold_out(len(files), data.held_out, "training pictures")
        aside = {files[i] for i in apart}
        selection = [record for record in train if record.file in aside]
        files = [files[i] for i in kept]
    else:
        selection = split_records(records, "val")
    if data.share < 1:
        # The same pictures whatever the seed, and those of a smaller share among those of a larger one.
        order = np.random.default_rng(0).permutation(len(files))
        files = [files[place] for place in np.sort(order[: max(1, round(data.share * len(files)))])]
    used = set(files[: data.limit] if data.limit else files)
    return [record for record in train if record.file in used], selection


def answer_list(train: list[QuestionRecord], data: QuestionDataSettings) -> tuple[str, ...]:
    """The most frequent answers, equally frequent ones by alphabet.

    Raises DataError for fewer than two: there is nothing to choose.
    """
    counts = Counter(answer for record in train for answer in set(record.answers))
    ranked = sorted(
        (text for text, count in counts.items() if count >= data.minimum_answers),
        key=lambda text: (-counts[text], text),
    )
    if len(ranked) < 2:
        raise DataError(
            f"{data.annotations}: {counted(len(ranked), 'answer occurs', 'answers occur')} "
            f"{data.minimum_answers} times in the training "
            "questions, two are the least: add questions with other answers, or lower data.minimum_answers"
        )
    return tuple(ranked[: data.list_length])
