"""Kind 5: brackets, colons and letters of all kinds in names of files, classes and labels are shown as they are.

The library that draws tables takes `[bold]` for markup and `:dog:` for an emoji, and ends with an error at `[/x]`.
"""

import json
import re
from pathlib import Path

import patchword
from patchword.log import console, progress

NAMES = ["[bold]x", "[/red]", ":dog:", "[link=a]b[/link]"]


def test_kind_5_a_console_prints_what_it_is_given(capsys):
    from rich.table import Table

    table = Table("name", title="of [/title] :cat:")
    for name in NAMES:
        table.add_row(name)
    console(width=80).print(table)
    console(width=80).print("runs/[/x]/:dog:")
    said = capsys.readouterr().out
    assert all(name in said for name in (*NAMES, "of [/title] :cat:", "runs/[/x]/:dog:"))


def test_kind_5_a_progress_bar_takes_every_name(capsys):
    with progress() as bar:
        bar.add_task("captions of [/val]", total=1, status="[/x]")
        bar.refresh()
    assert "captions of [/val]" in capsys.readouterr().err


def test_kind_5_no_other_console_is_made():
    source = Path(patchword.__file__).parent
    makers = {path.name for path in source.rglob("*.py") if re.search(r"\bConsole\(", path.read_text())}
    assert makers == {"log.py", "tables.py"}  # METEOR's tables: a bar that shows no name


def test_kind_5_scores_name_the_files_of_predictions(patchword, tmp_path):
    (tmp_path / "references.json").write_text(json.dumps({"1": ["a dog runs"], "2": ["a cat"]}))
    (tmp_path / "predictions").mkdir()
    for name in ("[bold]x", "a[/red]", ":dog:"):
        where = tmp_path / "predictions" / f"{name.replace('/', chr(0x2215))}.json"
        where.write_text(json.dumps({"1": "a dog", "2": "a cat"}))
    call = ("score", tmp_path / "predictions", tmp_path / "references.json", "--metrics", "bleu")
    status, said, err = patchword(*call)
    assert status == 0, err
    assert "[bold]x" in said and ":dog:" in said
