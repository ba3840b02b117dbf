"""Wiring that is looked up instead of imported: "module:name" below `patchword`, loaded when it is asked
for."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any


def look_up(reference: str) -> Any:
    """What "module:name" stands for, for instance "tasks.caption.load:load" in
    `patchword/tasks/caption/load.py`; "module" is itself.
    """
    module, _, name = reference.partition(":")
    found = import_module(f"patchword.{module}")
    return getattr(found, name) if name else found


def import_torch() -> None:
    """Import torch, whose objects live as long as the process, so that the garbage collector never goes
    through them: for commands, which start in a seventh less time."""
    if "torch" in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        import_module("torch")
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
