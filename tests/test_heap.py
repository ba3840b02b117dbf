"""What a model frees stays with the process, where the C library can be told so."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from patchword.heap import keep
if sys.argv[1] == "keep":
    keep()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.memset.argtypes, library.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
def use():
    place = library.malloc(40 * 2**20)
    library.memset(place, 1, 40 * 2**20)
    library.free(place)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how, **variables):
    """Page faults of five maps of 40 MiB that are taken and freed one after the other."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=plain | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told what to keep")
def test_what_is_freed_is_taken_again_without_page_faults():
    assert faults("keep") < faults("leave") / 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told what to keep")
def test_who_has_set_the_allocator_keeps_the_say():
    set_by_hand = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    assert faults("keep", **set_by_hand) > 5 * 40 * 2**20 / 4096 / 2
