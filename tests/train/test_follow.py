"""What follows the size of the data, and what decides while scores are equal."""

import itertools
import json
from dataclasses import replace

import pytest
from accelerate import Accelerator

from patchword.train.data import DataSettings
from patchword.train.follow import followed, minimum_count_for
from patchword.train.loop import Run
from patchword.train.recipe import Validation
from patchword.train.settings import StageSettings

SIZES = [
    pictures * captions for pictures, captions in itertools.product((20, 60, 200, 2000, 20000), (1, 2, 5))
]


@pytest.mark.parametrize("rows", SIZES)
def test_a_stage_is_long_enough_for_any_number_of_rows(rows):
    """The warm-up is over long before the stage is, and the model is measured often enough to be selected."""
    stage = followed(StageSettings(batch=32), rows, first=True, selecting=200)
    steps = -(-rows // stage.batch)
    total = stage.epochs * steps
    assert total >= 1000 and stage.epochs >= 10
    assert 0 < stage.warm_up_steps <= total / 10
    validations = stage.epochs // stage.validate_every
    assert 10 <= validations <= 40 and 3 <= stage.patience < validations


def test_more_data_never_mean_fewer_steps_and_always_fewer_epochs():
    stages = [followed(StageSettings(batch=32), rows, first=True, selecting=200) for rows in sorted(SIZES)]
    totals = [stage.epochs * -(-rows // 32) for stage, rows in zip(stages, sorted(SIZES), strict=True)]
    assert [stage.epochs for stage in stages] == sorted((stage.epochs for stage in stages), reverse=True)
    assert totals[-1] > 10 * totals[0]


@pytest.mark.parametrize("rows", [15, 75, 900])
def test_few_pictures_select_nothing(rows):
    """Rates that fall to zero over a fixed number of steps, and the last model, in place of the luckiest."""
    few, enough = (followed(StageSettings(batch=32), rows, True, number) for number in (20, 50))
    assert (few.keep, few.decay, few.patience) == ("last", "cosine", 0)
    assert (enough.keep, enough.decay) == ("best", "constant") and enough.patience >= 3
    assert 300 <= few.epochs * -(-rows // 32) < 600 and few.epochs >= 20
    assert 3 <= few.epochs // few.validate_every <= 7


def test_what_is_given_stays():
    given = {"epochs": 7, "warm_up_steps": 5, "validate_every": 2, "patience": 0}
    given |= {"decay": "step", "keep": "best"}
    assert followed(StageSettings(**given), 40, first=True, selecting=200) == StageSettings(**given)
    for (name, value), selecting in itertools.product(given.items(), (5, 200)):
        assert getattr(followed(StageSettings(**{name: value}), 40, True, selecting), name) == value


def test_rare_words_are_known_where_there_are_few_captions():
    counts = [minimum_count_for(captions) for captions in (20, 100, 1000, 10000, 100000)]
    usual = DataSettings.model_fields["minimum_count"].default
    assert counts[0] == 1 and counts == sorted(counts) and counts[-1] == usual


@pytest.fixture
def run(tmp_path, request):
    """Trains the small recipe of test_recipe.py with validations as they are given; lines, events, steps."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("small", request.path.with_name("test_recipe.py"))
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)

    def train(found, **settings):
        recipe = small.line_recipe()
        stage = StageSettings(name="only", epochs=len(found), learning_rates={"": 0.1}, **settings)
        left = iter(found)
        recipe = replace(recipe, stages=(stage,), validate=lambda *_: Validation(*next(left), "CIDEr"))
        lines = []
        Run(recipe, tmp_path, Accelerator(cpu=True), 1, 0, 1, lines.append).train()
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        return lines, [row for row in rows if row["event"] == "validation"]

    return train


def test_the_loss_decides_between_equal_scores(run):
    """As long as nothing that the model says is right, the one that is nearest to it is kept."""
    losses = [3.0, 2.0, 2.5, 1.0, 0.5]
    _, events = run([(0.0 if number < 4 else -1.0, {}, loss) for number, loss in enumerate(losses)])
    assert [event["best"] for event in events] == [True, True, False, True, False]


def test_a_stage_may_keep_its_last_model(run):
    """Whatever the scores say; and no patience is lost."""
    lines, events = run([(0.5, {}, 2.0), (0.75, {}, 1.0), (0.25, {}, 3.0)], keep="last", patience=1)
    assert [event["best"] for event in events] == [True] * 3
    assert lines[2] == "only, epoch 3 of 3, step 24: loss 3.000, CIDEr 0.2500 (the last one is kept)"


def test_equal_scores_without_a_loss_keep_the_first(run):
    _, events = run([(0.5, {}, None)] * 3)
    assert [event["best"] for event in events] == [True, False, False]


@pytest.mark.parametrize(("warm_up", "epochs"), [(0, 3), (1, 3), (20, 4), (33, 6)])
def test_no_patience_is_lost_before_the_warm_up_is_over(run, warm_up, epochs):
    """Eight steps an epoch: a warm-up of twenty ends in the third, whose validation counts."""
    lines, events = run([(1.0, {}, None)] + [(0.0, {}, None)] * 9, patience=2, warm_up_steps=warm_up)
    assert len(events) == epochs
    assert (
        lines[-1] == f"only ended: epoch {epochs} of 10, nothing better in 2 validations in a row (patience)"
    )


def test_each_validation_is_a_line(run):
    lines, _ = run([(0.0, {}, 2.5), (0.25, {}, 2.0), (0.125, {}, 1.5)])
    assert lines == [
        "only, epoch 1 of 3, step 8: loss 2.500, CIDEr 0.0000 (best so far)",
        "only, epoch 2 of 3, step 16: loss 2.000, CIDEr 0.2500 (best so far)",
        "only, epoch 3 of 3, step 24: loss 1.500, CIDEr 0.1250 (best 0.2500 at step 16)",
        "only ended: its 3 epochs are done",
    ]
