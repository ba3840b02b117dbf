"""Patchword says what is in a picture, patch by patch and word by word.

    import patchword
    model = patchword.load("flickr8k")           # a shipped name, a folder, or a hub id
    print(model.caption("photo.jpg").text)

Importing the package imports no torch; `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from patchword.tasks.table import load


def __getattr__(name: str) -> object:
    if name == "__version__":
        from patchword.version import version

        return version()
    if name == "load":
        from patchword.tasks.table import load

        return load
    raise AttributeError(f"module 'patchword' has no attribute {name!r}")
