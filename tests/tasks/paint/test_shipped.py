"""The painter that ships: what a person gets who types a prompt and nothing else."""

import json

from patchword.cli import app
from patchword.data.pictures import open_picture
from patchword.tasks.paint.marks import read_facts
from patchword.tasks.paint.model import load_painter
from patchword.tasks.paint.oracle import load_oracle


def type_in(*words: object) -> int:
    return app([str(word) for word in words], standalone_mode=False) or 0


def test_a_prompt_alone_paints_what_it_says(tmp_path, capsys):
    assert type_in("paint", "a large red circle", "-n", 6, "--out", tmp_path / "painted", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pictures = [open_picture(row["file"]) for row in rows]
    assert len(pictures) == 6 and {picture.size for picture in pictures} == {(16, 16)}
    assert all(read_facts(row["file"])["model"] == "drawn-scenes" for row in rows)
    # The reader finds no thing in some of them, and processors round differently: chance gives one of eight.
    things = [scene.things[0] for scene in load_oracle().read(pictures).scenes if scene.things]
    assert sum(thing.colour == "red" for thing in things) >= 4
    assert sum(thing.shape == "circle" for thing in things) >= 3
    assert sum(thing.size == "large" for thing in things) >= 3


def test_words_that_it_never_learnt_are_named(capsys, tmp_path):
    assert type_in("paint", "a red zebra", "-n", 1, "--steps", 2, "--out", tmp_path / "painted") == 0
    assert "never learnt zebra" in capsys.readouterr().err


def test_the_guidance_that_nobody_names_is_the_models_own():
    painter = load_painter("drawn-scenes", "cpu")
    own = painter.paint("a blue ring", [1], steps=3)
    assert (own == painter.paint("a blue ring", [1], painter.settings.painter.guidance, steps=3)).all()
    assert (own != painter.paint("a blue ring", [1], 1.0, steps=3)).any()
