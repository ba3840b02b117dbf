"""`patchword caption`: say what is in pictures."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchword.errors import ConfigError, PictureError

if TYPE_CHECKING:
    from patchword.tasks.caption.result import Caption

DEFAULT_MODEL = "flickr8k"
FIGURES = (".png", ".svg", ".pdf")
"""What --explain may end in for a figure in place of a page."""


def caption(
    paths: Annotated[list[str], typer.Argument(help="Pictures, folders, globs.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", help="A shipped name, a folder, a hub id, or hub:ID of a transformers captioner."
        ),
    ] = DEFAULT_MODEL,
    beam: Annotated[
        int | None,
        typer.Option(help="Hypotheses that the search follows; the model's own number where left out."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line: image, caption, score, tokens.")
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option(help="Write a page that shows what made each word; .png, .svg or .pdf: a figure."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a CSV (image, caption, score); pictures that it holds already are left out."
        ),
    ] = None,
    sidecar: Annotated[
        bool, typer.Option("--sidecar", help="Write photo.txt beside every photo.jpg.")
    ] = False,
    mention: Annotated[
        list[str] | None,
        typer.Option("--mention", help="Word that every caption must say; may be given several times."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures that are captioned together.")] = 16,
) -> None:
    """Print a caption per picture; a picture that cannot be read is one line on standard error, and exit status 1 at the end."""
    from patchword.data.sources import find_pictures
    from patchword.log import progress
    from patchword.tasks.caption.load import load

    pictures = find_pictures(paths)
    done = _already(out)
    pictures = [path for path in pictures if str(path) not in done]
    captioner = load(model, device)
    if explain is not None and explain.suffix.lower() in FIGURES and len(pictures) > 1:
        raise ConfigError(
            f"--explain {explain} is a figure of one picture, and there are {len(pictures)}: let it end in .html"
        )
    pages: list[tuple[str, Any, Caption]] = []
    bad = 0
    sink = _CsvSink(out) if out is not None else None
    with progress(len(pictures) > batch and sys.stderr.isatty()) as bar:
        task = bar.add_task("captions", total=len(pictures), status="")
        for chunk in _chunks(pictures, batch):
            images, failures = _open(chunk)
            for _, error in failures:
                print(f"patchword: {' '.join(str(error).split())}", file=sys.stderr)
                bad += 1
            good = [(path, image) for path, image in images]
            results = (
                captioner.caption(
                    [image for _, image in good], beams=beam, trace=explain is not None, mention=mention or ()
                )
                if good
                else []
            )
            for (path, image), result in zip(good, results, strict=True):
                _print(path, result, as_json)
                if sidecar:
                    path.with_suffix(".txt").write_text(result.text + "\n", encoding="utf-8")
                if sink is not None:
                    sink.write(path, result)
                if explain is not None:
                    pages.append((str(path), _shown(image, result), result))
            bar.update(task, advance=len(chunk))
    if sink is not None:
        sink.close()
    if explain is not None:
        _explain(explain, pages)
    raise typer.Exit(1 if bad else 0)


UNSURE = "unsure: "
"""Before what is said of a picture unlike all that the model was trained on."""


def _chunks(pictures: list[Path], size: int) -> Iterator[list[Path]]:
    for first in range(0, len(pictures), size):
        yield pictures[first : first + size]


def _open(paths: list[Path]) -> tuple[list[tuple[Path, Any]], list[tuple[Path, PictureError]]]:
    """Decoded pictures, and those that cannot be decoded with the reason."""
    from patchword.data.pictures import open_picture

    images, failures = [], []
    for path in paths:
        try:
            images.append((path, open_picture(path)))
        except PictureError as error:
            failures.append((path, error))
    return images, failures


def _shown(image: Any, result: Caption) -> Any:
    """A small copy for the page where the caption carries none: models that keep no trace."""
    if result.picture is not None:
        return None
    small = image.copy()
    small.thumbnail((480, 480))
    return small


def _explain(out: Path, pages: list[tuple[str, Any, Caption]]) -> None:
    from patchword.tasks.caption.page import caption_figure, caption_page

    if out.suffix.lower() not in FIGURES:
        out.write_text(caption_page(pages), encoding="utf-8")
    elif pages:
        caption_figure(pages[0][1], pages[0][2], out)


def _print(path: Path, result: Caption, as_json: bool) -> None:
    if as_json:
        row = {
            "image": str(path),
            "caption": result.text,
            "score": result.log_probability,
            "tokens": list(result.tokens),
        }
        if result.unsure is not None:
            row["unsure"] = result.unsure
            row["concepts"] = [
                {"word": one.word, "probability": round(one.probability, 4)} for one in result.named
            ]
        print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        print(f"{path}\t{UNSURE if result.unsure else ''}{result.text}", flush=True)


def _already(out: Path | None) -> set[str]:
    """Pictures that the CSV holds from an earlier call."""
    if out is None or not out.exists():
        return set()
    with open(out, encoding="utf-8", newline="") as file:
        return {
            row["image"]
            for row in csv.DictReader(file)
            if row.get("caption") is not None and row.get("score")
        }


class _CsvSink:
    """Appends rows one by one, each flushed, so that an interrupted call loses at most the picture it was at."""

    def __init__(self, path: Path) -> None:
        is_new = not path.exists() or path.stat().st_size == 0
        if not is_new and not path.read_bytes().endswith(b"\n"):
            _cut_broken_row(path)
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed by `close`
        self._writer = csv.writer(self._file)
        if is_new:
            self._writer.writerow(["image", "caption", "score"])

    def write(self, path: Path, result: Caption) -> None:
        self._writer.writerow([str(path), result.text, f"{result.log_probability:.4f}"])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _cut_broken_row(path: Path) -> None:
    """A row without its line end was interrupted: take it off, it is written again."""
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
