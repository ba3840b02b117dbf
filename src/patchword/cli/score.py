"""`patchword score`: the numbers of coco-caption for files of predictions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchword.cli.outputs import Overwrite, complain, refuse_existing
from patchword.errors import ConfigError, counted
from patchword.files import write_json

if TYPE_CHECKING:
    from rich.table import Table


def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            help=(
                "COCO or VQA results JSON, {id: text}, JSON lines, CSV (that of `caption --out` too), or a "
                "folder of several."
            )
        ),
    ],
    references: Annotated[
        Path,
        typer.Argument(
            help=(
                "Captions: COCO, Karpathy, {id: captions}, a table, a folder of ID.txt. Answers: VQA "
                "annotations, questions."
            )
        ),
    ],
    metrics: Annotated[
        str, typer.Option(help="Comma-separated: bleu, meteor, rouge, cider, spice, cider-plain, diversity.")
    ] = "",
    split: Annotated[str | None, typer.Option(help="Split of a Karpathy file.")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="ptb; char or none are not comparable with coco-caption.")
    ] = "ptb",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score the images that both sides have, and say so.")
    ] = False,
    compare: Annotated[
        Path | None, typer.Option(help="Other predictions: what PREDICTIONS gain over them, and how surely.")
    ] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="95 % bootstrap intervals.")] = False,
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="Bootstrap resamples.")] = 1000,
    training: Annotated[
        Path | None, typer.Option(help="References of the training, for the share of unseen captions.")
    ] = None,
    clip_model: Annotated[
        str | None, typer.Option(help="Two towers, as for search: adds CLIPScore and RefCLIPScore.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures, for --clip-model.")] = None,
    objects: Annotated[
        Path | None, typer.Option(help="COCO instances, or JSON of object names by image id: adds CHAIR.")
    ] = None,
    synonyms: Annotated[
        Path | None, typer.Option(help="For CHAIR: lines of an object and phrases that name it, with commas.")
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="nocaps captions file: each domain is a set of its own, then all of it."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at line-breaking characters, which shift captions in Java.")
    ] = False,
    per_image: Annotated[
        bool, typer.Option("--per-image", help="Write the values of each image to --out as well.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for the values in full precision.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr and SPICE, equal to coco-caption; a metric that cannot run is
    left out, with the reason. Where the references are answers to questions: VQA accuracy, equal to VQA's own
    evaluation, and exact match."""

    from patchword.log import console
    from patchword.lookup import look_up
    from patchword.metrics.answer_files import holds_answers
    from patchword.metrics.files import named_as, read_prediction_files, read_references, reference_files
    from patchword.metrics.reporting import Settings, evaluate

    refuse_existing(overwrite, {"--out": out})
    if holds_answers(references):
        for_captions = {
            "--metrics": metrics, "--compare": compare, "--intervals": intervals, "--training": training,
            "--clip-model": clip_model, "--objects": objects, "--groups": groups, "--per-image": per_image,
        }  # fmt: skip
        given = [option for option, value in for_captions.items() if value]
        if given:
            raise ConfigError(
                f"{references} holds answers, and {', '.join(given)} is for captions: leave it out"
            )
        scorer = look_up("tasks.answer.evaluate:score_files")
        raise typer.Exit(scorer(predictions, references, split, allow_missing, out))

    if per_image and out is None:
        raise ConfigError("--per-image writes the values to a file: name it with --out")
    _refuse_halves(clip_model, images, objects, synonyms, groups, compare)
    settings = Settings.of(metrics, tokenizer, allow_missing, strict)
    wanted, names = read_references(references, split), reference_files(references)
    training_captions = read_references(training) if training else None
    further = _further(clip_model, references, images, objects, synonyms, tokenizer)
    settings = settings._replace(clip_model=clip_model)

    def scored(place: Path) -> dict[str, Any]:
        files = {}
        for name, captions in read_prediction_files(place).items():
            files[name], moved = named_as(captions, wanted, names)
            if moved:
                print(
                    f"{name}: {counted(moved, 'caption belongs', 'captions belong')} to the "
                    "references by the name of their picture"
                )
        if groups is not None:
            return _by_domain(files, groups, wanted, settings, training_captions, further)
        return {
            name: evaluate(wanted, captions, settings, training_captions, further)
            for name, captions in files.items()
        }

    found = scored(predictions)
    other: dict[str, Any] = scored(compare) if compare is not None else {}
    for place, files in ((predictions, found), (compare, other)):
        if compare is not None and len(files) > 1:
            raise ConfigError(
                f"{place} holds {counted(len(files), 'file')} of predictions; --compare takes one "
                "on each side"
            )
    shown = console(width=None if sys.stdout.isatty() else 200)
    print(settings.remarks(found))
    shown.print(_table(found, marked=groups is None))
    if intervals:
        shown.print(_interval_table(found, resamples))
    if other:
        shown.print(_difference_table(found, other, resamples))
    for line in dict.fromkeys(line for result in found.values() for line in result.report.absent.values()):
        complain(line)
    if out is not None:
        _write(out, {name: result.as_json(per_image) for name, result in found.items()})
    missing = settings.named & {name for result in found.values() for name in result.report.absent}
    raise typer.Exit(1 if missing else 0)


def _refuse_halves(
    clip_model: str | None,
    images: Path | None,
    objects: Path | None,
    synonyms: Path | None,
    groups: Path | None,
    compare: Path | None,
) -> None:
    if (clip_model is None) != (images is None):
        raise ConfigError(
            "CLIPScore needs two towers and the pictures: give both --clip-model and --images, or neither"
        )
    if synonyms is not None and objects is None:
        raise ConfigError(
            "--synonyms belongs to CHAIR, which needs the objects of the pictures: name them with --objects"
        )
    if groups is not None and compare is not None:
        raise ConfigError(
            "--groups gives several rows and --compare takes one on each side: choose one of them"
        )


def _further(
    clip_model: str | None,
    references: Path,
    images: Path | None,
    objects: Path | None,
    synonyms: Path | None,
    tokenizer: str,
) -> list[Any]:
    """What computes CLIPScore and CHAIR, where they are wanted."""
    from patchword.cli.score_more import ChairScores, ClipScores

    found: list[Any] = []
    if clip_model is not None and images is not None:
        from patchword.tasks.retrieve.load import load_two_towers

        found.append(ClipScores(load_two_towers(clip_model), references, images))
    if objects is not None:
        found.append(ChairScores(objects, synonyms, tokenizer))
    return found


def _by_domain(
    files: dict[str, dict[str, str]],
    groups: Path,
    references: dict[str, list[str]],
    settings: Any,
    training: Any,
    further: list[Any],
) -> dict[str, Any]:
    """One result for each file and nocaps domain."""
    from patchword.cli.score_more import read_groups
    from patchword.metrics.reporting import evaluate_groups

    found: dict[str, Any] = {}
    for name, captions in files.items():
        domains = read_groups(groups, references, captions)
        results = evaluate_groups(references, captions, settings, domains, training, further)
        found |= {f"{name} {domain}": result for domain, result in results.items()}
    return found


def _table(found: dict[str, Any], marked: bool) -> Table:
    """One row per file; the best of each column in bold where several are `marked`.

    Values times 100, lengths and counts as they are.
    """
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for result in found.values() for name in result.report.scores))
    table = Table(caption="times 100, but vocabulary and length", caption_justify="left")
    table.add_column("predictions")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    best = {}
    for name in names:
        values = [
            result.report.scores[name].value for result in found.values() if name in result.report.scores
        ]
        best[name] = min(values) if name in _LESS_IS_BETTER else max(values)
    for file, result in found.items():
        cells = []
        for name in names:
            value = result.report.scores[name].value if name in result.report.scores else None
            text = "" if value is None else _shown(name, value)
            is_best = marked and len(found) > 1 and value == best[name] and name not in _NOT_BETTER
            cells.append(Text(text, style="bold" if is_best else ""))
        table.add_row(file, *cells)
    return table


_LESS_IS_BETTER = ("CHAIRs", "CHAIRi")
_NOT_BETTER = ("length", "repetition", "dangling", "vocabulary", "unseen")
"""Values of which more is not better, or not always."""


def _shown(name: str, value: float) -> str:
    return (
        f"{value:.1f}"
        if name == "length"
        else f"{value:.0f}"
        if name == "vocabulary"
        else f"{100 * value:.2f}"
    )


def _interval_table(found: dict[str, Any], resamples: int) -> Table:
    from rich.table import Table

    from patchword.metrics.bootstrap import intervals

    title = f"Bootstrap over images, {resamples} resamples"
    table = Table("predictions", "metric", "value", "95 % interval", title=title, title_justify="left")
    for file, result in found.items():
        for name, (low, high) in intervals(result.overlap, result.report.counts, resamples).items():
            table.add_row(
                file,
                name,
                f"{100 * result.report.scores[name].value:.2f}",
                f"{100 * low:.2f} to {100 * high:.2f}",
            )
    return table


def _difference_table(found: dict[str, Any], other: dict[str, Any], resamples: int) -> Table:
    from rich.table import Table

    from patchword.metrics.bootstrap import compare

    (name, result), (baseline, before) = next(iter(found.items())), next(iter(other.items()))
    title = f"{name} against {baseline}: paired bootstrap over images, {resamples} resamples"
    table = Table(
        "metric", baseline, name, "difference", "95 % interval", "p", title=title, title_justify="left"
    )
    differences = compare(
        (before.overlap, before.report.counts), (result.overlap, result.report.counts), resamples
    )
    for metric, difference in differences.items():
        values = [f"{100 * side.report.scores[metric].value:.2f}" for side in (before, result)]
        low, high = difference.interval
        table.add_row(
            metric,
            *values,
            f"{100 * difference.value:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            f"{difference.p:.3f}",
        )
    return table


def _write(out: Path, results: dict[str, dict[str, Any]]) -> None:
    content = next(iter(results.values())) if len(results) == 1 else results
    write_json(out, content)
