"""The `edgellm` command: finds the command's module, runs it, turns errors into one sentence and a code.

Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any

import typer

import edgellm
from edgellm.errors import EdgeError

# typer re-exports this one class of its click, whichever click that is (its own or the package's).
UsageError: Any = typer.BadParameter.__base__
ClickException: Any = UsageError.__base__

# Command -> module under edgellm/cli, which holds a function of the module's name, or a typer.Typer of more
# commands. Order of `--help`.
COMMANDS = {
    "run": "run",
    "chat": "chat",
    "pull": "pull",
    "list": "list_models",
    "rm": "rm",
    "inspect": "inspect",
    "bench": "bench",
    "plan": "plan",
    "perplexity": "perplexity",
    "convert": "convert",
    "pack": "pack",
    "verify": "verify",
    "flash": "flash",
    "predictor": "predictor",
}


class LazyCommands(MutableMapping[str, Any]):
    """Commands by name; a command's module is imported when it is first looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module = COMMANDS[name]
            found = getattr(importlib.import_module(f"edgellm.cli.{module}"), module)
            app = found if isinstance(found, typer.Typer) else _app_of(name, found)
            self._loaded[name] = typer.main.get_command(app)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _app_of(name: str, command: Any) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(command)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(f"edgellm {edgellm.__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run language models on the machine in front of you.

    \b
    Start with:
      edgellm run "Why is the sky blue?"
    """


def command_group() -> Any:
    """The whole command line as a typer group; the commands' modules are not imported yet."""
    app = typer.Typer(name="edgellm", add_completion=False, rich_markup_mode=None)
    app.callback(no_args_is_help=False)(_root)
    group = typer.main.get_group(app)
    group.commands = LazyCommands()
    return group


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (sys.argv by default) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _prepare_streams()
    try:
        code = _invoke(arguments or ["--help"])
        sys.stdout.flush()
        return code
    except ClickException as error:
        where = getattr(error, "ctx", None)
        return _complain(f"{where.command_path if where else 'edgellm'}: {error.format_message()}", 2)
    except EdgeError as error:
        return _complain(f"edgellm: {error}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader has all that it wanted, as in `edgellm run ... | head -1`
        _drop_output()
        return 0
    except MemoryError:
        return _complain("edgellm: There is not enough memory for this model and context.", 2)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"edgellm: {where}{error.strerror or error}.", 2)


def _prepare_streams() -> None:
    """Streams that were closed lead nowhere; a character that the terminal lacks does not end the run."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What standard output could not take must not be tried again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _invoke(arguments: list[str]) -> int:
    group = command_group()
    try:
        with group.make_context("edgellm", arguments) as context:
            group.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _complain(sentence: str, code: int) -> int:
    print(" ".join(sentence.split()), file=sys.stderr)
    return code
