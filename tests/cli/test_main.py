import io
import os
import subprocess
import sys

import pytest

from patchword import __version__
from patchword.cli import main

COMMANDS = (
    "caption index search label serve models check train predict score features codebook memory".split()
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_command(patchword, command):
    status, out, _ = patchword("--help")
    assert status == 0 and f" {command} " in out


def test_version(patchword):
    assert patchword("--version") == (0, f"patchword {__version__}\n", "")


def test_an_error_is_one_line_and_debug_raises_it(patchword, monkeypatch):
    from patchword.errors import ConfigError

    status, out, err = patchword("train", "nowhere.toml")
    assert (
        status == 2
        and out == ""
        and err.startswith("patchword: no configuration at nowhere.toml")
        and len(err.splitlines()) == 1
    )
    monkeypatch.setattr("sys.argv", ["patchword", "--debug", "train", "nowhere.toml"])
    with pytest.raises(ConfigError):
        main()


def test_a_console_that_is_not_utf8_shows_names_escaped(monkeypatch, towers, photos):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(
        sys,
        "argv",
        ["patchword", "label", str(photos / "bl\u00e5.png"), "--labels", "dog,cat", "--model", str(towers)],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and b"bl\\xe5.png\t" in console.buffer.getvalue()


def test_kind_14_help_does_not_break_inside_a_sentence():
    """At 80 columns a line of the list of commands is full before the next one begins."""
    command = [sys.executable, "-m", "patchword", "--help"]
    environment = {**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80", "PYTHONIOENCODING": "utf-8"}
    shown = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
    lines = shown[shown.index("Commands") :].splitlines()[1:]
    texts = [line.strip("│ ") for line in lines if line.startswith("│")]
    broken = []
    for line, following in zip(lines, lines[1:], strict=False):
        text, rest = line.rstrip("│ "), following.strip("│ ")
        begins_a_command = following[2:3].strip() != ""
        if rest and not begins_a_command and len(text) + 1 + len(rest.split()[0]) < 78:
            broken.append(text)
    assert len(texts) > 20 and not broken


def test_kind_14_ctrl_c_says_what_is_kept(monkeypatch, capsys):
    import patchword.cli as cli

    monkeypatch.setattr(cli, "app", lambda **options: 130)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (
        ended.value.code == 130 and "interrupted; what was already written is kept" in capsys.readouterr().err
    )
