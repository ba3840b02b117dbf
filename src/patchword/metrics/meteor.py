"""METEOR 1.5, English, as coco-caption calls it (`-l en -norm`), without Java (Denkowski and Lavie 2014).

With P and R the weighted precision and recall (module weights w, content words delta, function words 1 - delta):
    F = P R / (alpha P + (1 - alpha) R)
    penalty = gamma (chunks / matched words) ** beta
    score = (1 - penalty) F
An image's score is that of its best reference; the corpus score is computed from the summed statistics of the best references, so it is
not the mean of the images.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from patchword.errors import DataError
from patchword.metrics.meteor_align import Aligner, Sentence
from patchword.metrics.meteor_tables import load_tables
from patchword.metrics.meteor_words import normalise
from patchword.metrics.scores import Score

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MODULE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
# Statistics of a pair: four lengths (content words of candidate and reference, function words of both), the same four for the matches
# of each of the four modules, then chunks.
_CHUNKS = 20


class Meteor:
    """METEOR with its tables loaded (about a second; the first time ever the paraphrase index is built, half a minute).

    tables: folder with meteor-1.5.jar and paraphrase-en.gz; None takes those of the installed pycocoevalcap. Raises MetricUnavailable.
    """

    def __init__(self, tables: Path | None = None) -> None:
        self._tables = load_tables(tables)
        self._aligner = Aligner(self._tables)

    def score(
        self, references: Mapping[Hashable, Sequence[Sequence[str]]], predictions: Mapping[Hashable, Sequence[str]]
    ) -> dict[str, Score]:
        """references: image id -> captions; predictions: image id -> caption; each caption a list of PTB tokens.

        Returns {"METEOR": Score} on the 0-1 scale with the score of each image. Raises DataError where the ids differ.
        """
        if references.keys() != predictions.keys():
            odd = sorted(map(str, references.keys() ^ predictions.keys()))
            raise DataError(f"METEOR: {len(odd)} image ids stand on one side only (first: {odd[0]}); predict exactly the referenced images")
        total, per_image = np.zeros(_CHUNKS + 1), {}
        for image, captions in references.items():
            candidate = self._sentence(" ".join(predictions[image]).replace("|||", ""))
            # The released program separates references by this mark, so that one within a reference makes two of it.
            texts = [part for caption in captions for part in " ".join(caption).split("|||")]
            pairs = [self._statistics(candidate, self._sentence(text)) for text in texts]
            values = [value(pair) for pair in pairs]
            best = max(range(len(pairs)), key=values.__getitem__) if pairs else None
            per_image[image] = 0.0 if best is None else values[best]
            if best is not None:
                total += pairs[best]
                if _is_perfect(pairs[best]):
                    total[_CHUNKS] -= pairs[best][_CHUNKS]
        return {"METEOR": Score(value(total), per_image)}

    def _sentence(self, text: str) -> Sentence:
        return self._aligner.prepare(normalise(text, self._tables.prefixes))

    def _statistics(self, candidate: Sentence, reference: Sentence) -> np.ndarray:
        functions = self._tables.function_words
        found = [0.0] * (_CHUNKS + 1)
        for side, words in enumerate((candidate.words, reference.words)):
            count = sum(word in functions for word in words)
            found[side], found[2 + side] = len(words) - count, count
        matches, found[_CHUNKS] = self._aligner.align(candidate, reference)
        for module, j, other_words, i, words in matches:
            at = 4 + 4 * module
            for side, matched in enumerate((candidate.words[i : i + words], reference.words[j : j + other_words])):
                count = sum(word in functions for word in matched)
                found[at + side] += len(matched) - count
                found[at + 2 + side] += count
        return np.array(found)


def _is_perfect(statistics: np.ndarray) -> bool:
    """Every word of both sentences matched in one chunk: the penalty does not count this chunk."""
    lengths, matches = statistics[:4].sum(), statistics[4:_CHUNKS].sum()
    return bool(statistics[_CHUNKS] == 1 and lengths == matches)


def value(statistics: np.ndarray) -> float:
    """Score of one pair, or of a corpus, from (summed) statistics."""
    matches = statistics[4:_CHUNKS].reshape(4, 4)
    weighted = MODULE_WEIGHTS @ matches
    candidate_length, reference_length = DELTA * statistics[0:2] + (1 - DELTA) * statistics[2:4]
    candidate_matches, reference_matches = DELTA * weighted[0:2] + (1 - DELTA) * weighted[2:4]
    if candidate_matches == 0 or reference_matches == 0:
        return 0.0
    precision, recall = candidate_matches / candidate_length, reference_matches / reference_length
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 0.0 if _is_perfect(statistics) else statistics[_CHUNKS]
    return float((1 - GAMMA * (chunks / (matches.sum() / 2)) ** BETA) * mean)
