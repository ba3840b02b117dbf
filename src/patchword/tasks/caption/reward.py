"""The reward of self-critical training: CIDEr-D of sampled token ids against the training captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from patchword.data.records import CaptionRecord
from patchword.errors import DataError
from patchword.metrics.cider import CiderReward
from patchword.text import ptb


class CaptionReward:
    """CIDEr-D against references that are tokenised as in the metrics and prepared once.

    Document frequencies are those of the training pictures. The end token counts on both sides: a caption
    that does not end misses n-grams, so the model does not learn to stop at "with a".
    """

    def __init__(
        self, records: Sequence[CaptionRecord], words_of: Callable[[list[int]], list[str]], end_id: int
    ) -> None:
        """`words_of` turns ids into words, up to the end token."""
        lengths = [len(record.captions) for record in records]
        tokens = iter(ptb.tokenize([caption for record in records for caption in record.captions]))
        self._cider = CiderReward(
            [[next(tokens) for _ in range(length)] for length in lengths], convention="image", end_token=True
        )
        self._index = {record.image_id: number for number, record in enumerate(records)}
        self._words_of, self._end_id = words_of, end_id

    def __call__(self, captions: list[list[int]], pictures: list[int | str]) -> list[float]:
        """Returns CIDEr-D (0 to 10) of each caption; raises DataError for a picture without references."""
        unknown = [picture for picture in pictures if picture not in self._index]
        if unknown:
            raise DataError(
                f"image {unknown[0]} is not among the training pictures, so it has no references to reward "
                "with"
            )
        finished = [bool(ids) and ids[-1] == self._end_id for ids in captions]
        indices = [self._index[picture] for picture in pictures]
        return self._cider.reward([self._words_of(ids) for ids in captions], indices, finished).tolist()
