"""requirements/ and constraints.txt say the same, and every line of requirements/ has a hash."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)(?: ; ([^\\]+?))? ?\\?$")


def pins(path):
    """(name, version, marker) of each line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [LINE.match(line) for line in lines if line and not line.startswith(("#", " "))]
    assert all(found), path
    return [(re.sub(r"[-_.]+", "-", one[1]).lower(), one[2], one[3] or "") for one in found]


@pytest.mark.parametrize("name", ["core", "dev"])
def test_hashes_are_of_the_versions_that_were_tested_together(name):
    listed = pins(ROOT / "requirements" / f"{name}.txt")
    tested = {package: version for package, version, _ in pins(ROOT / "constraints.txt")}
    new = {
        package: version
        for package, version, marker in listed
        if not re.search(r"python_full_version < '3\.11'", marker)
    }
    differ = {
        package: (version, tested[package])
        for package, version in new.items()
        if package in tested and tested[package] != version
    }
    assert len(new) > 40 and differ == {}, "`make requirements` brings them up to date"


@pytest.mark.parametrize("name", ["core", "dev"])
def test_every_line_has_a_hash_and_torch_is_not_among_them(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[A-Za-z])", text)[1:]
    assert blocks and all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    names = {block.split("==")[0] for block in blocks}
    assert not [one for one in names if one == "torch" or one.startswith(("nvidia-", "triton", "cuda-"))]


def test_the_core_is_a_part_of_the_rest():
    core, dev = ({pin[:2] for pin in pins(ROOT / "requirements" / f"{name}.txt")} for name in ("core", "dev"))
    assert core <= dev


def test_what_the_suite_needs_is_among_the_hashes():
    """Every package of the extras that `make test` installs."""
    extras = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    given = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = {package for package, _, _ in pins(ROOT / "requirements" / "dev.txt")}
    for extra in extras[1].split(","):
        section = re.search(rf"^{extra} = \[(.*?)\]$", given, re.MULTILINE | re.DOTALL)
        names = {re.split(r"[\[=><]", one)[0].lower() for one in re.findall(r'"([^"]+)"', section[1])}
        assert names and names <= listed, "`make requirements` brings them up to date"
