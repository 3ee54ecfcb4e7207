"""The command line: parses, calls, prints. The only place that exits; imports the module of a command when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from edgekd.commands.cli import derive
from edgekd.commands.cli.printing import printer
from edgekd.core.errors import EdgeKDError
from edgekd.core.input_files import shown_path
from edgekd.core.version import __version__

INTERRUPTED = 130
"""Exit code of Typer after Ctrl-C: 128 and the number of the signal, as in shells."""


class Command(NamedTuple):
    """A command: its help, and the function behind it, as MODULE.FUNCTION of `edgekd.commands`.

    function: by default both are called like the command. run_name: the name of a run in `--log`, a format string over
    the parameters; None for a command without `--log`.
    """

    help: str
    function: str | None = None
    run_name: str | None = None


COMMANDS: dict[str, Command] = {
    "build": Command(
        "Compress, score, compile, time and pack MODEL for TARGET.", run_name="build {model.stem} for {target}"
    ),
    "quantize": Command(
        "Quantize a detector or any other ONNX network, for no target: graph, packed graph, plan, and what it keeps."
    ),
    "adapt": Command(
        "Make a variant of BUNDLE for other conditions, of frames that nobody labelled, and the delta that leads to it."
    ),
    "convert": Command(
        "Write ARTIFACT in another format, and make sure that it computes the same. INT8 is carried over as it is."
    ),
    "distill": Command(
        "Train STUDENT on labels and beside TEACHER, and score both.", run_name="distill {student} from {teacher.name}"
    ),
    "prune": Command(
        "Remove the channels MODEL can best do without, and make sure that it is faster. Train it afterwards."
    ),
    "factorize": Command(
        "Replace layers of MODEL by products of thinner ones, where that is faster. Train it afterwards."
    ),
    "eval": Command("Score an artifact on a labelled split, with COCO's metrics.", function="evaluate.score_model"),
    "bench": Command(
        "Time an artifact, engine alone and camera to detections: percentiles, throughput, energy, cost, how sure."
    ),
    "predict": Command(
        "Predict latency and energy of MODEL on a TARGET that is not at hand, and say how sure that is.",
        function="predict.predict_latency",
    ),
    "engine": Command(
        "Build, test and time a bundle's engine on a camera, or on a fleet; optionally put it into service."
    ),
    "profile": Command(
        "Time the networks of bundles on a device, as the table that predictions for its target are corrected by."
    ),
    "check": Command(
        "Say what is impossible or slow on a target, and what to change. ONNX answers in a second, without PyTorch.",
        function="check.check_model",
    ),
    "describe": Command("Show how outputs of MODEL become detections, as a file for `--head`, and what is a guess."),
    "targets": Command("List the targets, or explain one: every number with its source."),
    "doctor": Command(
        "Say what is installed, which engines and devices work, and the one command that adds each missing thing."
    ),
    "inspect": Command("Verify a bundle and say what is in it."),
    "compare": Command("Put two builds side by side: accuracy by class, sizes, times, and what each stage took."),
    "report": Command(
        "Say why and where a build lost accuracy: detections, classes, layers, training, as a page for a browser.",
        function="report.analyse",
    ),
    "validate-report": Command("Judge the evidence of a validation on hardware, and make a page of it."),
    "verify": Command("Check a bundle or trust file from its first byte to its last, and who signed it."),
    "keygen": Command("Make a key pair: NAME.key, which only its owner can read, and NAME.pub for everybody."),
    "trust": Command(
        "Make a trust file, which says whose bundles a camera takes, and sign it with the keys that are at hand."
    ),
    "sign": Command("Add signatures to a bundle or a trust file."),
    "pack": Command(
        "Write a bundle again: with another counter, changed files, measured latencies; or for a firmware system."
    ),
    "delta": Command("Write what a camera needs of a new bundle beyond the one it has; `agent.pyz install` takes it."),
    "demo": Command("Run the main job on rendered street scenes and the small detector that ships with edgekd."),
}
"""In the order in which help lists them."""


def function_of(name: str) -> Callable[..., Any]:
    """Import a command; return the function behind it."""
    default = name.replace("-", "_")
    module, function = (COMMANDS[name].function or f"{default}.{default}").split(".")
    found: Callable[..., Any] = getattr(import_module(f"edgekd.commands.{module}"), function)
    return found


def callback(name: str) -> Callable[..., None]:
    """Import a command; return what Typer runs for it, whose signature has its options."""
    return derive.callback(function_of(name), printer(name), COMMANDS[name].run_name)


def new_app(**settings: Any) -> typer.Typer:
    """Return an empty application with plain texts."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings)


def parser(name: str) -> Any:
    """Import a command; return the parser of its arguments and options, with `params`."""
    alone = new_app()
    alone.command(name, help=COMMANDS[name].help)(callback(name))
    return typer.main.get_command(alone)


class _LazyGroup(TyperGroup):
    """Commands that are imported when they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and parser(str(command.name)), rest


app = new_app(
    name="edgekd",
    cls=_LazyGroup,
    help="From a trained detector to a bundle for camera firmware.",
    no_args_is_help=True,
)
for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.help)(lambda: None)


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
    except OSError as error:  # whatever a file system refuses, such as a name that is too long
        place = f"{shown_path(str(error.filename))}: " if error.filename else ""
        print(f"edgekd: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(EdgeKDError.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("edgekd: stopped; builds, trainings and fleets go on when they are run again", file=sys.stderr)
        raise
