"""The choice of a device, which is made once and passed on; and what this process has used."""

from __future__ import annotations

import sys

import psutil
import torch

from patchword.errors import ConfigError


def choose_device(name: str | None) -> torch.device:
    """Returns the device called `name` (cpu, cuda, cuda:1, mps), or the best available one for None.

    Raises ConfigError where the named device cannot be used.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}; try cpu, or leave it out"
        ) from error
    return device


def wait(device: torch.device) -> None:
    """Waits until the device has finished its queued work, so that a clock measures only what follows.

    On a CPU there is no queue, and the function returns at once.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_mebibytes() -> float:
    """The most main memory that this process has held so far, in MiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # Windows has no such module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB
