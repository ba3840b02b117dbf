"""The command line: one file per command, no torch until a command needs it."""

from __future__ import annotations

import io
import sys

import typer

from patchword.cli.ask import ask
from patchword.cli.caption import caption
from patchword.cli.check import check
from patchword.cli.codebook import codebook
from patchword.cli.compare import compare
from patchword.cli.evaluate import evaluate
from patchword.cli.features import features
from patchword.cli.index import index
from patchword.cli.label import label
from patchword.cli.memory import memory
from patchword.cli.models import models
from patchword.cli.pair import pair
from patchword.cli.predict import predict
from patchword.cli.recall import recall
from patchword.cli.score import score
from patchword.cli.search import search
from patchword.cli.serve import serve
from patchword.cli.structure import structure
from patchword.cli.submit import submit
from patchword.cli.train import train
from patchword.errors import PatchwordError
from patchword.version import version

app = typer.Typer(
    name="patchword",
    help="Says what is in a picture, patch by patch and word by word.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(caption)
app.command()(index)
app.command()(search)
app.command()(label)
app.command()(pair)
app.command()(ask)
app.command()(serve)
app.command()(models)
app.command()(check)
app.command()(train)
app.command()(structure)
app.command()(predict)
app.command()(evaluate)
app.command()(score)
app.command()(recall)
app.command()(compare)
app.command()(submit)
app.command()(features)
app.command()(codebook)
app.command()(memory)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"patchword {version()}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error as well."),
) -> None:
    pass


def main() -> None:
    """Entry point of the `patchword` script: an error of ours is one line on standard error and its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a console that is not UTF-8 shows what it can, and the rest escaped
    try:
        app()
    except PatchwordError as error:
        if "--debug" in sys.argv:
            raise
        print(f"patchword: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("patchword: interrupted; what was already written is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
