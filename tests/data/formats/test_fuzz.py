"""Data files of every format and indexes, mutated: an error that names the file, or records, never a
traceback (large: benchmarks/fuzz_folders.py)."""

import os

import mutant_files
import mutants
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("PATCHWORD_FUZZ", "20"))
KINDS = ("index", *mutant_files.data_files())


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    return mutant_files.victims(tmp_path_factory.mktemp("victims"))


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_mutated_files_are_refused_or_read(kind, victims, tmp_path, seed):
    mutation = mutants.mutate(victims[kind].folder, tmp_path / "mutant", seed)
    outcome = mutants.judge(victims[kind], tmp_path / "mutant", mutation)
    assert not outcome.wrong, (mutation, outcome)
