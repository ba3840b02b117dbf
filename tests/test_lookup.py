import subprocess
import sys

import pytest

AFTER = """
import gc, sys
from patchword.lookup import import_torch
{before}
import_torch()
frozen = gc.get_freeze_count()
import_torch()
print("torch" in sys.modules, gc.isenabled(), frozen > 10_000, gc.get_freeze_count() == frozen)
"""


def after(before):
    done = subprocess.run(
        [sys.executable, "-c", AFTER.format(before=before)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_collector_passes_over_torch_and_collects_all_else():
    assert after("") == ["True", "True", "True", "True"]
    assert after("gc.disable()") == ["True", "False", "True", "True"], "as whoever called left it"


def test_what_lives_in_a_process_that_has_torch_is_collected():
    assert after("import torch") == ["True", "True", "False", "True"]


def test_work_without_collection_leaves_the_collector_as_it_was():
    import gc

    from patchword.heap import uncollected

    for begun in (gc.enable, gc.disable):
        try:
            begun()
            before = gc.isenabled()
            with pytest.raises(ValueError, match="in it"), uncollected():
                assert not gc.isenabled()
                raise ValueError("in it")
            assert gc.isenabled() == before
        finally:
            gc.enable()
