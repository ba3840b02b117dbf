"""Metrics of `patchword score` that need more than captions: CLIPScore, CHAIR, nocaps groups.

CLIPScore needs two towers, CHAIR objects, and the groups a nocaps file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchword.errors import DataError
from patchword.lookup import look_up
from patchword.metrics import TOKENIZERS
from patchword.metrics.chair import chair, mentioned_objects
from patchword.metrics.chair_files import own_names, read_objects, read_synonyms
from patchword.metrics.clipscore import PREFIX, ref_clip_score
from patchword.metrics.files import find_images, parsed
from patchword.metrics.nocaps import domain_groups
from patchword.metrics.scores import Score

_AT_ONCE = 64


class ClipScores:
    """CLIPScore and RefCLIPScore with the two towers of a model.

    A picture or reference is embedded only once.
    """

    def __init__(self, towers: Any, references: Path, images: Path) -> None:
        self._towers, self._references, self._images = towers, references, images
        self._pictures: dict[str, np.ndarray] = {}
        self._texts: dict[str, np.ndarray] = {}

    def __call__(
        self, references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
    ) -> dict[str, Score]:
        """Returns both scores by image id.

        Raises DataError for an image without a picture, PictureError for one that cannot be read.
        """
        names = list(predictions)
        files = find_images(
            self._references, self._images, (name for name in names if name not in self._pictures)
        )
        paths = list(files.items())
        with look_up("data.isolated:PictureReader")() as reader:
            for first in range(0, len(paths), _AT_ONCE):
                some = dict(paths[first : first + _AT_ONCE])
                opened = [reader.open(path) for path in some.values()]
                self._pictures |= zip(some, self._towers.embed_images(opened), strict=True)
        captions = [PREFIX + predictions[name] for name in names]
        wanted = [PREFIX + caption for name in names for caption in references[name]]
        new = list(dict.fromkeys(text for text in (*captions, *wanted) if text not in self._texts))
        self._texts |= zip(new, self._towers.embed_texts(new), strict=True)
        owners = [row for row, name in enumerate(names) for _ in references[name]]
        found = ref_clip_score(
            np.stack([self._pictures[name] for name in names]),
            np.stack([self._texts[text] for text in captions]),
            np.stack([self._texts[text] for text in wanted]),
            np.array(owners),
        )
        return {
            metric: Score(score.value, dict(zip(names, score.values_per_item().values(), strict=True)))
            for metric, score in found.items()
        }


class ChairScores:
    """CHAIRs and CHAIRi as in the paper.

    An object is in the picture where the annotations or a reference caption name it.
    """

    def __init__(self, objects: Path, synonyms: Path | None, tokenizer: str) -> None:
        self._objects = read_objects(objects)
        self._synonyms = (
            read_synonyms(synonyms) if synonyms else own_names(set().union(*self._objects.values()))
        )
        self._tokenize = TOKENIZERS[tokenizer]

    def __call__(
        self, references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
    ) -> dict[str, Score]:
        """Returns both scores by image id. Raises DataError for an image without objects."""
        shown: dict[str, set[str]] = {}
        for image in predictions:
            if image in self._objects:
                named = (
                    mentioned_objects(words, self._synonyms)
                    for words in self._tokenize(list(references[image]))
                )
                shown[image] = self._objects[image].union(*named)
        return chair(
            dict(zip(predictions, self._tokenize(list(predictions.values())), strict=True)),
            shown,
            self._synonyms,
        )


def read_groups(
    path: Path, references: Mapping[str, object], predictions: Mapping[str, object]
) -> dict[str, list[str]]:
    """Returns image ids by nocaps domain, of all images on either side.

    Raises DataError for an image without a domain in the file.
    """
    content = parsed(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: expected a nocaps captions file, whose `images` have `id` and `domain`")
    images = [{**image, "id": str(image.get("id"))} for image in content["images"]]
    return domain_groups({"images": images}, dict.fromkeys((*references, *predictions)))
