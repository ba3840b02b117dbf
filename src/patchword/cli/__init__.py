"""The command line: one file per command, no torch until a command needs it."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from patchword.errors import PatchwordError
from patchword.files import what_failed
from patchword.lookup import look_up

COMMANDS = {
    name: "cli.{0}:{0}".format(name.replace("-", "_"))
    for name in (
        "caption",
        "index",
        "search",
        "label",
        "pair",
        "point",
        "ask",
        "paint",
        "serve",
        "models",
        "check",
        "train",
        "shares",
        "structure",
        "predict",
        "evaluate",
        "zero-shot",
        "probe-linear",
        "score",
        "score-images",
        "probe",
        "recall",
        "compare",
        "submit",
        "features",
        "filter",
        "codebook",
        "concepts",
        "consensus",
        "memory",
        "words",
        "vokens",
        "explain-check",
        "template",
        "export",
        "push",
    )
}
"""Every command in the order of the help, one line each: the function that answers it, in a file of its
own; or a `typer.Typer`, where a command has commands of its own."""


class Commands(TyperGroup):
    """The commands of the table, each imported when it is run; all of them where they are listed, or a name
    is none of them.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; None where there is none, and then all are known to the suggestion that
        typer makes.
        """
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                function = look_up(COMMANDS[name])
                alone = function
                if not isinstance(function, typer.Typer):
                    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
                    alone.command(name, help=_flowing(function.__doc__ or ""))(function)
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
    """Entry point of the `patchword` script: an error of ours is one line on standard error and its exit
    status.
    """
    codecs.register_error("patchword", _as_the_system_has_it)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="patchword")
    try:
        status = app(prog_name="patchword", standalone_mode=False) or 0
        if status == _INTERRUPTED:  # what typer makes of Ctrl+C
            raise KeyboardInterrupt
        sys.exit(status)
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            print(f"patchword: {_usage(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except PatchwordError as error:
        if "--debug" in sys.argv:
            raise
        print(f"patchword: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("patchword: interrupted; what was already written is kept", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        cause = what_failed(error)
        if cause is None or "--debug" in sys.argv:
            raise
        print(f"patchword: {error.filename or 'a file'}: {cause}", file=sys.stderr)
        sys.exit(2)


def _flowing(text: str) -> str:
    """A docstring without the line breaks inside its paragraphs: a console has its own width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


_INTERRUPTED = 130
_USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises where it cannot make sense of what was typed; it has no public name of its own there."""


def _usage(error: Any) -> str:
    """What was wrong about the words after `patchword`, in one line, and where the right ones stand."""
    command = error.ctx.command_path if error.ctx is not None else "patchword"
    return f"{' '.join(error.format_message().split())} (`{command} --help` lists what it takes)"


def _as_the_system_has_it(error: UnicodeError) -> tuple[str | bytes, int]:
    """What becomes of letters that a stream cannot write: bytes of a file name that are no UTF-8 come out as
    they are, so that a name can be read back; others as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return letter.encode("ascii", "backslashreplace").decode("ascii"), error.start + 1
