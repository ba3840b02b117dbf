"""Compares several runs: scores, sizes, times, curves, and captions of the same pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from patchword.files import write_text
from patchword.reports.bars import save_bars
from patchword.reports.comparison_page import bars_label, cider_bars, comparison_page, curve_panels
from patchword.reports.comparison_tables import comparison_tables, markdown
from patchword.reports.configurations import configurations
from patchword.reports.curves import save_panels
from patchword.reports.sides import read_side, side_names

WRITTEN = ("compare.html", "table.md", "curves.png", "curves.svg", "bars.png", "bars.svg")
"""The files of a comparison."""


def write_comparison(
    folders: Sequence[Path],
    out: Path,
    references: Mapping[str, Sequence[str]] | None = None,
    split: str = "val",
    pictures: Path | None = None,
) -> Path:
    """Writes compare.html, table.md, curves and bars (PNG and SVG) into `out`; returns the path of the page.

    Runs that differ only by the seed are also shown together, and compared as configurations.

    Args:
        references: captions of the pictures by image id. With them, the captions are scored again with all
            metrics, and differences from the first run get intervals.
        split: a run's predictions/SPLIT.json is preferred to the predictions of its best validation.
        pictures: folder of the pictures; only then are they embedded.

    Raises:
        ConfigError: a folder is no run folder.
        DataError: predictions do not fit the references.
    """
    sides = [
        read_side(folder, shown, references, split)
        for folder, shown in zip(folders, side_names(folders), strict=True)
    ]
    together = configurations([side.name for side in sides], [side.run.config for side in sides])
    # Of several seeds only the first is shown, because the curves and captions of all would hide one another.
    shown = [sides[one.members[0]] for one in together]
    tables = comparison_tables(sides, together, with_differences=bool(references))
    panels, bars = curve_panels(shown), cider_bars(sides, together)
    out.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        if panels:
            save_panels(out / f"curves.{kind}", panels, "step")
        if len(bars) > 1:
            save_bars(out / f"bars.{kind}", "CIDEr of decoded captions", bars_label(bars), bars)
    picture = out / "bars.png" if len(bars) > 1 else None
    write_text(out / "table.md", "\n\n".join(map(markdown, tables)) + "\n")
    write_text(out / "compare.html", comparison_page(sides, shown, tables, panels, picture, pictures))
    return out / "compare.html"
