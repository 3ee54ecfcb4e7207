"""The command line: parses, calls, prints. Only it exits the process; it imports the module of a command on use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer

from edgekd.commands.cli import derive
from edgekd.commands.cli.command_table import COMMANDS
from edgekd.commands.cli.help import HelpCommand, HelpGroup
from edgekd.commands.cli.printing import printer
from edgekd.core.errors import EdgeKDError
from edgekd.core.input_files import shown_path
from edgekd.core.version import __version__

INTERRUPTED = 130
"""Exit code of Typer after Ctrl-C: 128 and the number of the signal, as in shells."""
FIRST_STEPS = """\
edgekd: from a trained detector to a bundle for camera firmware.

  edgekd demo         Build a bundle from the detector that comes with edgekd.
  edgekd build MODEL  Build a bundle from your own detector.
  edgekd doctor       List what works here, and how to add what is missing.

All commands: edgekd --help"""
"""Text of `edgekd` without a command."""


def function_of(name: str) -> Callable[..., Any]:
    """Import a command and return its function. Raises KeyError for an unknown one, ImportError."""
    default = name.replace("-", "_")
    module, function = (COMMANDS[name].function or f"{default}.{default}").split(".")
    found: Callable[..., Any] = getattr(import_module(f"edgekd.commands.{module}"), function)
    return found


def callback(name: str) -> Callable[..., None]:
    """Import a command and return the function that Typer runs for it, whose signature has its options."""
    return derive.callback(function_of(name), printer(name), COMMANDS[name].run_name)


def new_app(*, add_completion: bool = False, **settings: Any) -> typer.Typer:
    """Return an empty application without markup. add_completion: add options that install shell completion."""
    return typer.Typer(add_completion=add_completion, pretty_exceptions_enable=False, rich_markup_mode=None, **settings)


def parser(name: str) -> Any:
    """Import a command and return Click's command, which parses its arguments and options (`params`)."""
    alone, command = new_app(), COMMANDS[name]
    texts: dict[str, Any] = {"help": f"{command.summary}\n\n{command.details}", "epilog": "\n".join(command.examples)}
    alone.command(name, cls=HelpCommand, **texts)(callback(name))
    return typer.main.get_command(alone)


class _LazyGroup(HelpGroup):
    """Commands that are imported when they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and parser(str(command.name)), rest


app = new_app(
    add_completion=True,
    name="edgekd",
    cls=_LazyGroup,
    help="From a trained detector to a bundle for camera firmware.",
    epilog="`edgekd COMMAND --help` has options and examples.",
)
for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.summary, rich_help_panel=_command.group)(lambda: None)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"edgekd {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(FIRST_STEPS)


def main() -> None:
    """Run the command line. A user's mistake gives one line on stderr and the error's exit code."""
    # From 1.32 on, ONNX Runtime sends events and keeps a database of them, unless this is set before its import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        app(prog_name="edgekd")
    except EdgeKDError as error:
        print(f"edgekd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ImportError as error:
        print(f"edgekd: {error}; fix: `edgekd doctor` says what is missing and how to add it", file=sys.stderr)
        sys.exit(EdgeKDError.exit_code)
    except OSError as error:  # from the file system, such as a name that is too long
        place = f"{shown_path(str(error.filename))}: " if error.filename else ""
        print(f"edgekd: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(EdgeKDError.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("edgekd: stopped; builds, trainings and fleets go on when they are run again", file=sys.stderr)
        raise
