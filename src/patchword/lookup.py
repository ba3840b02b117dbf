"""Wiring that is looked up instead of imported: "module:name" below `patchword`, loaded when it is asked
for."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def look_up(reference: str) -> Any:
    """What "module:name" stands for, for instance "tasks.caption.load:load" in
    `patchword/tasks/caption/load.py`; "module" is itself.
    """
    module, _, name = reference.partition(":")
    found = import_module(f"patchword.{module}")
    return getattr(found, name) if name else found
