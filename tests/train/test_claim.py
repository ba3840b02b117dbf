"""A run folder belongs to one training at a time, however that one ends."""

import os
import signal
import subprocess
import sys

import pytest

from patchword.config import validate
from patchword.errors import ConfigError
from patchword.train.claim import claimed
from patchword.train.settings import RunSettings

HOLD = """
import sys, time
from pathlib import Path
from patchword.config import validate
from patchword.train.claim import claimed
from patchword.train.settings import RunSettings
folder = Path(sys.argv[1])
with claimed(folder, validate({"out": str(folder)}, RunSettings, "test"), resume=False) as begin:
    begin()
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the folder."""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def claim(folder, resume=True, **changes):
    with claimed(folder, validate({"out": str(folder), **changes}, RunSettings, "test"), resume) as begin:
        begin()
    return True


def test_two_trainings_in_one_folder_are_refused_while_the_first_lives(holder):
    folder, process = holder
    with pytest.raises(ConfigError, match="another training is running in this folder"):
        claim(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert claim(folder)


def test_a_training_that_comes_second_to_a_new_folder_is_refused(tmp_path):
    """Both were set up before either had begun: one of them gets the folder."""
    folder = tmp_path / "run"
    first, second = (validate({"out": str(folder), "seed": seed}, RunSettings, "test") for seed in (1, 2))
    with claimed(folder, second, False) as begin_second:
        with claimed(folder, first, False) as begin:
            begin()
            with pytest.raises(ConfigError, match="another training is running in this folder"):
                begin_second()
        with pytest.raises(ConfigError, match="holds a run already"):
            begin_second()
    assert claim(folder, seed=1)


def test_a_run_that_cannot_be_set_up_leaves_no_folder(tmp_path):
    settings = validate({"out": str(tmp_path / "run")}, RunSettings, "test")
    with pytest.raises(KeyError), claimed(tmp_path / "run", settings, False):
        raise KeyError("the data are not there")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"run cannot be written \(Not a directory\)"):
        claim(tmp_path / "file" / "run")
