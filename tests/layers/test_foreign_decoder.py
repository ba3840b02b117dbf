"""The example that puts codebook and prototype memory into transformers' GPT-2 runs, and its memory comes to
life.
"""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "prototype_memory_in_a_foreign_decoder.py"


def test_the_example_runs(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert "alive  0  mean gate 0.0000" in lines[3]
    assert "alive 16" in lines[-1]
    assert "mean gate 0.0000" not in lines[-1]
