"""Training: the loop, one step, groups of parameters, schedules, data plans.

`patchword.train(...)` begins one from Python.

This package and the function of `patchword.__all__` have one name, so the package itself can be called:
whichever of them is imported first, `patchword.train` stays the same thing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from patchword.lookup import look_up


class _Training(ModuleType):
    def __call__(
        self,
        config: str | Path,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
        device: str | None = None,
    ) -> Path:
        """Train from a configuration file; see `patchword.interface.train`."""
        run: Path = look_up("interface:train")(config, settings, resume, device)
        return run


sys.modules[__name__].__class__ = _Training
