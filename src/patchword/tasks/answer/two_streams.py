"""Answers by the two streams of ViLBERT, begun with pre-trained ones.

Lu et al. 2019 (arXiv 1908.02265, section 3.2): a classifier over the product of what both streams pool.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from patchword.composed import TextTowerSettings, build_two_streams
from patchword.models.pretraining.vilbert import StreamAnswerer, VilbertConfig
from patchword.text.words import Vocabulary
from patchword.train.data import with_vocabulary


class TwoStreamsConfig(BaseModel, extra="forbid", frozen=True):
    """Two streams that answer, of the sizes of those that were pre-trained."""

    text: TextTowerSettings = Field(discriminator="kind", description="the text tower: a BERT")
    vilbert: VilbertConfig = Field(
        VilbertConfig(), description="sizes of the picture stream and the co-attention, as [model] there"
    )

    def reading(self, vocabulary: Vocabulary, max_words: int) -> TwoStreamsConfig:
        """The same with a text tower that has room for these words."""
        return self.model_copy(update={"text": with_vocabulary(self.text, vocabulary, max_words)})


def build_stream_answerer(config: TwoStreamsConfig, feature_width: int, answers: int) -> StreamAnswerer:
    """Streams with random weights. Raises ConfigError for sizes that do not fit one another."""
    streams = build_two_streams(config.vilbert, config.text, feature_width, 0, heads=False)
    return StreamAnswerer(streams, answers)
