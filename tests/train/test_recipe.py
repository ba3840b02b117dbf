"""A recipe as a value: the least that one needs, and one that brings two optimisers and a step of its own."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from patchword.errors import TrainingError
from patchword.train.groups import build_optimiser
from patchword.train.loop import Run
from patchword.train.recipe import Recipe, Validation
from patchword.train.settings import StageSettings
from patchword.train.step import StepResult, clip, mean_losses

STEPS = 8


class Points(NamedTuple):
    """Pairs of numbers to learn from."""

    image_ids: tuple[int, ...]
    points_B2: torch.Tensor

    @property
    def target_count(self):
        return len(self.points_B2)

    @property
    def picture_count(self):
        return len(self.points_B2)

    def to(self, device):
        return self._replace(points_B2=self.points_B2.to(device))


def points(stage, entries, generator):
    noise_B2 = torch.randn(len(entries), 2, generator=generator)
    return Points(tuple(entries), noise_B2 + torch.tensor([3.0, -1.0]))


def plan(stage, epoch):
    order = np.random.default_rng([stage, epoch]).permutation(4 * STEPS)
    return [order[first : first + 4].tolist() for first in range(0, len(order), 4)]


def save(model):
    def write(folder):
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")

    return write


def load(model):
    return lambda folder: model.load_state_dict(load_file(folder / "model.safetensors"))


class Line(nn.Module):
    """A squared error, which is all that a usual recipe needs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, shares):
        error_B1 = self.model(batch.points_B2[:, :1]) - batch.points_B2[:, 1:]
        return {"loss": error_B1.square().sum() / shares.targets}


class Duel(nn.Module):
    """A generator of points, a discriminator, and the losses of both."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, shares):
        judge, maker = self.model["discriminator"], self.model["generator"]
        made_B2 = maker(torch.randn(len(batch.points_B2), 2))
        real_B1, false_B1 = judge(batch.points_B2), judge(made_B2.detach())
        against = nn.functional.softplus(-real_B1).sum() + nn.functional.softplus(false_B1).sum()
        fooled = nn.functional.softplus(-judge(made_B2)).sum()
        return {
            "loss": (against + fooled) / shares.pictures,
            "discriminator": against / shares.pictures,
            "generator": fooled / shares.pictures,
        }


def duel_step(context, parts):
    """The discriminator moves at every step, the generator at every second one."""
    names = ("generator", "discriminator")
    named = context.objective(parts[0].to(context.accelerator.device), context.shares)
    for name in names:
        context.accelerator.backward(
            named[name], inputs=list(context.model[name].parameters()), retain_graph=True
        )
    losses = mean_losses(context, {name: value.detach() for name, value in named.items()})
    norms = [clip(context, context.model[name].parameters()) for name in names]
    taken = all(map(math.isfinite, (losses["loss"], *norms)))
    for number, optimiser in enumerate(context.optimisers):
        if taken and (number == 1 or context.step % 2 == 1):
            optimiser.step()
        optimiser.zero_grad()
    return StepResult(losses, max(norms), taken)


def small(width=2):
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, width))


def line_recipe():
    torch.manual_seed(1)
    model = nn.Linear(1, 1)
    stages = (StageSettings(epochs=2, learning_rates={"": 0.1}),)
    return Recipe(model, stages, plan, points, lambda stage: Line(model), save(model), load(model))


def duel_recipe():
    torch.manual_seed(1)
    model = nn.ModuleDict({"generator": small(), "discriminator": small(1)})
    rates = {"generator": 1e-2, "discriminator": 2e-2}
    stage = StageSettings(name="duel", epochs=2, learning_rates=rates, betas=(0.5, 0.9))
    return Recipe(
        model,
        (stage, stage.model_copy(update={"name": "again", "start_from": "best"})),
        plan,
        points,
        lambda stage: Duel(model),
        save(model),
        load(model),
        validate=lambda stage, epoch, accelerator: Validation(-abs(model["generator"][2].bias[0].item()), {}),
        optimisers=lambda model, settings: tuple(build_optimiser(model, settings, part) for part in rates),
        step=duel_step,
    )


def run(recipe, folder, resume=False):
    training = Run(recipe, folder, Accelerator(cpu=True), 5, checkpoint_steps=3, log_steps=1)
    if resume:
        assert training.resume()
    training.train()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def stopping_at(recipe, stop):
    def stopped(step, objective):
        if step == stop:
            raise KeyboardInterrupt
        return {}

    return replace(recipe, after_step=stopped)


def test_what_a_recipe_leaves_out_has_a_default(tmp_path):
    """Model, stages, batches, loss, and how the model is written: the rest is the usual thing, or nothing."""
    events = run(line_recipe(), tmp_path / "run")
    assert {event["event"] for event in events} == {"step"} and len(events) == 2 * STEPS
    assert events[-1]["loss"] < events[0]["loss"]
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "best").exists()  # nothing was measured, so nothing was the best


def test_two_optimisers_with_a_step_of_their_own(tmp_path):
    """Each has its part of the model, its rate and its rhythm; both are saved."""
    recipe = duel_recipe()
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        run(stopping_at(recipe, 0), tmp_path / "one")
    moved = {
        name.split(".")[0]
        for name, tensor in recipe.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"discriminator"}  # the generator's turn is every second step
    events = run(duel_recipe(), tmp_path / "whole")
    assert events[0]["learning_rates"] == {"generator": 1e-2, "discriminator": 2e-2}
    assert {"generator", "discriminator"} <= set(events[0]["losses"])


@pytest.mark.parametrize("stop", [1, 4, 2 * STEPS - 1, 2 * STEPS, 3 * STEPS + 2])
def test_two_optimisers_resume_as_the_same_run(stop, tmp_path):
    """Broken off anywhere, in both stages: the same losses, weights and moments of both optimisers."""
    whole = run(duel_recipe(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(stopping_at(duel_recipe(), stop), tmp_path / "broken")
    resumed = (tmp_path / "broken" / "checkpoints" / "last").exists()
    assert run(duel_recipe(), tmp_path / "broken", resumed) == whole
    for name in ("checkpoints/last/model", "checkpoints/last/training", "best/model"):
        ours, theirs = (load_file(tmp_path / one / f"{name}.safetensors") for one in ("broken", "whole"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_state_of_both_optimisers_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(stopping_at(duel_recipe(), 4), tmp_path)
    kept = load_file(tmp_path / "checkpoints" / "last" / "training.safetensors")
    owners = {tuple(name.split(".")[:2]) for name in kept}
    assert owners == {("optimiser", "0"), ("optimiser", "1")}
    steps = {name.split(".")[1]: value.item() for name, value in kept.items() if name.endswith(".step")}
    assert steps == {"0": 1.0, "1": 3.0}  # after three steps


def test_a_step_of_its_own_that_is_not_finite_is_skipped(tmp_path):
    """The loop's rules hold for it as well: nothing moves, and the third in a row ends the run."""
    recipe = duel_recipe()
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}

    def broken(stage, entries, generator):
        found = points(stage, entries, generator)
        return found._replace(points_B2=found.points_B2 * math.inf)

    with pytest.raises(TrainingError, match="not finite in 3 steps in a row"):
        run(replace(recipe, batch=broken), tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in recipe.model.state_dict().items())


def test_an_optimiser_without_parameters_is_refused():
    model = nn.ModuleDict({"generator": small(), "discriminator": small(1)})
    model["generator"].requires_grad_(False)
    settings = SimpleNamespace(name="duel", learning_rates={"": 1e-2})
    from patchword.errors import ConfigError

    with pytest.raises(ConfigError, match="stage 'duel' trains nothing in 'generator'"):
        build_optimiser(model, settings, "generator")
