"""A caption word by word, for someone who waits: greedy search, and then what `caption` says as well.

picture -> words, each as soon as it is known -> the caption, of a strange picture a guess
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch

from patchword.data.pictures import Picture, open_picture
from patchword.decode import explain_tokens, greedy_steps
from patchword.tasks.caption.mention import with_words
from patchword.tasks.caption.result import Caption

if TYPE_CHECKING:
    from patchword.tasks.caption.model import CaptioningModel


def words_of(model: CaptioningModel, picture: Picture, trace: bool) -> Generator[str, None, Caption]:
    """See `CaptioningModel.stream`. The words are those of the plain search; where a whole answer would say
    others, for doubt or for concepts, so does the Caption that is returned.

    Raises PictureError when the picture cannot be decoded.
    """
    image = open_picture(picture)
    looked = model.look(model.settings.preprocessing.apply(image)[None])
    hw, decoding = looked.features.hw, model.settings.decoding
    captioner, special = model.model.captioner, model.vocabulary.special
    with torch.inference_mode():
        memory = captioner.encode(looked.features)
    said = 0
    length, repeat, no_stutter = decoding.max_length, decoding.no_repeat_ngram, decoding.no_stutter
    for found in greedy_steps(captioner, memory, special, length, repeat, no_stutter=no_stutter):
        words = model.vocabulary.tokens(found.tokens_BKT[0, 0].tolist())
        yield from words[said:]
        said = len(words)
    explained = None
    with torch.inference_mode():
        if trace:
            explained = explain_tokens(
                captioner, memory, special, found.tokens_BKT[:, 0], found.lengths_BK[:, 0]
            )
        caption = model.caption_of(found, explained, 0, 0, hw)
        if looked.concepts is not None:
            caption = with_words(model, caption, memory, hw, decoding, trace, (), looked.concepts[0])
    return model.shown(caption, image, looked, 0) if trace else caption
