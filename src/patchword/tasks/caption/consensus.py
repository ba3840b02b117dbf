"""Captions re-ranked by consensus (layers/consensus.py): what `patchword consensus` finds, and the ranking.

training pictures + captions -> which n-grams people say of pictures like this one
held-out pictures            -> how much that counts beside the search's own probability
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patchword.data.captions import Inputs, PictureInputs
from patchword.data.records import CaptionRecord
from patchword.decode import BeamOptions, Decodings, beam_search
from patchword.layers.consensus import Consensus
from patchword.layers.familiarity import mean_patch
from patchword.lookup import look_up
from patchword.tasks.caption.model import CaptioningModel, ConsensusSettings
from patchword.types import SpecialIds, VisualFeatures

WEIGHTS = (0.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Weights of the agreement that are tried on the held-out pictures."""
LEAST_SHARE = 0.007
"""Share of the training pictures whose captions must have an n-gram for it to be predicted."""
RIDGE = 0.25
"""Regularisation, as a share of the training pictures."""
_AT_ONCE = 32


class Trial(NamedTuple):
    """A weight, and CIDEr on the held-out pictures with it."""

    weight: float
    cider: float


def ranked(
    consensus: Consensus, weight: float, features: VisualFeatures, found: Decodings, special: SpecialIds
) -> Decodings:
    """The hypotheses of a search in the order of log p + weight x agreement, best first."""
    ids = [
        [
            [token for token in row[:length] if token not in special]
            for row, length in zip(rows, lengths, strict=True)
        ]
        for rows, lengths in zip(found.tokens_BKT.tolist(), found.lengths_BK.tolist(), strict=True)
    ]
    agreement_BK = torch.tensor(consensus.agreement(mean_patch(features), ids))
    scores_BK = found.log_probabilities_BK + weight * agreement_BK.to(found.log_probabilities_BK)
    order_BK = scores_BK.argsort(dim=1, descending=True, stable=True)
    return Decodings._make(_reordered(part, order_BK) for part in found)


def _reordered(part: Tensor, order_BK: Tensor) -> Tensor:
    index = order_BK if part.dim() == 2 else order_BK[..., None].expand(-1, -1, part.shape[2])
    return part.gather(1, index)


@torch.inference_mode()
def fit_consensus(
    model: CaptioningModel,
    train: Sequence[CaptionRecord],
    held_out: Sequence[CaptionRecord],
    inputs: PictureInputs,
    candidates: int,
    advance: Callable[[int], None],
) -> tuple[CaptioningModel, list[Trial]]:
    """The model with consensus, fitted on `train`, with the weight that is best on `held_out`.

    `inputs` gives pixels or stored features; `advance` is told of pictures that are done.
    """
    means_BC = torch.cat(
        [
            mean_patch(model.model.features(part.to(model.device))).cpu()
            for part in _parts(train, inputs, advance)
        ]
    )
    unknown = model.vocabulary.special.unknown
    captions = [
        [[-1 if token == unknown else token for token in model.vocabulary.encode(one)] for one in said]
        for said in (record.captions for record in train)
    ]
    least = max(3, round(LEAST_SHARE * len(train)))
    consensus = Consensus.fit(means_BC, captions, least, RIDGE * len(train)).to(model.device)
    model.model.consensus = consensus
    texts_by_weight: dict[float, dict[str, str]] = {weight: {} for weight in WEIGHTS}
    first = 0
    for part in _parts(held_out, inputs, advance):
        features = model.model.features(part.to(model.device))
        found = _candidates(model, features, candidates)
        for weight, texts in texts_by_weight.items():
            best = ranked(consensus, weight, features, found, model.vocabulary.special)
            rows = zip(best.tokens_BKT[:, 0].tolist(), best.lengths_BK[:, 0].tolist(), strict=True)
            for place, (ids, length) in enumerate(rows):
                texts[str(first + place)] = model.vocabulary.decode(ids[:length])
        first += len(features.grid_BNC)
    references = {str(number): list(record.captions) for number, record in enumerate(held_out)}
    score = look_up("metrics:score_captions")  # its tables are only for learning
    trials = [
        Trial(weight, score(references, texts, metrics=("cider",))["CIDEr"].value)
        for weight, texts in texts_by_weight.items()
    ]
    chosen = max(trials, key=lambda trial: trial.cider).weight
    settings = ConsensusSettings(weight=chosen, candidates=candidates, ngrams=len(consensus.ngrams_G4))
    model.settings = model.settings.model_copy(update={"consensus": settings})
    return model, trials


def _candidates(model: CaptioningModel, features: VisualFeatures, candidates: int) -> Decodings:
    """What the model's own search finds with so many beams."""
    decoding, captioner = model.settings.decoding, model.model.captioner
    options = BeamOptions(candidates, decoding.length_penalty, no_repeat_ngram=decoding.no_repeat_ngram)
    memory, special = captioner.encode(features), model.vocabulary.special
    return beam_search(captioner, memory, special, candidates, decoding.max_length, options)


def _parts(
    records: Sequence[CaptionRecord], inputs: PictureInputs, advance: Callable[[int], None]
) -> Iterator[Inputs]:
    for first in range(0, len(records), _AT_ONCE):
        some = records[first : first + _AT_ONCE]
        yield inputs.load([record.file for record in some], None)
        advance(len(some))
