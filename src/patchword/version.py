"""The version of the installed package, read from its metadata."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Returns the version of the distribution `patchword`, or "unknown" where it is not installed."""
    try:
        return metadata.version("patchword")
    except metadata.PackageNotFoundError:
        return "unknown"
