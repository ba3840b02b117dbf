"""A run folder belongs to one configuration, and to one training at a time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from pydantic import BaseModel

from patchword.errors import ConfigError
from patchword.files import write_json

GIVEN = "given"
"""Key of config.json under which the configuration stands as it was given, where a part follows the data."""


@contextmanager
def claimed(
    folder: Path, settings: BaseModel, resume: bool, writes: bool = True
) -> Iterator[Callable[..., None]]:
    """Hold a run folder for one training; gives the function that begins the run in it.

    The function takes the configuration with everything that follows the data, or None where that is nothing:
    config.json shows what is trained with, and beside it what was given.

    A folder that exists is held at once. One that does not is made by that function, so that a run that
    cannot be set up leaves nothing behind. Of several processes of one training only the one that `writes`
    holds the folder.

    Raises:
        ConfigError: the folder holds a run that this configuration did not begin, or that is not to be
            resumed, or another training is running in it, or it cannot be written.
    """
    with ExitStack() as held:
        existed = folder.exists()
        if writes and existed:
            held.enter_context(_only_training(folder))
        check_claim(folder, settings, resume)

        def begin(resolved: BaseModel | None = None) -> None:
            if not writes:
                return
            if not existed:
                held.enter_context(_only_training(folder))
                check_claim(folder, settings, resume)  # another training may have come first
            given = settings.model_dump(mode="json")
            content = given if resolved is None else {**resolved.model_dump(mode="json"), GIVEN: given}
            write_json(folder / "config.json", content, indent=1)

        yield begin


def check_claim(folder: Path, settings: BaseModel, resume: bool) -> None:
    """Raises ConfigError where the folder holds a run of another configuration, or one that is not to be
    resumed."""
    path = folder / "config.json"
    if not path.exists():
        return
    if not resume:
        raise ConfigError(
            f"{folder} holds a run already: add --resume to go on with it, or choose another folder with "
            "out=FOLDER"
        )
    before, content = json.loads(path.read_text(encoding="utf-8")), settings.model_dump(mode="json")
    before = before.get(GIVEN, before)
    changed = sorted(key for key in content if content[key] != before.get(key))
    if changed:
        found = f"{folder} was begun with other settings ({', '.join(changed)})"
        raise ConfigError(f"{found}: resume with the same ones, or choose another out")


@contextmanager
def _only_training(folder: Path) -> Iterator[None]:
    """Held by a transaction, which the system ends with the process however that dies."""
    place = folder / "checkpoints" / "lock.sqlite"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(place, timeout=0, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        raise _not_writable(folder, error) from error
    with closing(lock):
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise _not_writable(folder, error) from error
            raise ConfigError(
                f"{folder}: another training is running in this folder; wait until it has ended, or choose "
                "another folder with out=FOLDER"
            ) from error
        yield


def _not_writable(folder: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        f"{folder} cannot be written ({reason}): put that right, or choose another folder with out=FOLDER"
    )
