"""The last line of a command that reads folders: what it left out, counted by reason."""

from __future__ import annotations

from collections.abc import Mapping

from patchword.cli.outputs import complain, print_json
from patchword.data.sources import RAW, PictureListing


def report_left_out(found: PictureListing, done: str, unreadable: int, as_json: bool) -> int:
    """Print it, where there is something to say; `done` says in words what was done. Returns how many
    pictures were probably lost.

    Broken links and what cannot be read are named one by one on standard error, as pictures that cannot be
    decoded are. With `as_json` the counts are also the last line of standard output, an object whose `image`
    is null.
    """
    from patchword.files import printable

    lost = found.lost()
    for one in lost:
        if one.reason != RAW:  # there may be as many of these as there are photographs
            complain(f"{printable(str(one.path))}: {one.reason}")
    counts = found.by_reason()
    if as_json and (counts or unreadable):
        print_json({"image": None, "unreadable": unreadable, "left_out": counts})
    if counts:
        bad = f", {unreadable} could not be read" if unreadable else ""
        complain(f"{done}{bad}{told_left_out(counts)}")
    return len(lost)


def told_left_out(counts: Mapping[str, int]) -> str:
    """The end of a sentence that counts what was left out; empty where nothing was."""
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    return f"; left out {sum(counts.values())} ({reasons})" if counts else ""
