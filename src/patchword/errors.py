"""The errors that a user of Patchword can meet, one tree.

Every message says what was found, where, what was expected, and what to do. The command line prints the message as one line and
exits with `exit_status`; `--debug` shows the traceback as well.
"""

from __future__ import annotations


class PatchwordError(Exception):
    """Anything that Patchword itself found wrong. Catch this to catch them all."""

    exit_status = 2


class ConfigError(PatchwordError):
    """A setting that does not exist, has the wrong type, or contradicts another one."""


class DataError(PatchwordError):
    """An annotation, a split, a caption or an identifier that cannot be used."""


class PictureError(DataError):
    """A picture that cannot be decoded, or must not be: the message names the file and the reason."""


class StoreError(DataError):
    """A feature store or pixel cache that is stale, partial, or made for something else."""


class ModelError(PatchwordError):
    """A model folder that is incomplete, of another format, or does not fit the code that loads it."""


class TrainingError(PatchwordError):
    """A training that cannot go on: the loss is not finite, or a resumed run differs from the one that was interrupted."""


class MetricUnavailable(PatchwordError):
    """A metric that cannot run here (no Java, no tables). Reports leave such a metric out; they never print 0 for it."""


class MissingExtra(PatchwordError):
    """An optional dependency is needed and not installed: the message gives the pip line."""
