"""The errors that Patchword raises, as one tree.

Every message says what was found, where, what was expected, and what to do. The command line prints the
message as one line and exits with `exit_status`; `--debug` also shows the traceback. `counted` says a number
with its noun.
"""

from __future__ import annotations


class PatchwordError(Exception):
    """Base class of all errors that Patchword raises itself; catch this to catch them all."""

    exit_status = 2


class ConfigError(PatchwordError):
    """A setting that does not exist, has the wrong type, or contradicts another one."""


class DataError(PatchwordError):
    """An annotation, a split, a caption or an identifier that cannot be used."""


class PictureError(DataError):
    """A picture that cannot be decoded or must not be; the message names the file and the reason."""


class NotAPicture(PictureError):
    """A file of no kind that is read as a picture here."""


class PictureTooLarge(PictureError):
    """A picture whose decoding would take more pixels, bytes or passes than are allowed; it was not
    decoded."""


class StoreError(DataError):
    """A feature store or pixel cache that is stale, incomplete, or made for something else."""


class ModelError(PatchwordError):
    """A model folder that is incomplete, of another format, or does not fit the code that loads it."""


class WriteError(PatchwordError):
    """A file or folder that cannot be written: no space, no permission, or a name that is taken.

    What was there before still is.
    """


class TrainingError(PatchwordError):
    """Training cannot continue: the loss is not finite, or a resumed run differs from the original."""


class MetricUnavailable(PatchwordError):
    """A metric that cannot run here, because Java or its tables are missing.

    Reports leave such a metric out; they never print 0 for it.
    """


class MissingExtra(PatchwordError):
    """An optional dependency that is needed and not installed; the message gives the pip command."""


def counted(n: int, thing: str, things: str | None = None) -> str:
    """A number with its noun, as messages say it: 1 picture, 2 pictures.

    `things` is given where it is not `thing` with an s, or where a verb follows: 1 word has, 2 words have.
    """
    return f"{n} {thing}" if n == 1 else f"{n} {things or thing + 's'}"
