"""What one touches to add a model or a task, as CONTRIBUTING.md lists it: a dummy of each is added to a copy and works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
HOUSE = (
    "floor",
    "circle",
    "page",
    "config",
    "free_of",
    "strictly",
    "swallowed",
    "500_lines",
    "what_it_is",
    "each_other",
)
"""The house rules that an addition must keep, by words of the names of their tests."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The checkout without its large files."""
    place = tmp_path_factory.mktemp("copy")
    left_out = shutil.ignore_patterns("__pycache__", "*.safetensors", "images")
    for folder in ("src", "docs"):
        shutil.copytree(ROOT / folder, place / folder, ignore=left_out)
    (place / "tests" / "rules").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "rules" / "test_rules.py", place / "tests" / "rules")
    return place


def texts(place: Path) -> dict[str, str]:
    """Every text file of a copy."""
    files = [path for path in place.rglob("*") if path.suffix in (".py", ".md", ".toml") and path.is_file()]
    return {path.relative_to(place).as_posix(): path.read_text(encoding="utf-8") for path in files}


def added_lines(before: dict[str, str], after: dict[str, str]) -> dict[str, int]:
    """Of files that were there before, how many lines more they have; nothing may be taken out of them."""
    found = {}
    for name, text in before.items():
        old, new = text.splitlines(), after[name].splitlines()
        rest = iter(new)
        assert all(line in rest for line in old), f"{name} lost a line"
        if len(new) > len(old):
            found[name] = len(new) - len(old)
    return found


def run(place: Path, *arguments: object) -> str:
    """Runs Python with the package of a copy."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(place / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def keeps_the_rules(place: Path) -> None:
    run(
        place,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        " or ".join(HOUSE),
        "tests/rules/test_rules.py",
    )


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def line_after(path: Path, before: str, line: str) -> None:
    """Puts a line behind the first one that begins with `before`."""
    text = path.read_text(encoding="utf-8")
    assert f"\n{before}" in text, f"{path} has no line that begins with {before!r}"
    place = text.index("\n", text.index(f"\n{before}") + 1)
    path.write_text(f"{text[:place]}\n{line}{text[place:]}", encoding="utf-8")


BUILD = """
from patchword.composed import CaptionModel
from patchword.config import find_config, read_toml, validate
from patchword.lookup import look_up
from patchword.tasks.table import TASKS
settings = validate(read_toml("haiku-flickr8k"), look_up(TASKS["caption"].run), "haiku-flickr8k")
print(type(CaptionModel.build(settings.tower, settings.captioner, 20).captioner).__module__)
"""


def test_a_model_touches_its_file_its_configuration_its_page_and_one_line_of_the_table(copy):
    before = texts(copy)
    package = copy / "src" / "patchword"
    model, page = package / "models" / "captioners" / "haiku.py", copy / "docs" / "models" / "haiku.md"
    config, table = package / "configs" / "haiku-flickr8k.toml", package / "composed.py"
    source = (package / "models" / "captioners" / "show_tell.py").read_text(encoding="utf-8")
    put(model, source.replace("ShowTell", "Haiku").replace("show_tell", "haiku"))
    show_tell = (package / "configs" / "show-tell-flickr8k.toml").read_text(encoding="utf-8")
    put(config, show_tell.replace("show_tell", "haiku").replace("show-tell", "haiku"))
    put(
        page,
        "# Haiku\n\n`src/patchword/models/captioners/haiku.py`: three lines, of which the second is the longest.\n",
    )
    line_after(
        table,
        '    "show_tell": Kind(',
        '    "haiku": Kind("models.captioners.haiku", "HaikuConfig", "Haiku"),',
    )
    after = texts(copy)
    added = {path.relative_to(copy).as_posix() for path in (model, page, config)}
    assert set(after) - set(before) == added
    assert added_lines(before, after) == {"src/patchword/composed.py": 1}
    keeps_the_rules(copy)
    assert run(copy, "-c", BUILD).strip() == "patchword.models.captioners.haiku"
    assert "haiku-flickr8k  " in run(copy, "-m", "patchword", "train", "--list")

    for path in (model, page, config):
        path.unlink()
    table.write_text(before["src/patchword/composed.py"], encoding="utf-8")
    assert texts(copy) == before


COUNTING = '''"""Counting: how many colours a picture has."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from patchword.data.pictures import Picture, open_picture


class ColourCounter(NamedTuple):
    """A model without weights."""

    name: str

    def count(self, picture: Picture) -> int:
        """The number of different colours. Raises PictureError for a picture that cannot be decoded."""
        return len(set(open_picture(picture).getdata()))


def load_counter(name: str | Path, device: str | None = None) -> ColourCounter:
    """The model of a folder."""
    return ColourCounter(str(name))
'''
COMMAND = '''"""`patchword count`: how many colours a picture has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def count(
    photo: Annotated[Path, typer.Argument(help="A picture.")],
    model: Annotated[str, typer.Option("--model", help="A folder.")] = "counter",
) -> None:
    """Print the number of colours."""
    from patchword.interface import load

    print(load(model).count(photo))
'''
TASK = '    "count": Task("tasks.count.model:load_counter", "tasks.count.train:CountRun", "tasks.count.train:count_recipe"),'


def test_a_task_touches_its_folder_its_command_and_one_line_of_the_table(copy):
    """Its command is a file and its name in the list of commands; nothing else of the package knows of it."""
    before = texts(copy)
    package = copy / "src" / "patchword"
    folder, command = package / "tasks" / "count", package / "cli" / "count.py"
    table, commands = package / "tasks" / "table.py", package / "cli" / "__init__.py"
    put(folder / "__init__.py", '"""Counting what pictures show."""\n')
    put(folder / "model.py", COUNTING)
    put(command, COMMAND)
    line_after(table, "TASKS = {", TASK)
    line_after(commands, '        "ask",', '        "count",')
    after = texts(copy)
    own = {
        "src/patchword/cli/count.py",
        "src/patchword/tasks/count/__init__.py",
        "src/patchword/tasks/count/model.py",
    }
    assert set(after) - set(before) == own
    assert added_lines(before, after) == {
        "src/patchword/tasks/table.py": 1,
        "src/patchword/cli/__init__.py": 1,
    }
    keeps_the_rules(copy)
    put(
        copy / "counter" / "config.json",
        '{"format": FORMAT, "task": "count"}'.replace("FORMAT", _format(package)),
    )
    picture = Image.new("RGB", (4, 4), "red")
    picture.putpixel((0, 0), (0, 0, 9))
    picture.save(copy / "p.png")
    assert run(copy, "-m", "patchword", "count", "p.png").strip() == "2"
    assert re.search(r"count +Print the number of colours", run(copy, "-m", "patchword", "--help"))

    shutil.rmtree(folder)
    command.unlink()
    table.write_text(before["src/patchword/tasks/table.py"], encoding="utf-8")
    commands.write_text(before["src/patchword/cli/__init__.py"], encoding="utf-8")
    assert texts(copy) == before


def _format(package: Path) -> str:
    source = (package / "checkpoints" / "folder.py").read_text(encoding="utf-8")
    return re.search(r"^FORMAT = (\d+)$", source, re.MULTILINE).group(1)


@pytest.mark.parametrize("title", ["Adding a model", "Adding a task"])
def test_contributing_lists_what_one_touches(title):
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    )
    named = re.findall(r"`((?:src|docs|tests)/[\w/.-]+)`", section)
    assert named and all((ROOT / name).exists() for name in named)
