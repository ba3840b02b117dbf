"""Settings that follow the size of the data where a configuration leaves them out.

Twenty pictures and twenty thousand cannot be trained by the same numbers: with one step per epoch ten epochs
are over before a warm-up of a hundred steps is, and a word that has to occur three times leaves three words.
What counts is the number of optimiser steps, so that epochs, warm-up and patience are derived from steps.

A score of few pictures does not tell the models of a training apart: of five pictures it was best by chance
after a tenth of the steps, of a model that said "a boy and and is is jumping". Where fewer than
`TELLING` pictures are held out, they select nothing: the rates fall to zero, and the last model is kept.
"""

from __future__ import annotations

import math
from typing import TypeVar

from patchword.train.settings import StageSettings

Stage = TypeVar("Stage", bound=StageSettings)

FOLLOWING = ("epochs", "validate_every", "warm_up_steps", "patience", "decay", "keep")
"""Settings of a stage that follow the data where they are not given."""
TELLING = 50
"""Pictures of a selection from which on its score selects."""
LEAST_STEPS, LEAST_EPOCHS = 1000, 10
"""For a first stage: steps that a new decoder needs whatever the data, and passes over large data."""
LATER_STEPS, LATER_EPOCHS = 500, 5
"""For a stage that goes on from a trained one."""
STEPS_WITHOUT_SELECTION, EPOCHS_WITHOUT_SELECTION, VALIDATIONS_WITHOUT_SELECTION = 300, 20, 6
"""In place of these where nothing is selected: more steps would only learn few captions better by heart."""
LONGEST_WARM_UP, WARM_UP_SHARE = 100, 0.1
VALIDATIONS = 20
"""Validations of a stage at most, but for one after each of few epochs."""
LEAST_PATIENCE, PATIENT_STEPS = 3, 200
"""Validations, and steps, without anything better before a stage ends."""
COUNTS = ((500, 1), (3000, 2), (20000, 3))
"""Fewer captions than the first number: a word is known when it occurs as often as the second."""
COUNT_OF_MANY = 5


def minimum_count_for(captions: int) -> int:
    """How often a word must occur in so many training captions to be known."""
    return next((count for limit, count in COUNTS if captions < limit), COUNT_OF_MANY)


def followed(stage: Stage, rows: int, first: bool, selecting: int) -> Stage:
    """The stage with what it does not give derived from the number of rows that an epoch passes over, and
    from the number of pictures that are held out to select a model."""
    steps, few = max(1, math.ceil(rows / stage.batch)), selecting < TELLING
    least_steps, least_epochs = (LEAST_STEPS, LEAST_EPOCHS) if first else (LATER_STEPS, LATER_EPOCHS)
    if few:
        share = least_steps / LEAST_STEPS
        least_steps, least_epochs = (
            math.ceil(share * least) for least in (STEPS_WITHOUT_SELECTION, EPOCHS_WITHOUT_SELECTION)
        )
    given = {name: getattr(stage, name) for name in FOLLOWING if name in stage.model_fields_set}
    epochs = given.get("epochs", max(least_epochs, math.ceil(least_steps / steps)))
    validations = VALIDATIONS_WITHOUT_SELECTION if few else VALIDATIONS
    every = given.get("validate_every", max(1, epochs // validations))
    derived = {
        "epochs": epochs,
        "validate_every": every,
        "warm_up_steps": min(LONGEST_WARM_UP, int(WARM_UP_SHARE * epochs * steps)),
        "patience": 0 if few else max(LEAST_PATIENCE, math.ceil(PATIENT_STEPS / (every * steps))),
        "decay": "cosine" if few else stage.decay,
        "keep": "last" if few else stage.keep,
    }
    return stage.model_copy(update=derived | given)
