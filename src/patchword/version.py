"""The version of the installed package, read from its metadata."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The version of the distribution `patchword`; "unknown" where the package is imported from a folder that is not installed."""
    try:
        return metadata.version("patchword")
    except metadata.PackageNotFoundError:
        return "unknown"
