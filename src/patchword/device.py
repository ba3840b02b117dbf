"""Where tensors live: one choice, made once, passed on."""

from __future__ import annotations

import torch

from patchword.errors import ConfigError


def choose_device(name: str | None) -> torch.device:
    """The device called `name` (cpu, cuda, cuda:1, mps), or the best that is there. Raises ConfigError for one that is not."""
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
    """Until the device has done what was asked of it, so that a clock measures what follows alone; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
