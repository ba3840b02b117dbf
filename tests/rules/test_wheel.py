"""A wheel of the checkout, installed elsewhere, does what README.md shows: nothing that the package needs
lies beside it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = 12
SHORT = [
    "stage.0.epochs=1",
    "data.minimum_count=1",
    "captioner.width=16",
    "captioner.word_width=16",
    "data.cache=cache",
]


ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys, traceback
from patchword.cli import main

def answered(kind, words):
    status = 0
    try:
        if kind == "code":
            exec(words[0], {"__name__": "__main__"})
        else:
            sys.argv = ["patchword", *words]
            main()
    except SystemExit as ended:
        status = ended.code or 0
    except Exception:
        traceback.print_exc()
        status = 1
    return status

for line in sys.stdin:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = answered(*json.loads(line))
    said = (one.buffer.getvalue().decode("utf-8", "surrogateescape") for one in (out, err))
    print(json.dumps([status, *said]), flush=True)
"""
"""Runs lines of code, and commands, as they come: one process starts torch once for all of them."""


class Installed:
    """Python with the wheel's package alone, in a folder with a data set of one's own."""

    def __init__(self, site: Path, work: Path) -> None:
        self.work = work
        self.environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        self.lasting = subprocess.Popen(
            [sys.executable, "-c", ONE_AFTER_THE_OTHER],
            cwd=work, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def code(self, text: str) -> str:
        """What a program prints."""
        return self._said("code", [text])

    def patchword(self, *words: str) -> str:
        """What a command prints."""
        return self._said("command", list(words))

    def process(self, *arguments: str) -> str:
        """What Python prints that is started for this alone."""
        finished = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert finished.returncode == 0, f"{arguments}: {finished.stderr[-2000:]}"
        return finished.stdout

    def _said(self, kind: str, words: list[str]) -> str:
        assert self.lasting.stdin is not None and self.lasting.stdout is not None
        self.lasting.stdin.write(json.dumps([kind, words]) + "\n")
        self.lasting.stdin.flush()
        status, out, err = json.loads(self.lasting.stdout.readline())
        assert status == 0, f"{words}: {err[-2000:]}"
        return out


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    pytest.importorskip(
        "setuptools", "77", reason="setuptools 77 builds the wheel: pip install patchword[dev]"
    )
    made, site, work = (tmp_path_factory.mktemp(name) for name in ("made", "site", "work"))
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "src" / "patchword", source / "src" / "patchword", ignore=shutil.ignore_patterns("__pycache__")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    alone = ["--no-deps", "--no-index"]
    wheel = [*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", str(made), str(source)]
    subprocess.run(wheel, check=True, capture_output=True, timeout=200)
    subprocess.run(
        [*pip, "install", *alone, "--no-compile", "--target", str(site), *map(str, made.glob("*.whl"))],
        check=True,
        timeout=200,
    )
    _data_set(work)
    running = Installed(site, work)
    yield running
    running.lasting.communicate()
    assert running.lasting.returncode == 0


def _data_set(folder: Path) -> None:
    (folder / "photos").mkdir()
    rows = ["image,caption,split"]
    for number in range(PICTURES):
        colour = ("red", "green", "blue")[number % 3]
        Image.new("RGB", (96, 96), colour).save(folder / "photos" / f"{number}.jpg")
        rows.append(f"{number}.jpg,a {colour} square,{'val' if number >= PICTURES - 3 else 'train'}")
    (folder / "mine.csv").write_text("\n".join(rows), encoding="utf-8")
    for name in ("photo.jpg", "new.jpg", "drawing.png"):
        Image.new("RGB", (96, 96), "red").save(folder / name)


def test_the_installed_package_is_that_of_the_wheel(installed):
    where = installed.process("-c", "import patchword; print(patchword.__file__, patchword.__version__)")
    version = re.search(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert str(ROOT) not in where and where.split()[1] == version.group(1)
    assert installed.code("import patchword; print(patchword.__file__, patchword.__version__)") == where


def test_every_module_and_configuration_is_in_the_wheel(installed):
    modules = "import pkgutil, patchword; print(*sorted(m.name for m in pkgutil.walk_packages(patchword.__path__, 'patchword.')))"
    packages = ROOT / "src" / "patchword"
    files = [path.relative_to(packages).with_suffix("") for path in packages.rglob("*.py")]
    names = {".".join(("patchword", *file.parts)).removesuffix(".__init__") for file in files} - {"patchword"}
    assert set(installed.code(modules).split()) == names
    listed = installed.process("-m", "patchword", "train", "--list").splitlines()
    assert len(listed) == len(list((packages / "configs").rglob("*.toml")))


def test_the_python_of_the_readme_runs(installed):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed = installed.code("".join(blocks)).splitlines()
    assert len(printed) == 1 + PICTURES + 1 and all(printed) and 0 < float(printed[-1]) <= 1


def test_training_on_own_data_runs_as_the_readme_shows_it(installed):
    section = README.split("## Train on your own data")[1].split("```sh\n")[1].split("```")[0]
    for line in section.splitlines():
        words = line.split()
        assert words[0] == "patchword"
        printed = installed.patchword(*words[1:], *(SHORT if words[1] == "train" else ()))
        if words[1] == "caption" and "--explain" not in words:
            assert "new.jpg" in printed
    page = (installed.work / "new.html").read_text(encoding="utf-8")
    assert "<html" in page and "new.jpg" in page
    assert len(json.loads((installed.work / "predictions.json").read_text(encoding="utf-8"))) == 3


@pytest.mark.parametrize(
    "words",
    [
        ("models",),
        ("label", "photo.jpg", "--labels", "a dog,a cat"),
        ("pair", "photo.jpg", "two dogs in snow"),
        ("ask", "drawing.png", "what color is the shape?", "--anyway"),
        ("score", "--help"),
    ],
    ids=lambda words: words[0],
)
def test_commands_of_the_readme_run(installed, words):
    assert installed.patchword(*words).strip()
