"""SPICE (Anderson et al. 2016) through pycocoevalcap, and F1 of tuples that you supply.

The former needs Java and CoreNLP's files.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

from patchword.errors import DataError, MetricUnavailable
from patchword.metrics.scores import Score

CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class Spice:
    """The official program, after checking that it can run.

    Raises MetricUnavailable where Java, pycocoevalcap or its CoreNLP files are missing.
    """

    def __init__(self) -> None:
        package = importlib.util.find_spec("pycocoevalcap")
        if package is None or not package.submodule_search_locations:
            raise MetricUnavailable(
                'SPICE needs pycocoevalcap, which is not installed; pip install "patchword[meteor]"'
            )
        if shutil.which("java") is None:
            raise MetricUnavailable(
                "SPICE needs Java, and there is no `java` on the path; install a Java runtime (8 or later)"
            )
        folder = Path(next(iter(package.submodule_search_locations))) / "spice" / "lib"
        missing = [name for name in CORENLP if not (folder / name).is_file()]
        # Checked before the program is touched, because it would start a download of several hundred
        # megabytes by itself.
        if missing:
            raise MetricUnavailable(
                f"SPICE needs {' and '.join(missing)} in {folder}; they come with Stanford CoreNLP 3.6.0"
            )

    def score(
        self,
        references: Mapping[Hashable, Sequence[Sequence[str]]],
        predictions: Mapping[Hashable, Sequence[str]],
    ) -> dict[str, Score]:
        """Scores predictions against references; each caption is a list of PTB tokens.

        references: image id -> captions; predictions: image id -> caption. Returns {"SPICE": Score}.
        """
        from pycocoevalcap.spice.spice import Spice as Official

        # The program sorts images by id and accepts only numbers and texts as ids, so rows stand for them.
        images = list(references)
        value, details = Official().compute_score(
            {row: [" ".join(words) for words in references[image]] for row, image in enumerate(images)},
            {row: [" ".join(predictions[image])] for row, image in enumerate(images)},
        )
        per_image = {image: float(detail["All"]["f"]) for image, detail in zip(images, details, strict=True)}
        return {"SPICE": Score(float(value), per_image)}


def tuple_f1(
    references: Mapping[Hashable, Collection[tuple[str, ...]]],
    predictions: Mapping[Hashable, Collection[tuple[str, ...]]],
) -> dict[str, Score]:
    """F1 between scene-graph tuples (object), (object, attribute), (subject, relation, object).

    The corpus value is the mean. Tuples are compared as they are, so merge synonyms first. An image without
    tuples on both sides has no value and is left out, as in SPICE. Raises DataError where the ids differ or
    no image has a value.
    """
    if references.keys() != predictions.keys():
        odd = sorted(map(str, references.keys() ^ predictions.keys()))
        raise DataError(f"tuple F1: {len(odd)} image ids stand on one side only (first: {odd[0]})")
    found = {}
    for image in references:
        true, given = set(references[image]), set(predictions[image])
        found[image] = 2 * len(true & given) / (len(true) + len(given)) if true or given else math.nan
    values = [value for value in found.values() if not math.isnan(value)]
    if not values:
        raise DataError("tuple F1: no image has a tuple on either side")
    return {
        "tuple_F1": Score(
            sum(values) / len(values),
            {image: value for image, value in found.items() if not math.isnan(value)},
        )
    }
