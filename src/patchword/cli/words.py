"""`patchword words`: word vectors from text and pictures: train, look around, evaluate, export, imagine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchword.cli.outputs import PAGES, Overwrite, print_json, refuse_existing, refuse_suffix
from patchword.errors import ConfigError, DataError, counted
from patchword.files import write_text

if TYPE_CHECKING:
    from patchword.tasks.words.evaluate import Concreteness, Row

words = typer.Typer(
    name="words",
    help="Word vectors from text and pictures: train them, look around, evaluate, export, imagine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="Word vectors: a folder, such as runs/mine/best, or a hub id.")]
SPACE_HELP = "Kind of vectors: text, picture or fused."
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@words.command("train")
def train(
    config: Annotated[Path, typer.Argument(help="TOML file, or the name of one that came with the package.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: key=value.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; begin if there is none.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Train word vectors, or count them (distributional), into the folder `best` of the run."""
    from patchword.tasks.words.train import train_words

    command = "patchword words train " + shlex.join([str(config), *(overrides or [])])
    folder = train_words(config, overrides or [], resume, device, command)
    print(folder / "best")


@words.command("neighbours")
def neighbours(
    model: Model,
    asked: Annotated[list[str], typer.Argument(metavar="WORD...", help="Words to look around.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Neighbours of each kind.")] = 10,
    html: Annotated[
        Path | None, typer.Option(help="Write a page (.html) with the pictures that stand for the words.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Print the nearest words by text, by pictures and by both, side by side."""
    refuse_suffix("--html", html, PAGES)
    refuse_existing(overwrite, {"--html": html})
    from patchword.tasks.words.model import load_words
    from patchword.tasks.words.page import neighbours_page

    vectors = load_words(model)
    for word in asked:
        found = {space: vectors.neighbours(word, space, count) for space in vectors.spaces}
        if as_json:
            print_json(
                {"word": word, **{space: [one._asdict() for one in near] for space, near in found.items()}}
            )
            continue
        print("\t".join([word, *found]))
        for place in range(max(len(near) for near in found.values())):
            cells = [
                f"{near[place].word} {near[place].cosine:.2f}" if place < len(near) else "-"
                for near in found.values()
            ]
            print("\t".join([str(place + 1), *cells]))
    if html is not None:
        write_text(html, neighbours_page(vectors, asked, count))


@words.command("evaluate")
def evaluate(
    model: Model,
    sets: Annotated[
        str,
        typer.Option("--sets", help="Sets with commas between: men, simlex, wordsim353, or files of pairs."),
    ] = "men,simlex,wordsim353",
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder of the published files of the sets.")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--against", help="Word vectors to compare with, on the pairs that both know."),
    ] = None,
    concreteness: Annotated[
        Path | None,
        typer.Option(
            help="Table of words and concreteness (Brysbaert et al.); absent: how alike the pictures are."
        ),
    ] = None,
    border: Annotated[
        float | None,
        typer.Option(
            min=-(10**6),
            max=10**6,
            help="Concreteness above which a word is concrete; the median of the table where left out.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare cosines with people's judgements: Spearman, intervals, coverage, gains with a paired test."""
    from patchword.data.formats.similarity import find_set, read_pairs
    from patchword.tasks.words.evaluate import dispersion_scores, evaluate_set
    from patchword.tasks.words.model import load_words

    names = [name.strip() for name in sets.split(",") if name.strip()]
    if not names:
        raise DataError(f"--sets {sets!r} names no set: expected men, simlex, wordsim353, or files of pairs")
    given = {name: read_pairs(find_set(name, folder)) for name in names}
    known = None if concreteness is None else _table(concreteness, border)
    vectors, against = load_words(model), None if other is None else load_words(other)
    if known is None and "dispersion" in vectors.tensors:
        known = dispersion_scores(vectors)
    for name, pairs in given.items():
        rows = evaluate_set(Path(name).stem, pairs, vectors, against, known)
        for row in rows:
            _print_row(row, as_json)
    if known is not None and not as_json:
        print(f"concrete and abstract: {known.source}")


def _table(path: Path, border: float | None) -> Concreteness:
    import statistics

    from patchword.data.formats.similarity import read_concreteness
    from patchword.tasks.words.evaluate import Concreteness

    scores = read_concreteness(path)
    at = statistics.median(scores.values()) if border is None else border
    return Concreteness(scores, at, f"{path.name}, border {at:g}")


def _print_row(row: Row, as_json: bool) -> None:
    found, gain = row.agreement, row.gain
    if as_json:
        values = {"set": row.set, "part": row.part, "vectors": row.space, **found._asdict()}
        print_json({**values, "gain": None if gain is None else gain._asdict()})
        return
    told = f"{found.spearman:.3f} [{found.interval.low:.3f}, {found.interval.high:.3f}]"
    told += f"\t{found.covered} of {found.pairs} pairs"
    if gain is not None:
        told += (
            f"\tgain {gain.value:+.3f} [{gain.interval.low:+.3f}, {gain.interval.high:+.3f}] p {gain.p:.3f}"
        )
    print(f"{row.set}\t{row.part}\t{row.space}\t{told}")


@words.command("export")
def export_words(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="File that is written.")],
    to: Annotated[str, typer.Option("--to", help="word2vec, glove (text), npz or safetensors.")] = "word2vec",
    space: Annotated[str, typer.Option("--vectors", help=SPACE_HELP)] = "fused",
    overwrite: Overwrite = False,
) -> None:
    """Write the vectors for other programs; gensim reads word2vec and glove."""
    refuse_existing(overwrite, {"--out": out})
    from patchword.tasks.words.export import export
    from patchword.tasks.words.model import SPACES, load_words

    if space not in SPACES:
        raise ConfigError(f"--vectors {space!r}: expected one of {', '.join(SPACES)}")
    count = export(load_words(model), space, to, out)
    print(f"{out}: {counted(count, 'word')}")


@words.command("imagine")
def imagine(
    model: Model,
    word: Annotated[str, typer.Argument(help="A word, with or without pictures of its own.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Pictures.")] = 10,
    html: Annotated[Path | None, typer.Option(help="Write a page (.html) with the pictures.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Print the pictures that a word leads to, also one that never had a picture (skip_gram A or B)."""
    refuse_suffix("--html", html, PAGES)
    refuse_existing(overwrite, {"--html": html})
    from patchword.tasks.words.model import load_words
    from patchword.tasks.words.page import imagined_page

    vectors = load_words(model)
    found = vectors.imagine(word, count)
    if as_json:
        print_json({"word": word, "pictures": [{"file": one.word, "cosine": one.cosine} for one in found]})
    else:
        for one in found:
            print(f"{one.cosine:.3f}\t{one.word}")
    if html is not None:
        write_text(html, imagined_page(vectors, word, found))
