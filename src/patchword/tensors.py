"""Tensors in safetensors files: written or refused with the true reason, and known by their header before any
is read.

The header lists name, shape and type of every tensor; a model that a configuration asks for is bounded by it
while it is built, so that a damaged configuration costs neither memory nor time.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from patchword.errors import ModelError, PatchwordError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor by its name."""

NUMBERS_BESIDE = 4_000_000
"""What a model may hold beside its weights, in numbers: positions, masks."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. Tensors that share memory are stored once under each name.

    Raises OSError as the system gives it, which `files.whole_folder` explains; safetensors alone would hide
    its number.
    """
    copied = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.touch()
    permissions = (
        path.stat().st_mode
    )  # those of an ordinary file; safetensors would make one for its owner only
    try:
        save_file(copied, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise _system_error(error, path) or error from error
    path.chmod(permissions)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises ModelError where it is missing, cut off or no safetensors file."""
    with _readable(path):
        return load_file(path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, from the header alone. Raises ModelError as `read_tensors`."""
    with _readable(path), safe_open(path, framework="pt") as stored:
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


def compare_shapes(where: Path, stored: Shapes, wanted: Shapes) -> None:
    """Raises ModelError naming tensors that are missing, too many, or of another shape than is wanted."""
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or extra:
        raise ModelError(
            f"{where} does not fit this model: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} too many {extra[:3]}"
        )
    for name, shape in wanted.items():
        if tuple(stored[name]) != tuple(shape):
            raise ModelError(
                f"{where}: {name} has shape {tuple(stored[name])}, this model needs {tuple(shape)}"
            )


def build_to_fit(
    build: Callable[[], nn.Module],
    stored: Shapes,
    where: Path,
    configuration: Path,
    without: Callable[[str], bool] | None = None,
) -> Any:
    """Build a model whose weights come from a file, with as much memory as these weights need and without
    drawing numbers that they replace, and compare what it holds with what is stored; names of `without` are
    not looked at.

    Raises:
        ModelError: the configuration describes no model that can be built, or one of other sizes than the
            weights.
    """
    most_numbers = NUMBERS_BESIDE + 2 * sum(math.prod(shape) for shape in stored.values())
    try:
        with _BoundedConstruction(20 * len(stored) + 1000, most_numbers):
            model = build()
        state = model.state_dict()
    except PatchwordError as error:
        raise ModelError(f"{configuration}: {error} (copy the folder anew if nobody edited it)") from error
    except Exception as error:  # a value that no model can have fails somewhere inside torch or transformers
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{configuration} describes no model that can be built ({type(error).__name__}: {said}): "
            "the file was altered; copy the folder anew from where it was made"
        ) from error
    wanted = {
        name: tuple(tensor.shape) for name, tensor in state.items() if without is None or not without(name)
    }
    compare_shapes(where, stored, wanted)
    return model


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _BoundedConstruction(TorchFunctionMode):
    """For a construction whose weights are read afterwards: nothing is drawn, and a model of far more tensors
    or numbers than there are weights, such as one of a million layers, is stopped before it takes memory.
    """

    SHAPED = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __init__(self, most_tensors: int, most_numbers: int) -> None:
        super().__init__()
        self.most_tensors, self.most_numbers = most_tensors, most_numbers
        self.tensors = self.numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Only whole functions of torch.nn.init are left out: the truncated normal distribution, which is none
        # of those that can be, draws with a tensor's methods until every number lies within its bounds.
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func is torch.Tensor.uniform_ and isinstance(args[0], nn.Parameter):
            return args[0]  # xavier_uniform_ can be left out by what it calls alone
        if func in self.SHAPED:
            self._count(_numbers_of_shape(args, kwargs))
        elif func is torch.arange:
            self._count(len(range(*args)) if all(isinstance(value, int) for value in args) else 1)
        return func(*args, **kwargs)

    def _count(self, numbers: int) -> None:
        self.tensors, self.numbers = self.tensors + 1, self.numbers + numbers
        for made, most, what in (
            (self.tensors, self.most_tensors, "tensors"),
            (self.numbers, self.most_numbers, "numbers"),
        ):
            if made > most:
                raise ModelError(
                    f"it describes a model of more than {most} {what}, far more than the weights beside it"
                )


def _numbers_of_shape(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many numbers a call of `torch.empty` or one like it asks for."""
    size = kwargs.get("size", args[0] if args and isinstance(args[0], Sequence) else args)
    return math.prod(int(side) for side in ((size,) if isinstance(size, int) else size))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of reading a safetensors file, as ModelError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: the folder is incomplete; copy it anew") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}): it is damaged; copy the folder anew") from error


def _system_error(error: SafetensorError, path: Path) -> OSError | None:
    """The error of the system inside one of safetensors, which gives its number in words only."""
    found = re.search(r"\(os error (\d+)\)|code: (\d+)", str(error))
    if found is None:
        return None
    number = int(found[1] or found[2])
    return OSError(number, os.strerror(number), str(path))
