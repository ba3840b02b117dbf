import subprocess
import sys

import pytest


def run(*words):
    program = "import sys; from patchword.cli import main; sys.argv[0] = 'patchword'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", *words], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 opens the service to other machines: give --token"),
        (("--host", "0.0.0.0", "--token", "short"), "at least 16 printable ASCII characters"),
    ],
)
def test_an_open_address_without_a_good_token_is_refused_before_a_model_is_loaded(words, message):
    status, out, error = run(*words)
    assert status == 2 and out == "" and message in error
    assert len(error.splitlines()) == 1
