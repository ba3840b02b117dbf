"""docs/faults.md names tests; each is there."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)`((?:[:,]? `test_\w+`)*)")


def test_every_test_that_the_page_names_is_there():
    found = [(file, name) for file, names in NAMED.findall(PAGE) for name in re.findall(r"test_\w+", names)]
    missing = [
        f"{file}::{name}"
        for file, name in found
        if not re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(found) > 80 and missing == []


def test_every_kind_has_known_cases_and_at_least_two_others():
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| **")]
    assert [int(re.match(r"\| \*\*(\d+)", row[0])[1]) for row in rows] == list(range(1, 15))
    assert all(len(re.findall(r"`test_\w+`", cell)) >= 2 for row in rows for cell in row[1:])
