"""The command line: parses, calls, prints. The only place that exits; imports what a command needs when it runs.

One module for each group of commands; `COMMANDS` lists them in the order in which help does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from edgekd.cli.build import adapt, build, demo, quantize
from edgekd.cli.camera import engine, profile
from edgekd.cli.compress import distill, factorize, prune
from edgekd.cli.convert import convert
from edgekd.cli.measure import bench, evaluate, predict, report, validate_report
from edgekd.cli.query import check, compare, doctor, inspect, targets
from edgekd.cli.signing import delta, keygen, pack, sign, trust, verify
from edgekd.core.errors import EdgeKDError
from edgekd.core.version import __version__

INTERRUPTED = 130
"""What Typer exits with after Ctrl-C: 128 and the number of the signal, as shells count."""

COMMANDS: dict[str, Callable[..., None]] = {
    "build": build,
    "quantize": quantize,
    "adapt": adapt,
    "convert": convert,
    "distill": distill,
    "prune": prune,
    "factorize": factorize,
    "eval": evaluate,
    "bench": bench,
    "predict": predict,
    "engine": engine,
    "profile": profile,
    "check": check,
    "targets": targets,
    "doctor": doctor,
    "inspect": inspect,
    "compare": compare,
    "report": report,
    "validate-report": validate_report,
    "verify": verify,
    "keygen": keygen,
    "trust": trust,
    "sign": sign,
    "pack": pack,
    "delta": delta,
    "demo": demo,
}

app = typer.Typer(
    name="edgekd",
    help="From a trained detector to a bundle for camera firmware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"edgekd {__version__}")
        raise typer.Exit()


def main() -> None:
    """Run the command line. A user's mistake ends as one line on stderr and the error's exit code."""
    # ONNX Runtime, from 1.32 on, sends events and keeps a database of them, unless this is set before its import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        app()
    except EdgeKDError as error:
        print(f"edgekd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ImportError as error:
        print(f"edgekd: {error}; fix: `edgekd doctor` says what is missing and how to add it", file=sys.stderr)
        sys.exit(EdgeKDError.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("edgekd: stopped; builds, trainings and fleets go on when they are run again", file=sys.stderr)
        raise
