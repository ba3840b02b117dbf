"""What README.md and docs/ tell a person to type exists."""

import re
from pathlib import Path

import pytest
import typer

from patchword.cli import COMMANDS as NAMES
from patchword.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src" / "patchword" / "configs").rglob("*.toml"),
    ]
)
GROUP = typer.main.get_command(app)
COMMANDS = {name: GROUP.get_command(None, name) for name in NAMES}
OPTIONS = {
    name: {
        "--help",
        *(
            option
            for one in (command, *getattr(command, "commands", {}).values())
            for part in one.params
            for option in part.opts
        ),
    }
    for name, command in COMMANDS.items()
}
"""Options by command; those of its own commands as well, where it has any."""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_commands_lists_every_option(command):
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert f"| [`{command}`](#patchword-{command}) |" in page
    section = page.split(f"## patchword {command}\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"`(-{1,2}[\w-]+)`", section))
    assert {option for option in OPTIONS[command] if option.startswith("-")} - {"--help"} <= listed
    assert f"patchword {command} " in section or f"patchword {command}\n" in section


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_that_a_page_prints_exist(page):
    wrong = []
    for line in page.read_text(encoding="utf-8").splitlines():
        typed = re.fullmatch(r"[\s#>$]*(?:python -m )?patchword (?:--debug )?([a-z]\w*) ([^|`]*)", line)
        if typed is None:
            continue
        command, words = typed.group(1), typed.group(2).split("  #")[0].split()
        if command not in OPTIONS:
            wrong.append(line)
        else:
            wrong += [
                f"{line}: {word}"
                for word in words
                if re.match(r"--?[a-z]", word) and word.split("=")[0] not in OPTIONS[command]
            ]
    assert not wrong


def test_make_targets_that_the_readme_prints_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    printed = set(
        re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert printed and printed <= targets


@pytest.mark.parametrize(
    "page",
    [path for path in PAGES if path.suffix == ".md"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_links_to_files_lead_somewhere(page):
    prose = re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))  # code may show what a link looks like
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken
