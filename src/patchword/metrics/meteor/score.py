"""METEOR 1.5, English, as coco-caption calls it (`-l en -norm`), without Java (Denkowski and Lavie 2014).

P and R are the weighted precision and recall (module weights w, content words delta, function words 1 -
delta):

    F = P R / (alpha P + (1 - alpha) R)
    penalty = gamma (chunks / matched words) ** beta
    score = (1 - penalty) F

The score of an image is that of its best reference. The corpus score is computed from the summed statistics
of the best references, so it is not the mean over the images.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from patchword.errors import DataError
from patchword.heap import uncollected
from patchword.metrics.meteor.align import align
from patchword.metrics.meteor.match import Candidate, Sentence, Words, prepare
from patchword.metrics.meteor.tables import load_tables
from patchword.metrics.meteor.words import normalise
from patchword.metrics.scores import Score

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MODULE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
# Statistics of a pair: four lengths (content words of candidate and reference, function words of both), the
# same four for the matches of each of the four modules, then chunks.
_CHUNKS = 20
_TOGETHER = 500
"""Number of images whose phrases are looked up together."""


class Meteor:
    """METEOR with its tables loaded, which takes about a second.

    The first time ever, the paraphrase index is built, which takes a minute. tables: folder with
    meteor-1.5.jar and paraphrase-en.gz; None takes those of the installed pycocoevalcap. Raises
    MetricUnavailable where they are missing.
    """

    def __init__(self, tables: Path | None = None) -> None:
        self._tables = load_tables(tables)
        self._words = Words(self._tables)

    def score(
        self,
        references: Mapping[Hashable, Sequence[Sequence[str]]],
        predictions: Mapping[Hashable, Sequence[str]],
    ) -> dict[str, Score]:
        """Scores predictions against references; each caption is a list of PTB tokens.

        references: image id -> captions; predictions: image id -> caption. Returns {"METEOR": Score} on the
        0-1 scale with the score of each image. Raises DataError where the ids differ.
        """
        if references.keys() != predictions.keys():
            odd = sorted(map(str, references.keys() ^ predictions.keys()))
            raise DataError(
                f"METEOR: {len(odd)} image ids stand on one side only (first: {odd[0]}); predict exactly "
                "the referenced images"
            )
        total, per_image, images = [0] * (_CHUNKS + 1), {}, list(references)
        with uncollected():  # matches and partial alignments are tuples of numbers
            for first in range(0, len(images), _TOGETHER):
                part = images[first : first + _TOGETHER]
                said = [predictions[image] for image in part]
                best = self._best([references[image] for image in part], said)
                for image, (score, found) in zip(part, best, strict=True):
                    per_image[image] = score
                    for place, number in enumerate(found):
                        total[place] += number
                    if found and _is_perfect(found):
                        total[_CHUNKS] -= found[_CHUNKS]
        return {"METEOR": Score(value(total), per_image)}

    def _best(
        self, references: Sequence[Sequence[Sequence[str]]], predictions: Sequence[Sequence[str]]
    ) -> list[tuple[float, list[int]]]:
        """Returns score and statistics of the best reference of each image.

        An image without references has 0 and an empty list.
        """
        texts = []
        for captions, prediction in zip(references, predictions, strict=True):
            # The released program separates references by this mark, so a mark inside a reference splits it.
            parts = [part for caption in captions for part in " ".join(caption).split("|||")]
            texts.append([" ".join(prediction).replace("|||", ""), *parts])
        prefixes = self._tables.prefixes
        sentences, paraphrases = prepare(
            [normalise(text, prefixes) for group in texts for text in group], self._words, self._tables
        )
        following, found = iter(sentences), []
        for group in texts:
            candidate = Candidate(next(following), self._words, paraphrases)
            pairs = [statistics(candidate, next(following)) for _ in group[1:]]
            scored = [(value(pair), pair) for pair in pairs]
            found.append(max(scored, key=itemgetter(0)) if scored else (0.0, []))
        return found


def statistics(candidate: Candidate, reference: Sentence) -> list[int]:
    """Returns the 21 numbers of a pair; they give its score, and summed over pairs a corpus score."""
    own, other = candidate.sentence.functions, reference.functions
    found = [0] * (_CHUNKS + 1)
    found[2], found[3] = own[-1], other[-1]
    found[0], found[1] = len(own) - 1 - own[-1], len(other) - 1 - other[-1]
    matches, found[_CHUNKS] = align(candidate.matches(reference))
    for module, j, other_words, i, words in matches:
        at = 4 + 4 * module
        functions, other_functions = own[i + words] - own[i], other[j + other_words] - other[j]
        found[at] += words - functions
        found[at + 1] += other_words - other_functions
        found[at + 2] += functions
        found[at + 3] += other_functions
    return found


def _is_perfect(found: Sequence[int]) -> bool:
    """True where all words of both sentences match in one chunk; the penalty then ignores this chunk."""
    return found[_CHUNKS] == 1 and sum(found[:4]) == sum(found[4:_CHUNKS])


def value(found: Sequence[int]) -> float:
    """Returns the score of one pair, or of a corpus, from (summed) statistics."""
    content, other_content, functions, other_functions = (
        sum(weight * found[4 + 4 * module + kind] for module, weight in enumerate(MODULE_WEIGHTS))
        for kind in range(4)
    )
    candidate_matches = DELTA * content + (1 - DELTA) * functions
    reference_matches = DELTA * other_content + (1 - DELTA) * other_functions
    if candidate_matches == 0 or reference_matches == 0:
        return 0.0
    precision = candidate_matches / (DELTA * found[0] + (1 - DELTA) * found[2])
    recall = reference_matches / (DELTA * found[1] + (1 - DELTA) * found[3])
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 0 if _is_perfect(found) else found[_CHUNKS]
    return (1 - GAMMA * (2 * chunks / sum(found[4:_CHUNKS])) ** BETA) * mean
