"""`patchword check` as a user types it."""

import json

from typer.testing import CliRunner

from patchword.cli import app
from patchword.data.scenes import write_scenes


def test_check(tmp_path):
    file = write_scenes(tmp_path, 2, size=32)
    write_scenes(tmp_path, 1, size=32, split="val")
    run = CliRunner().invoke(app, ["check", str(file), "--images", str(tmp_path / "images")])
    assert run.exit_code == 0
    assert (
        run.stdout.splitlines()[0]
        == f"{file}: 3 pictures with 15 captions; splits: train 2, val 1; pictures in {tmp_path / 'images'}"
    )
    assert run.stdout.splitlines()[-1] == "Nothing found would stop a training."

    (tmp_path / "images" / "iid_train_000001.png").unlink()
    run = CliRunner().invoke(app, ["check", str(file)])
    assert run.exit_code == 1
    assert "missing (1)" in run.stdout and "1 findings would stop a training." in run.stdout

    run = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert run.exit_code == 1 and json.loads(run.stdout)["findings"][0]["kind"] == "missing"


def test_a_path_that_does_not_exist_is_one_line(tmp_path, capsys, monkeypatch):
    from patchword.cli import main

    monkeypatch.setattr("sys.argv", ["patchword", "check", str(tmp_path / "none.csv")])
    try:
        main()
    except SystemExit as end:
        assert end.code == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"patchword: {tmp_path / 'none.csv'}: does not exist. Expected Karpathy JSON")
        and said.count("\n") == 1
    )
