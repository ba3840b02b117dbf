"""`patchword paint`: pictures from a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchword.cli.outputs import Overwrite, complain, print_json, refuse_existing
from patchword.errors import ConfigError
from patchword.files import write_bytes, write_text
from patchword.lookup import import_torch

if TYPE_CHECKING:
    from patchword.tasks.paint.paint import Order, PaintedPicture


DEFAULT_PAINTER = "drawn-scenes"


def paint(
    prompt: Annotated[
        str | None, typer.Argument(help='What to paint, such as "a red circle above a blue square".')
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="In place of one prompt a text file of them, one a line: a picture for each."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="A painter: a shipped name, a folder that `patchword train` made, a hub id, or hub:ID of a "
            "pipeline of diffusers.",
        ),
    ] = DEFAULT_PAINTER,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--number",
            min=1,
            max=10_000,
            help="How many pictures: 4 of one prompt and 1 of each of --prompts where left out.",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            help="How much the text counts: 1 as trained, more for more of it and less variety.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**62, help="Seed of the first picture; the others count up from it."),
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Steps from noise to picture.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Dynamic thresholding at this percentile of the values, for high guidance: 0.995.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=10,
            help="For a painter of tokens: below 1 safer, above 1 wilder, 0 the likeliest tokens.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="For a painter of tokens: only so many of the likeliest ones."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1,
            help="For a painter of tokens: only the fewest that hold this share of probability.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("painted"),
    rank: Annotated[
        str | None,
        typer.Option(
            help="Two-tower model that scores how well each picture fits the prompt; the best comes first."
        ),
    ] = None,
    enlarge: Annotated[
        str | None, typer.Option(help="Model that enlarges what --model paints: the next step of a cascade.")
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Also write all pictures on one sheet, OUT/sheet.png.")
    ] = False,
    html: Annotated[bool, typer.Option("--html", help="Also write a page, OUT/index.html.")] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show which word lies where, as OUT/words-SEED.png and on the page."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")] = False,
    overwrite: Overwrite = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Paint pictures of a text. Every file carries the seed that repeats it and the mark that it is
    generated; a command that was interrupted goes on where it ended."""
    import_torch()
    from patchword.log import progress
    from patchword.tasks.paint.families import TokenChoice
    from patchword.tasks.paint.model import load_painter
    from patchword.tasks.paint.paint import Cascade, Order, batches, paint_into

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, and a folder is written: choose another name")
    if (prompt is None) == (prompts is None):
        raise ConfigError(
            'give either a prompt, such as "a red circle", or --prompts FILE with one a line'
            + ("" if prompt is None else f"; found both {prompt!r} and {prompts}")
        )
    if prompts is not None:
        for name, given in (("grid", grid), ("html", html), ("explain", explain), ("rank", rank)):
            if given:
                raise ConfigError(f"--{name} shows one prompt: leave it out beside --prompts")
    number = number or (4 if prompts is None else 1)
    refuse_existing(
        overwrite,
        {"--grid": out / "sheet.png" if grid else None, "--html": out / "index.html" if html else None},
        makes_folder=True,
    )
    if explain:
        made = (_words_file(out, one) for one in range(seed, seed + number))
        refuse_existing(overwrite, {f"--explain {path.name}:": path for path in made if path.exists()})
    texts = [] if prompts is None else _lines(prompts)
    painter: Any = load_painter(model, device)
    if enlarge is not None:
        if explain:
            raise ConfigError("--explain shows what one model attends to: leave out --enlarge")
        painter = Cascade(painter, load_painter(enlarge, device))
    tokens = None
    if (temperature, top_k, top_p) != (None, None, None):
        tokens = TokenChoice(1.0 if temperature is None else temperature, top_k, top_p)
    wanted = prompt or ""
    order = Order(wanted, range(seed, seed + number), model, guidance, steps, threshold, tokens)
    each = (painter.usual_steps if steps is None else steps * (1 if enlarge is None else 2)) or 1
    if prompts is not None:
        raise typer.Exit(_paint_lines(painter, texts, order, out, overwrite, each, as_json))
    painter.check(wanted)
    for remark in painter.remarks(wanted):
        complain(remark)
    ranker = None
    if rank is not None:
        from patchword.tasks.paint.rank import two_tower_ranker

        ranker = two_tower_ranker(rank, wanted, device)
    total = batches(number) * each
    with progress() as bar:
        task = bar.add_task("painting", total=total, status="")
        painted = paint_into(painter, order, out, overwrite, ranker, lambda: bar.update(task, advance=1))
        bar.update(task, completed=total)
    _say_kept(sum(one.kept for one in painted), len(painted))
    for one in painted:
        if as_json:
            print_json({"file": str(one.path), "prompt": wanted, "seed": one.seed, "score": one.score})
        else:
            print(one.path if one.score is None else f"{one.score:.3f}  {one.path}")
    _write_more(painter, order, painted, out, grid, html, explain)


def _lines(path: Path) -> list[str]:
    """The prompts of a file; empty lines at its end are no prompts. Raises ConfigError for a file of none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--prompts {path} cannot be read as text ({error}): expected one prompt a line"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ConfigError(f"--prompts {path} is empty: expected one prompt a line")
    return lines


def _paint_lines(
    painter: Any, texts: list[str], order: Order, out: Path, overwrite: bool, each: int, as_json: bool
) -> int:
    """Paints every prompt of a file; the exit code, 1 where a line was left out."""
    from patchword.log import progress
    from patchword.tasks.paint.paint import batches, paint_prompts

    total = batches(len(texts) * len(order.seeds)) * each
    with progress() as bar:
        task = bar.add_task("painting", total=total, status="")
        found = paint_prompts(painter, texts, order, out, overwrite, lambda: bar.update(task, advance=1))
        bar.update(task, completed=total)
    _say_kept(found.kept, len(found.pictures))
    for one in found.pictures:
        row = {"file": str(one.path), "prompt": one.prompt, "seed": one.seed, "score": None}
        if as_json:
            print_json(row)
        else:
            print(one.path)
    for line, reason in found.refused:
        complain(f"line {line} is left out: {reason}")
    return 1 if found.refused else 0


def _say_kept(kept: int, total: int) -> None:
    if kept:
        complain(f"{kept} of {total} pictures were there already and are kept")


def _words_file(out: Path, seed: int) -> Path:
    """Where it is shown which word of the picture of a seed lies where."""
    return out / f"words-{seed}.png"


def _write_more(
    painter, order: Order, painted: list[PaintedPicture], out: Path, grid: bool, html: bool, explain: bool
) -> None:
    """The sheet, the page, and where each word lies."""
    import numpy as np

    from patchword.tasks.paint.marks import marked_png
    from patchword.tasks.paint.paint import facts_of
    from patchword.tasks.paint.sheet import sheet
    from patchword.tasks.paint.words import words_sheet

    facts = facts_of(painter, order)
    if grid:
        labels = [f"seed {one.seed}" + ("" if one.score is None else f", {one.score:.3f}") for one in painted]
        pixels = np.stack([one.pixels_HWC for one in painted])
        write_bytes(out / "sheet.png", marked_png(sheet(pixels, labels, title=order.prompt), facts))
    words, maps = [], None
    if explain:
        _, words, maps = painter.explain(
            order.prompt, [one.seed for one in painted], order.guidance, order.steps
        )
        for one, maps_Lhw in zip(painted, maps, strict=True):
            made = words_sheet(one.pixels_HWC, words, maps_Lhw)
            write_bytes(_words_file(out, one.seed), marked_png(made, {**facts, "seed": one.seed}))
    if html:
        from patchword.tasks.paint.page import painted_page

        shown = [(key, value) for key, value in facts.items() if key not in ("prompt", "weights")]
        remarks = painter.remarks(order.prompt)
        write_text(out / "index.html", painted_page(order.prompt, painted, shown, remarks, words, maps))
