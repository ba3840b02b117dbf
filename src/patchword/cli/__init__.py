"""The command line: one file per command, no torch until a command needs it."""

from __future__ import annotations

import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from patchword.errors import PatchwordError
from patchword.lookup import look_up

COMMANDS = {
    name: "cli.{0}:{0}".format(name.replace("-", "_"))
    for name in (
        "caption",
        "index",
        "search",
        "label",
        "pair",
        "ask",
        "serve",
        "models",
        "check",
        "train",
        "structure",
        "predict",
        "evaluate",
        "score",
        "recall",
        "compare",
        "submit",
        "features",
        "codebook",
        "concepts",
        "memory",
        "explain-check",
    )
}
"""Every command in the order of the help, one line each: the function that answers it, in a file of its own."""


class Commands(TyperGroup):
    """The commands of the table, each imported when it is run; all of them where they are listed, or a name is none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; None where there is none, and then all are known to the suggestion that typer makes."""
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
                alone.command(name)(look_up(COMMANDS[name]))
                self.add_command(typer.main.get_command(alone), name)
        return self.commands.get(cmd_name)


app = typer.Typer(
    cls=Commands,
    name="patchword",
    help="Says what is in a picture, patch by patch and word by word.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from patchword.version import version

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
