"""Whatever happens to the files of a folder: an error of ours that names it, or the same result (large:
benchmarks/fuzz_folders.py).
"""

import os

import mutants
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("PATCHWORD_FUZZ", "25"))
KINDS = (*mutants.ASKED, "store", "codebook")


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    return mutants.victims(tmp_path_factory.mktemp("victims"))


def test_every_kind_is_there(victims):
    assert set(victims) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_mutated_folders_are_refused_or_unharmed(kind, victims, tmp_path, seed):
    mutation = mutants.mutate(victims[kind].folder, tmp_path / "mutant", seed)
    outcome = mutants.judge(victims[kind], tmp_path / "mutant", mutation)
    assert not outcome.wrong, (mutation, outcome)
