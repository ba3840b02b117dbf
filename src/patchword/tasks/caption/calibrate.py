"""What a captioning model learns about the concepts of its eyes after its training: `patchword concepts`.

training pictures -> classifier of the tower -> how often a caption names what it says -> calibration
vocabulary        -> sentence encoder        -> hosts for words that no training caption taught
training pictures -> mean cell of the tower  -> which pictures are unlike all of them
held-out pictures -> captions and references -> which captions are not to be trusted       (doubt.py)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchword.data.captions import PictureInputs, TokenSource
from patchword.data.isolated import PictureReader
from patchword.data.records import CaptionRecord
from patchword.errors import ModelError
from patchword.layers.familiarity import Familiarity, mean_patch
from patchword.metrics import score_captions
from patchword.sentences import SentenceSpace
from patchword.tasks.caption.concepts import (
    NamesClasses,
    calibrated,
    fit_calibration,
    likeliest,
    word_probabilities,
)
from patchword.tasks.caption.doubt import AGREES, SpokenText, sayable, signs
from patchword.tasks.caption.model import CaptioningModel
from patchword.tasks.caption.options import ConceptSettings, DoubtSettings
from patchword.tasks.caption.result import Caption, PictureConcepts
from patchword.text.concepts import caption_words
from patchword.text.imagenet import common_words, imagenet_classes

FAMILIAR_SHARE = 0.95
"""This share of the held-out pictures is like the training pictures."""
UNSURE_SHARE = 0.1
"""This share of the pictures held out of training is marked unsure."""
_RIDGE = 1e-3
_HOST_COUNT = 5
"""How often a vocabulary word must occur in the training captions to stand in for another."""
_FREQUENT = 0.01
"""Words that captions of fewer pictures name are evidence wherever they are seen."""
_EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Views(NamedTuple):
    """What the eyes say of some pictures."""

    shares_BW: Tensor
    """The classifier's probability of each common word."""
    means_BC: Tensor
    """Mean cell of the grid."""
    captions: tuple[Caption, ...] = ()
    """What the captioner alone says, where it was asked."""


class ReliabilityRow(NamedTuple):
    """Pairs of picture and word whose calibrated probability lies in one range."""

    low: float
    high: float
    pairs: int
    predicted: float
    """Mean probability."""
    named: float
    """Share of the pairs in which a reference caption names the word."""


@torch.inference_mode()
def view(
    model: CaptioningModel,
    images: Path,
    records: Sequence[CaptionRecord],
    advance: Callable[[int], None],
    batch: int = 8,
    captions: bool = False,
    stored: PictureInputs | None = None,
) -> Views:
    """What the eyes say of pictures, and with `captions` what the captioner alone says of them.

    `stored` gives features of the tower in place of the pictures. Raises ModelError for a tower without a
    classifier, PictureError for a picture that cannot be decoded.
    """
    tower, preprocessing = model.model.tower, model.settings.preprocessing
    if not isinstance(tower, NamesClasses):
        raise ModelError(
            f"the tower of this model ({model.settings.tower.kind}) names no classes: concepts need an "
            "ImageNet tower such as "
            "efficientnet-lite2"
        )
    shares, means, said = [], [], []
    with PictureReader() as reader:
        for first in range(0, len(records), batch):
            part = records[first : first + batch]
            if stored is None:
                pictures = [preprocessing.apply(reader.open(images / record.file)) for record in part]
                pixels_B3HW = torch.from_numpy(preprocessing.normalise(np.stack(pictures)))
                features, logits = tower.look(pixels_B3HW.to(model.device))
            else:
                inputs = stored.load([record.file for record in part], None)
                features = model.model.features(inputs.to(model.device))
                logits = tower.classify(features)
            shares.append(word_probabilities(logits.picture_BK).cpu())
            means.append(mean_patch(features).cpu())
            if captions:
                said += model.caption_features(features, trace=False)
            advance(len(part))
    return Views(torch.cat(shares), torch.cat(means), tuple(said))


def agreeing(captions: Sequence[Caption], records: Sequence[CaptionRecord]) -> list[bool]:
    """Whether the CIDEr of each caption against its own picture's references is at least AGREES."""
    references = {str(number): list(record.captions) for number, record in enumerate(records)}
    told = {str(number): caption.text for number, caption in enumerate(captions)}
    values = score_captions(references, told, metrics=("cider",))["CIDEr"].values_per_item()
    return [values[str(number)] >= AGREES for number in range(len(captions))]


def named_in(records: Sequence[CaptionRecord]) -> Tensor:
    """Whether a reference of each picture names each common word, (B, W)."""
    texts = [SpokenText(" . ".join(record.captions)) for record in records]
    return torch.tensor([[text.names(word) for word in common_words()] for text in texts])


def reliability(views: Views, named_BW: Tensor, settings: ConceptSettings) -> list[ReliabilityRow]:
    """How often references name a word, by its calibrated probability, on pictures that had no part in the
    calibration.
    """
    offsets_W = torch.tensor([settings.offsets.get(word, 0.0) for word in common_words()])
    chances_BW = calibrated(views.shares_BW, settings.slope, settings.intercept, offsets_W)
    rows = []
    for low, high in zip(_EDGES[:-1], _EDGES[1:], strict=True):
        inside_BW = (chances_BW >= low) & (chances_BW < high if high < 1 else chances_BW <= 1)
        count = int(inside_BW.sum())
        if count:
            predicted, said = chances_BW[inside_BW].mean(), named_BW[inside_BW].float().mean()
            rows.append(ReliabilityRow(low, high, count, float(predicted), float(said)))
    return rows


def find_hosts(vocabulary: TokenSource, captions: Sequence[str]) -> dict[str, str]:
    """For each name and common word of ImageNet's classes that the vocabulary lacks, the word that it is said
    like.

    That of a class's name is its common word where the vocabulary has it ("espresso" is said like "coffee");
    else it is the nearest noun of the captions. Raises MissingExtra where the sentence encoder's package is
    not installed.
    """
    nouns = [word for word in caption_words(captions, _HOST_COUNT) if sayable(word, vocabulary, {})]
    common = {one.name: one.word for one in imagenet_classes() if sayable(one.word, vocabulary, {})}
    wanted = list(dict.fromkeys([*common_words(), *(one.name for one in imagenet_classes())]))
    lacking = [word for word in wanted if not sayable(word, vocabulary, {})]
    space = SentenceSpace()
    nearest = (space.embed(lacking) @ space.embed(nouns).T).argmax(1).tolist()
    return {word: common.get(word, nouns[place]) for word, place in zip(lacking, nearest, strict=True)}


def calibrate(
    model: CaptioningModel,
    train: Sequence[CaptionRecord],
    train_views: Views,
    held_out: Sequence[CaptionRecord],
    others: Views,
    options: dict[str, Any],
    open_words: bool = False,
) -> CaptioningModel:
    """The model with concepts: calibrated on `train`, with the limits of doubt from the pictures held out.

    `others` are the views of these pictures, with captions.

    With `open_words` a word that no training caption names is trusted as others are (`fit_calibration`).
    `options` are fields of ConceptSettings that a person chose, such as `confident`.
    """
    named_BW = named_in(train)
    slope, intercept, offsets_W = fit_calibration(train_views.shares_BW, named_BW, only_named=open_words)
    shares = zip(common_words(), named_BW.float().mean(0).tolist(), strict=True)
    priors = {word: round(share, 4) for word, share in shares if share >= _FREQUENT}
    offsets = {
        word: round(float(value), 4)
        for word, value in zip(common_words(), offsets_W, strict=True)
        if abs(value) > 1e-3
    }
    captions = [caption for record in train for caption in record.captions]
    hosts = find_hosts(model.vocabulary, captions)
    settings = ConceptSettings(
        slope=slope, intercept=intercept, offsets=offsets, priors=priors, hosts=hosts, **options
    )
    familiarity = Familiarity(train_views.means_BC.shape[1])
    familiarity.fit(train_views.means_BC, others.means_BC)
    distance_B = familiarity.distance(others.means_BC)
    familiarity.limit.copy_(distance_B.quantile(FAMILIAR_SHARE))
    seen = [
        PictureConcepts(named, distance)
        for named, distance in zip(
            likeliest(others.shares_BW, settings), (distance_B / familiarity.limit).tolist(), strict=True
        )
    ]
    doubt = fit_doubt(others.captions, seen, agreeing(others.captions, held_out))
    settings = settings.model_copy(update={"doubt": doubt})
    model.model.familiarity = familiarity.to(model.device)
    model.settings = model.settings.model_copy(update={"concepts": settings})
    return model


def frequent_mistakes(
    views: Views, named_BW: Tensor, settings: ConceptSettings, most: int = 10
) -> list[tuple[str, int]]:
    """The words that are confident and named by no reference most often."""
    words = list(common_words())
    offsets_W = torch.tensor([settings.offsets.get(word, 0.0) for word in words])
    sure_BW = calibrated(views.shares_BW, settings.slope, settings.intercept, offsets_W) >= settings.confident
    counted = Counter(
        {word: int(count) for word, count in zip(words, (sure_BW & ~named_BW).sum(0), strict=True) if count}
    )
    return counted.most_common(most)


def fit_doubt(
    captions: Sequence[Caption], seen: Sequence[PictureConcepts], agree: Sequence[bool]
) -> DoubtSettings | None:
    """The regression, the limit below which UNSURE_SHARE of these pictures lie, and the farthest of them.

    None where all captions agree, or none does: then nothing tells one from the other, and the distance alone
    decides.
    """
    if len(set(agree)) < 2:
        return None
    x_P3 = torch.tensor([signs(*pair) for pair in zip(captions, seen, strict=True)], dtype=torch.float64)
    weights_4 = _logistic(x_P3, torch.tensor(list(agree), dtype=torch.float64))
    chances_P = torch.sigmoid(weights_4[0] + x_P3 @ weights_4[1:])
    bias, distance, log_probability, unsaid = weights_4.tolist()
    return DoubtSettings(
        bias=bias,
        distance=distance,
        log_probability=log_probability,
        unsaid=unsaid,
        limit=float(chances_P.quantile(UNSURE_SHARE)),
        far=max(1.0, max(one.distance for one in seen)),
    )


def _logistic(x_PF: Tensor, y_P: Tensor) -> Tensor:
    """Bias and weights (1 + F) of a logistic regression, with a slight ridge on the weights."""
    parameters = torch.zeros(1 + x_PF.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits_P = parameters[0] + x_PF @ parameters[1:]
        total = torch.nn.functional.binary_cross_entropy_with_logits(logits_P, y_P)
        total = total + _RIDGE * (parameters[1:] ** 2).sum()
        total.backward()
        return total

    optimiser.step(loss)
    return parameters.detach()
