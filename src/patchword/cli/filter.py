"""`patchword filter`: the pairs of a crawl that are worth training on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from patchword.cli.outputs import complain
from patchword.errors import ConfigError, DataError, PictureError, counted

if TYPE_CHECKING:
    from patchword.data.isolated import PictureReader
    from patchword.jobs.rules import Rule

RULES = (
    "length",
    "letters",
    "boilerplate",
    "same-text",
    "rare-words",
    "size",
    "readable",
    "near-duplicate",
    "test-set",
    "score",
)


def filter(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Pairs: .parquet, .tar (WebDataset), .jsonl, .csv, .tsv, folders of shards, URLs."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the shards and report.json.")],
    rules: Annotated[
        str, typer.Option("--rules", help="Which rules, in their order, with commas between.")
    ] = ",".join(RULES[:8]),
    words: Annotated[
        tuple[int, int], typer.Option("--words", help="length: fewest and most words of a text.")
    ] = (3, 60),
    script: Annotated[str, typer.Option(help="letters: script that nine of ten letters are of.")] = "LATIN",
    same_text: Annotated[
        int, typer.Option("--same-text", min=1, max=10**9, help="same-text: how often a text may come.")
    ] = 10,
    shortest: Annotated[
        int,
        typer.Option("--shortest", min=1, max=10**6, help="size: pixels of the shorter side at least."),
    ] = 200,
    aspect: Annotated[
        float, typer.Option("--aspect", min=1, max=10**6, help="size: longer by shorter side at most.")
    ] = 3.0,
    test_set: Annotated[
        Path | None, typer.Option("--test-set", help="test-set: folder of pictures that must not be near.")
    ] = None,
    score: Annotated[
        float | None,
        typer.Option("--score", min=-1, max=1, help="score: cosine of picture and text at least."),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="score: two towers.")] = "two-towers",
    to: Annotated[
        Literal["parquet", "tar"],
        typer.Option("--to", help="parquet, or tar (WebDataset), which trainings read too."),
    ] = "parquet",
) -> None:
    """Keep the pairs of picture and alt-text that all rules keep, in one pass and in memory that stays flat,
    and say what each rule dropped. What cannot be read is counted as well, and the exit status is then 1."""
    from patchword.cli.left_out import told_left_out
    from patchword.data.isolated import PictureReader
    from patchword.files import printable
    from patchword.jobs import rules as all_rules
    from patchword.jobs.filter import BROKEN, filter_pairs
    from patchword.log import progress

    if not 0 <= words[0] <= words[1]:
        raise ConfigError(f"--words {words[0]} {words[1]}: expected the fewest words, then the most")
    plain: dict[str, Callable[[], Rule]] = {
        "length": lambda: all_rules.Length(*words),
        "letters": lambda: all_rules.Letters(script=script.upper()),
        "boilerplate": all_rules.Boilerplate,
        "same-text": lambda: all_rules.SameText(same_text),
        "rare-words": all_rules.RareWords,
        "size": lambda: all_rules.Size(shortest, aspect),
        "readable": lambda: all_rules.Readable(reader),
        "near-duplicate": lambda: all_rules.NearDuplicate(reader=reader),
    }
    names = [one.strip() for one in rules.split(",") if one.strip()]
    names += ["test-set"] * (test_set is not None and "test-set" not in names)
    names += ["score"] * (score is not None and "score" not in names)
    with PictureReader() as reader, progress(sys.stderr.isatty()) as bar:
        made = [
            plain[name]() if name in plain else _rule_with_a_value(name, test_set, score, model, reader)
            for name in names
        ]
        task = bar.add_task("pairs", total=None, status="")
        report = filter_pairs(
            sources,
            out,
            made,
            lambda read, kept: bar.update(task, completed=read, status=f"{kept} kept"),
            to,
        )
    lost = sum(one.pairs for one in report.dropped if one.rule == BROKEN)
    print(f"{out}: {report.kept} of {counted(report.read, 'pair')} in {counted(report.shards, 'shard')}")
    for one in report.dropped:
        print(f"{one.rule}: {one.pairs}")
        for place, text, why in one.examples:
            print(f"    {printable(text[:80])}  ({printable(why[:80])}; {printable(place[-60:])})")
    if report.left_out:
        complain(f"{counted(report.read, 'pair')} read{told_left_out(report.left_out)}")
    raise typer.Exit(1 if lost else 0)


def _rule_with_a_value(
    name: str, test_set: Path | None, score: float | None, model: str, reader: PictureReader
) -> Rule:
    """Raises ConfigError for a rule that there is not, or one without what it needs."""
    from patchword.jobs.rules import NearDuplicate
    from patchword.lookup import look_up

    if name == "test-set" and test_set is not None:
        return NearDuplicate(among=_hashes(test_set, reader), reader=reader)
    if name == "score" and score is not None:
        found: Rule = look_up("tasks.retrieve.many:Score")(model, score, reader)
        return found
    if name in ("test-set", "score"):
        raise ConfigError(f"--rules {name}: give --{name} as well")
    raise ConfigError(f"--rules {name}: no such rule; there are {', '.join(RULES)}")


def _hashes(folder: Path, reader: PictureReader) -> list[int]:
    """Hashes of the pictures of a folder; what is left out of it is said. Raises DataError where none can be
    read."""
    from patchword.cli.left_out import report_left_out
    from patchword.data.sources import find_pictures
    from patchword.jobs.rules import difference_hash

    found: list[int] = []
    listing = find_pictures([str(folder)])
    for path in listing.pictures:
        try:
            found.append(difference_hash(reader.open(path)))
        except PictureError as error:
            complain(error)
    bad = len(listing.pictures) - len(found)
    if not found:
        raise DataError(f"--test-set {folder}: no picture there can be read: name the folder of the pictures")
    report_left_out(listing, f"{counted(len(found), 'picture')} of --test-set", bad, as_json=False)
    return found
