"""`patchword score-images`: how good generated pictures are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchword.cli.outputs import complain, print_json
from patchword.errors import counted

if TYPE_CHECKING:
    from patchword.tasks.paint.score import Report


def score_images(
    generated: Annotated[Path, typer.Argument(help="Folder of the generated pictures.")],
    real: Annotated[Path, typer.Argument(help="Folder of the real pictures.")],
    captions: Annotated[
        Path | None,
        typer.Option(
            help="What the generated pictures were asked for: any file of captions that a training reads; "
            "files that Patchword painted carry it themselves."
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="What makes the features: imagenet (EfficientNet-Lite2), scenes (the reader of drawn "
            "scenes), inception:FILE (public weights of FID, pt_inception-2015-12-05-6726825d.pth), or two "
            "towers by name."
        ),
    ] = "imagenet",
    towers: Annotated[
        str | None, typer.Option(help="Two towers for CLIPScore and R-precision; none where left out.")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(min=8, max=8192, help="Cut and scale all pictures to this side before anything."),
    ] = None,
    any_format: Annotated[
        bool, typer.Option("--any-format", help="Compare files of different formats all the same.")
    ] = False,
    neighbours: Annotated[
        int, typer.Option(min=1, max=1000, help="k of precision, recall, density and coverage.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Compare generated pictures with real ones: Frechet distance, KID, precision, recall, density, coverage,
    and with their captions CLIPScore and R-precision; drawn scenes are read back and checked statement by
    statement."""
    from patchword.cli.left_out import report_left_out
    from patchword.log import progress
    from patchword.tasks.paint.extractors import SCENES, find_extractor
    from patchword.tasks.paint.score import ScoreOptions
    from patchword.tasks.paint.score import score_images as measure

    extractor = find_extractor(features, device)
    truth = None
    if features == SCENES:
        from patchword.tasks.paint.oracle import load_oracle

        truth = load_oracle().truth
    two = None
    if towers is not None:
        from patchword.tasks.retrieve.load import load_two_towers

        two = load_two_towers(towers, device)
    with progress() as bar:
        task = bar.add_task("reading pictures", total=None, status="")
        options = ScoreOptions(captions, two, truth, resize, neighbours, any_format)
        report = measure(
            generated,
            real,
            extractor,
            options,
            lambda count, total: bar.update(task, advance=count, total=total),
        )
    for remark in report.remarks:
        complain(remark)
    if as_json:
        scores = {row.name: {"value": row.value, "interval": row.interval} for row in report.rows}
        counts = dict(zip(("generated", "real"), report.counts, strict=True))
        left_out = report.left_out.by_reason()
        print_json({**counts, "features": report.features, "scores": scores, "left_out": left_out})
    else:
        _print(report)
    compared = f"{sum(report.counts)} pictures compared"
    raise typer.Exit(1 if report_left_out(report.left_out, compared, 0, as_json=False) else 0)


def _print(report: Report) -> None:
    print(
        f"{report.counts[0]} generated, {counted(report.counts[1], 'real picture')}; features "
        f"of {report.features}"
    )
    for row in report.rows:
        around = "" if row.interval is None else f"  [{row.interval[0]:.4f}, {row.interval[1]:.4f}]"
        print(f"{row.value:10.4f}{around:24}  {row.name}")
