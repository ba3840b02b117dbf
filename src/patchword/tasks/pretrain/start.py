"""From a configuration to the recipe of its kind."""

from __future__ import annotations

from pathlib import Path

from patchword.lookup import look_up
from patchword.tasks.pretrain.settings import RECIPES, PretrainRun
from patchword.train.recipe import Recipe


def pretrain_recipe(run: PretrainRun, folder: Path, command: str) -> Recipe:
    """The pre-training of the kind that the configuration names.

    Raises ConfigError, DataError, ModelError.
    """
    recipe: Recipe = look_up(RECIPES[run.model.kind])(run, folder, command)
    return recipe
