"""The agent's command line: parses, calls, prints one JSON object, and says by its exit code whether all went well.

What a command needs beyond the standard library is imported when it is called, so that the others start quickly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgekd.agent.trial import MAX_TRIES, TRIES, Trial
from edgekd.core.errors import DeviceError, EdgeKDError, SpecError, did_you_mean
from edgekd.core.version import __version__

if TYPE_CHECKING:
    from edgekd.agent.commands import Camera
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.slots import State

STATE = Path("/var/lib/edgekd")
"""Where the slots are unless `--state` says otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 where it did what it says, else 1 or a verdict's code. Anything but JSON goes to stderr."""
    code = 0
    answer: dict[str, Any] = {"command": None, "ok": True, "error": None, "result": None}
    try:
        given = _parser().parse_args(arguments)
        answer["command"] = given.command
        with _reading():
            answer["result"] = _run(given)
    except EdgeKDError as error:
        answer.update(ok=False, error=_error_json(error), result=getattr(error, "report", None))
        code = getattr(error, "agent_exit_code", 1)  # of a validation
    print(json.dumps(answer, sort_keys=True))
    return code


@contextmanager
def _reading() -> Iterator[None]:
    """Say what the system refuses, where nothing more is known of it, as every other error is said."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or 'the system'}: cannot be used"
        raise DeviceError(what, found=error.strerror or str(error), fix="check rights and disk") from error


def _run(given: argparse.Namespace) -> dict[str, Any]:
    from edgekd.agent import commands
    from edgekd.agent.slots import State

    if given.command == "validate":
        return _validate(given)
    options = vars(given)
    state = State.of(given.state, options.get("model"))
    camera = commands.Camera(state, given.root, slot=options.get("slot"))
    if given.command == "trust":
        return commands.trust(camera, given.trust_files)
    if given.command == "verify":
        return commands.verify(camera, given.bundle, given.trust)
    if given.command in ("patch", "fetch"):
        return _transfer(given, camera)
    if "runtime" in options:
        camera = replace(camera, runtime=_runtime(given, state))
    if given.command == "unpack":
        return commands.unpack(camera, given.bundle)
    if given.command == "bench":
        return commands.bench(camera, given.iterations, given.seconds)
    if given.command == "build":
        return commands.build(camera, _shares(given.require))
    if given.command == "selftest":
        return commands.selftest(camera, given.layers, given.max_latency)
    if given.command in ("install", "commit", "boot"):
        return _installation(given, camera)
    if given.command == "tune":
        return _tune(given, camera)
    if given.command == "renew":
        from edgekd.agent.rebuild_engine import renew

        return renew(camera)
    run = {
        "status": commands.status,
        "activate": commands.activate,
        "rollback": commands.rollback,
    }
    return run[given.command](camera)


def _runtime(given: argparse.Namespace, state: State) -> Runtime | None:
    """The runtime that a command is to use. Raises DeviceError."""
    from edgekd.agent.commands import runtime_in_service
    from edgekd.agent.runtimes import chosen, continuing

    if given.command in _CONTINUING and given.runtime is None:
        return continuing(runtime_in_service(state))
    return chosen(given.runtime)


def _transfer(given: argparse.Namespace, camera: Camera) -> dict[str, Any]:
    if given.command == "patch":
        from edgekd.agent.commands import patch

        return patch(camera, given.delta, given.out)
    from edgekd.agent.fetching import Order, fetch
    from edgekd.core.canonical import is_sha256

    if given.sha256 and not is_sha256(given.sha256):
        raise SpecError(f"--sha256 {given.sha256}", expected="64 hexadecimal digits in lower case")
    return fetch(camera, Order(given.url, given.out, given.sha256, given.max_bytes, timeout_s=given.timeout))


def _installation(given: argparse.Namespace, camera: Camera) -> dict[str, Any]:
    from edgekd.agent import installation

    if given.command == "commit":
        return installation.commit(camera)
    if given.command == "boot":
        return installation.boot(camera)
    if not 0 <= given.tries <= MAX_TRIES:
        raise SpecError(f"--tries {given.tries}", expected=f"0 to {MAX_TRIES}", fix="0 for no trial")
    trial = Trial(given.tries, window_s=given.window) if given.tries else None
    demands = installation.Demands(_shares(given.require), given.max_latency, given.max_memory)
    return installation.install(camera, given.bundle, trial, demands)


def _tune(given: argparse.Namespace, camera: Camera) -> dict[str, Any]:
    from edgekd.agent import tuning

    if given.choice and given.reset:
        raise SpecError("--choice and --reset", expected="one of them", fix="leave one out")
    if given.reset:
        return tuning.reset(camera)
    if given.choice:
        return tuning.adopt(camera, given.choice)
    if given.builds < 0:
        raise SpecError(f"--builds {given.builds}", expected="0 or more")
    return tuning.tune(camera, tuning.Effort(given.builds, given.iterations, given.seconds))


def _validate(given: argparse.Namespace) -> dict[str, Any]:
    from edgekd.agent.runtimes import AUTOMATIC, NAMED
    from edgekd.agent.validation.coordinator import PLAN, QUICK, Effort, validate

    effort = QUICK if given.quick else Effort()
    if given.patience:
        effort = replace(effort, patience_s=given.patience)
    names = [runtime.name for runtime in (*AUTOMATIC, *NAMED)]
    if given.runtime not in (None, *names):
        fix = did_you_mean(given.runtime, names)
        raise SpecError(f"--runtime {given.runtime}", expected=f"one of {', '.join(names)}", fix=fix)
    runtimes = (given.runtime,) if given.runtime else tuple(PLAN)
    return validate(given.bundle, given.out, given.root, kit=given.kit, runtimes=runtimes, effort=effort)


def _shares(told: Sequence[str]) -> dict[str, float]:
    """By precision, the least share that was asked for as `int8=0.8`. Raises SpecError."""
    shares = {}
    for text in told:
        name, _, value = text.partition("=")
        try:
            shares[name] = float(value)
        except ValueError:
            shares[name] = -1.0
        if not name or not 0 < shares[name] <= 1:
            raise SpecError(f"--require {text}", expected="a precision and a share above 0, up to 1", fix="int8=0.8")
    return shares


def _positive(text: str) -> float:
    """A number above 0, for the parser."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with arguments as every other error is said."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(message, fix=f"{self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="agent.pyz", description="Verify, build, test and activate a bundle on this device.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (told, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=told, description=told)
        for argument in arguments:
            command.add_argument(argument, **_ARGUMENTS[argument])
    return parser


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "bundle": {"type": Path, "metavar": "BUNDLE", "help": "a .edgekd file; to install or unpack one, also a delta"},
    "delta": {"type": Path, "metavar": "DELTA", "help": "what `edgekd delta` has written"},
    "url": {"metavar": "URL", "help": "https://, http:// or file://"},
    "trust_files": {"type": Path, "metavar": "TRUST", "nargs": "+", "help": "trust files, the oldest first"},
    "--trust": {"type": Path, "metavar": "TRUST", "help": "a trust file, in place of the one that is held here"},
    "--state": {"type": Path, "default": STATE, "metavar": "DIR", "help": "where the slots are (%(default)s)"},
    "--root": {"type": Path, "default": Path("/"), "metavar": "DIR", "help": "where the system lies (%(default)s)"},
    "--runtime": {"metavar": "NAME", "help": "what runs networks, in place of the best that is here"},
    "--model": {"metavar": "NAME", "help": "one of several models of this camera, each with slots of its own"},
    "--slot": {"choices": ("a", "b"), "help": "in place of the one that waits, or is in service"},
    "--require": {
        "action": "append",
        "default": [],
        "metavar": "PRECISION=SHARE",
        "help": "refuse an engine that computes less in it, such as int8=0.8; once for each precision",
    },
    "--layers": {"action": "store_true", "help": "also say which inner tensor departs most from the network in float"},
    "--max-latency": {
        "type": _positive,
        "metavar": "MS",
        "help": "fail an engine whose median run takes longer, in place of what the bundle's frames per second leave",
    },
    "--max-memory": {
        "type": int,
        "metavar": "BYTES",
        "help": "what all models of this camera may take together, in place of half of its memory",
    },
    "--tries": {
        "type": int,
        "default": TRIES,
        "metavar": "N",
        "help": "starts without a commit after which the next leads back (%(default)s); 0 for no trial",
    },
    "--window": {
        "type": _positive,
        "metavar": "S",
        "help": "seconds after the installation or a start within which it has to be committed; without it any time",
    },
    "--builds": {
        "type": int,
        "default": 4,
        "metavar": "N",
        "help": "engines with some layers in float that are tried at most (%(default)s); each takes as long as a build",
    },
    "--choice": {"type": Path, "metavar": "FILE", "help": "a tuning.json: build what it says, and measure nothing"},
    "--reset": {"action": "store_true", "help": "forget the choice: the graph as it was shipped"},
    "--out": {"type": Path, "required": True, "metavar": "FILE", "help": "where the result is written"},
    "--kit": {"type": Path, "metavar": "FILE", "help": "kit.json of the validation kit: predictions for this bundle"},
    "--quick": {"action": "store_true", "help": "time each engine for 2 seconds in place of 10"},
    "--patience": {"type": _positive, "metavar": "S", "help": "end a process that takes longer (2700)"},
    "--sha256": {"metavar": "HASH", "help": "what the file must have, besides being one that this camera takes"},
    "--max-bytes": {"type": int, "default": 1 << 31, "metavar": "N", "help": "refuse more (%(default)s)"},
    "--timeout": {
        "type": _positive,
        "default": 30.0,
        "metavar": "S",
        "help": "seconds without a byte after which a connection counts as broken (%(default)s)",
    },
    "--iterations": {"type": int, "default": 200, "metavar": "N", "help": "at least so many runs (%(default)s) ..."},
    "--seconds": {"type": float, "default": 5.0, "metavar": "S", "help": "... and at least so long (%(default)s)"},
}
_TRUST = ("--trust", "--state", "--root")
_CONTINUING = ("status", "renew")
"""Commands that, unless told otherwise, go by the runtime of the engine in service."""
_MODEL = ("--state", "--model", "--root")
_RUNTIME = (*_MODEL, "--runtime")
_ENGINE = (*_RUNTIME, "--slot")
COMMANDS = {
    "install": (
        "verify, unpack, build, test and activate a bundle, on trial until it is committed",
        ("bundle", *_RUNTIME, "--require", "--max-latency", "--max-memory", "--tries", "--window"),
    ),
    "commit": ("end the trial: what is in service stays", _MODEL),
    "boot": ("say that what runs the model starts: a trial that is over leads back", _MODEL),
    "verify": ("check a bundle and its signatures, from the first byte to the last", ("bundle", *_TRUST)),
    "trust": ("hold a newer trust file, which says whose bundles are taken", ("trust_files", "--state", "--root")),
    "unpack": ("put a verified bundle, its graph expanded, into the free slot", ("bundle", *_MODEL)),
    "build": ("build the engine of a slot for this device", (*_ENGINE, "--require")),
    "tune": (
        "find out which layers are faster in float here, and build the engine so",
        (*_ENGINE, "--builds", "--iterations", "--seconds", "--choice", "--reset"),
    ),
    "selftest": (
        "compare what the engine gives for the golden frames with what it should",
        (*_ENGINE, "--layers", "--max-latency"),
    ),
    "bench": ("time the engine alone", (*_ENGINE, "--iterations", "--seconds")),
    "status": ("say what is in service, what waits, and what this device is", _RUNTIME),
    "activate": ("put a slot with a tested engine into service", _ENGINE),
    "renew": ("after an update of the system: a new engine for what is in service", _RUNTIME),
    "validate": (
        "build, test and time a bundle by every runtime, each engine in a process of its own, and judge the claims",
        ("bundle", "--root", "--runtime", "--out", "--kit", "--quick", "--patience"),
    ),
    "fetch": (
        "get a bundle or a delta, from where an earlier call broke off",
        ("url", "--out", "--sha256", "--max-bytes", "--timeout", "--state", "--root"),
    ),
    "patch": ("put a bundle together of a delta and the bundle here", ("delta", "--out", *_MODEL)),
    "rollback": ("put the bundle that was in service before back into service", _MODEL),
}
"""What each command does, and what it takes."""


def _error_json(error: EdgeKDError) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "expected": error.expected,
        "found": error.found,
        "fix": error.fix,
    }
