"""How many files one reads to follow a thing through the house: those of which a function runs, by a trace. These numbers may only fall.

The parts that a model is made of (`layers/`) are counted apart: one reads the model first, and a part when its name is not enough.
"""

import inspect
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

import patchword
from patchword.config import override, read_toml, validate
from patchword.lookup import look_up
from patchword.tasks.table import TASKS
from patchword.train.step import Shares

PACKAGE = Path(patchword.__file__).parent
FROM_A_PHOTOGRAPH = 17
FROM_A_CONFIGURATION = 25


class Trace:
    """Collects the files of the package of which a function begins while it is on."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def __enter__(self) -> "Trace":
        self._before = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _see(self, frame, event, argument) -> None:
        path = Path(frame.f_code.co_filename)
        is_function = (
            frame.f_code.co_flags & inspect.CO_NEWLOCALS
        )  # not the body of a module or class: an import
        if event == "call" and is_function and path.is_relative_to(PACKAGE):
            self.files.add(path.relative_to(PACKAGE).as_posix())

    def without_layers(self) -> set[str]:
        return {name for name in self.files if not name.startswith("layers/")}


def test_from_a_photograph_to_its_caption():
    model = patchword.load("flickr8k", "cpu")
    photo = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    model.caption(photo)  # so that what is imported at the first call is not counted
    with Trace() as trace:
        caption = model.caption(photo)
    assert caption.text and "tasks/caption/model.py" in trace.files and "decode.py" in trace.files
    assert len(trace.without_layers()) <= FROM_A_PHOTOGRAPH, sorted(trace.files)


@pytest.fixture
def settings(scenes, tmp_path):
    """The fused model of `fused-scenes`, with a codebook of its own untrained tower."""
    from patchword.checkpoints.folder import tower_digest
    from patchword.composed import build_tower
    from patchword.layers.codebook import Codebook

    values = override(
        read_toml("fused-scenes"),
        [
            f"data.annotations={scenes / 'dataset.json'}",
            f"data.images={scenes / 'images'}",
            f"data.cache={tmp_path / 'cache'}",
            f"codebook={tmp_path / 'codebook'}",
            "stage.0.objective.text_regulariser=0.0",
            "stage.0.memory=on",
        ],
    )
    for name in ("tower_from", "text_from"):
        del values[name]
    values["stage"] = values["stage"][:1]
    read = validate(values, look_up(TASKS["caption"].run), "fused-scenes")
    torch.manual_seed(read.seed)
    tower = build_tower(read.tower)
    words = [f"word {number}" for number in range(40)]
    Codebook(words, torch.randn(len(words), read.tower.shared_width), tower_digest(tower)[:16]).save(
        tmp_path / "codebook"
    )
    return read


def test_from_a_configuration_to_the_loss_of_the_fused_model(settings, tmp_path):
    with Trace() as trace:
        recipe = look_up(TASKS["caption"].recipe)(settings, tmp_path / "run", "test")
        objective = recipe.objective(0)
        batch = recipe.batch(0, recipe.plan(0, 0)[0], torch.Generator().manual_seed(0))
        losses = objective(batch, Shares(batch.target_count, batch.picture_count, 0.0))
    assert torch.isfinite(losses["loss"]) and "patch_contrast" in losses
    assert {"tasks/caption/train.py", "tasks/caption/objective.py", "losses.py"} <= trace.files
    assert len(trace.without_layers()) <= FROM_A_CONFIGURATION, sorted(trace.files)
