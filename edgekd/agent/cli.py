"""Command line of the agent: it parses the arguments, runs a command, and prints one JSON object.

A command's own modules are imported when it runs, so that the others start quickly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from edgekd.agent.state.trial import MAX_TRIES, TRIES, Trial
from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError, EdgeKDError, SignatureError, SpecError, did_you_mean, first_line
from edgekd.core.version import __version__

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.state.slots import State

R = TypeVar("R")
STATE = Path("/var/lib/edgekd")
"""Default of `--state`."""


@dataclass(frozen=True)
class ErrorReport:
    """An error.

    Args:
        kind: Class of the error, such as `HashError`: docs/reference/errors.md lists them.
        what: The problem, and what it is of.
        expected: Expected value.
        found: Value found.
        fix: The remedy.
        cause: Of a `SignatureError` why a trust file does not accept the file, such as `expired-key`; null for other
            problems.
    """

    kind: str
    what: str
    expected: str | None
    found: str | None
    fix: str | None
    cause: str | None = None


@dataclass(frozen=True)
class Answer(Generic[R]):
    """Output of one command of the agent.

    Args:
        command: Name of the command; null where there is none of that name, or this Python is too old to read it.
        ok: True where it succeeded; the exit code is 0 then, else 1.
        error: Null where it succeeded.
        result: Result by command; null where it failed, except for a self-test (also that of an installation) and a
            validation.
    """

    command: str | None
    ok: bool
    error: ErrorReport | None
    result: R


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and print its result; return the exit code. Other output goes to stderr."""
    command, code = None, 0
    try:
        options = _parser().parse_args(arguments)
        command = options.command
        with _system_errors():
            answer = Answer(command, True, None, _run(options))
    except EdgeKDError as error:
        cause = error.cause if isinstance(error, SignatureError) else None
        report = ErrorReport(type(error).__name__, error.what, error.expected, error.found, error.fix, cause)
        answer = Answer(command, False, report, getattr(error, "report", None))
        code = getattr(error, "agent_exit_code", 1)  # of a validation
    print(json.dumps(to_plain(answer), sort_keys=True))
    return code


@contextmanager
def _system_errors() -> Iterator[None]:
    """Wrap an OSError or ImportError that no other code has wrapped."""
    try:
        yield
    except ImportError as error:
        raise DeviceError(
            f"{sys.executable}: a library is missing",
            expected="NumPy beside the standard library",
            found=first_line(error),
            fix="add NumPy to the firmware, or run the agent with a Python that has it",
        ) from error
    except OSError as error:
        what = f"{error.filename or 'the system'}: cannot be used"
        raise DeviceError(what, found=error.strerror or str(error), fix="check rights and disk") from error


def _run(options: argparse.Namespace) -> Any:
    from edgekd.agent import commands, installation
    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.rebuild_engine import renew
    from edgekd.agent.state.slots import State
    from edgekd.agent.status import status

    if options.command == "validate":
        return _validate(options)
    state = State.of(options.state, getattr(options, "model", None))
    camera = Camera(state, options.root, slot=getattr(options, "slot", None))
    if hasattr(options, "runtime"):
        camera = replace(camera, runtime=_runtime(options, state))
    run: dict[str, Callable[[], Any]] = {
        "activate": lambda: commands.activate(camera),
        "bench": lambda: _bench(options, camera),
        "boot": lambda: installation.boot(camera),
        "build": lambda: commands.build(camera, _shares(options.require)),
        "commit": lambda: installation.commit(camera),
        "fetch": lambda: _fetch(options, camera),
        "install": lambda: _install(options, camera),
        "patch": lambda: commands.patch(camera, options.delta, options.out),
        "renew": lambda: renew(camera),
        "rollback": lambda: commands.rollback(camera),
        "selftest": lambda: commands.selftest(camera, layers=options.layers, max_latency_ms=options.max_latency),
        "status": lambda: status(camera),
        "trust": lambda: commands.trust(camera, options.trust_files),
        "tune": lambda: _tune(options, camera),
        "unpack": lambda: commands.unpack(camera, options.bundle),
        "verify": lambda: commands.verify(camera, options.bundle, options.trust),
    }
    return run[options.command]()


def _runtime(options: argparse.Namespace, state: State) -> Runtime | None:
    """Return the runtime for a command. Raises DeviceError."""
    from edgekd.agent.commands import runtime_in_service
    from edgekd.agent.runtimes import select_runtime, usable_runtime

    if options.command in _CONTINUING and options.runtime is None:
        return usable_runtime(runtime_in_service(state))
    return select_runtime(options.runtime)


def _fetch(options: argparse.Namespace, camera: Camera) -> Any:
    from edgekd.agent.fetching import FetchRequest, fetch
    from edgekd.core.canonical import is_sha256

    if options.sha256 and not is_sha256(options.sha256):
        raise SpecError(f"--sha256 {options.sha256}", expected="64 hexadecimal digits in lower case")
    request = FetchRequest(
        options.url, options.out, options.sha256, max_bytes=options.max_bytes, timeout_s=options.timeout
    )
    return fetch(camera, request)


def _install(options: argparse.Namespace, camera: Camera) -> Any:
    from edgekd.agent import installation

    if not 0 <= options.tries <= MAX_TRIES:
        raise SpecError(f"--tries {options.tries}", expected=f"0 to {MAX_TRIES}", fix="0 for no trial")
    trial = Trial(options.tries, window_s=options.window) if options.tries else None
    shares = _shares(options.require)
    requirements = installation.Requirements(shares, options.max_latency, options.max_memory)
    return installation.install(camera, options.bundle, trial, requirements)


def _bench(options: argparse.Namespace, camera: Camera) -> Any:
    from edgekd.agent.bench import bench

    if options.cameras < 0:
        raise SpecError(f"--cameras {options.cameras}", expected="0 or more")
    keywords = {"batch": options.batch, "cameras": options.cameras, "camera_fps": options.camera_fps}
    return bench(camera, options.iterations, options.seconds, **keywords)


def _tune(options: argparse.Namespace, camera: Camera) -> Any:
    from edgekd.agent import tuning

    if options.choice and options.reset:
        raise SpecError("--choice and --reset", expected="one of them", fix="leave one out")
    if options.reset:
        return tuning.reset(camera)
    if options.choice:
        return tuning.adopt(camera, options.choice)
    if options.builds < 0:
        raise SpecError(f"--builds {options.builds}", expected="0 or more")
    return tuning.tune(camera, tuning.TuningEffort(options.builds, options.iterations, options.seconds))


def _validate(options: argparse.Namespace) -> Any:
    from edgekd.agent.runtimes import AUTOMATIC, NAMED
    from edgekd.agent.validation.coordinator import PLAN, QUICK, ValidationEffort, validate

    effort = QUICK if options.quick else ValidationEffort()
    if options.patience:
        effort = replace(effort, patience_s=options.patience)
    names = [runtime.name for runtime in (*AUTOMATIC, *NAMED)]
    if options.runtime not in (None, *names):
        fix = did_you_mean(options.runtime, names)
        raise SpecError(f"--runtime {options.runtime}", expected=f"one of {', '.join(names)}", fix=fix)
    runtimes = (options.runtime,) if options.runtime else tuple(PLAN)
    return validate(options.bundle, options.out, options.root, kit=options.kit, runtimes=runtimes, effort=effort)


def _shares(required: Sequence[str]) -> dict[str, float]:
    """Parse minimum shares by precision, such as `int8=0.8`. Raises SpecError."""
    shares = {}
    for text in required:
        name, _, value = text.partition("=")
        try:
            shares[name] = float(value)
        except ValueError:
            shares[name] = -1.0
        if not name or not 0 < shares[name] <= 1:
            raise SpecError(f"--require {text}", expected="a precision and a share above 0, up to 1", fix="int8=0.8")
    return shares


def _positive(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


class _Parser(argparse.ArgumentParser):
    """Raises errors in arguments as SpecError."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(message, fix=f"{self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="agent.pyz", description="Verify, build, test and activate a bundle on this device.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (text, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        for argument in arguments:
            command.add_argument(argument, **_ARGUMENTS[argument])
    return parser


def _option(kind: Callable[[str], Any], metavar: str, text: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "metavar": metavar, "help": text, **more}


def _flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "bundle": _option(Path, "BUNDLE", "a .edgekd file; to install or unpack one, also a delta"),
    "delta": _option(Path, "DELTA", "a file by `edgekd delta`"),
    "url": _option(str, "URL", "https://, http:// or file://"),
    "trust_files": _option(Path, "TRUST", "trust files, the oldest first", nargs="+"),
    "--trust": _option(Path, "TRUST", "a trust file, in place of the one in effect"),
    "--state": _option(Path, "DIR", "folder of the slots (%(default)s)", default=STATE),
    "--root": _option(Path, "DIR", "root of the system (%(default)s)", default=Path("/")),
    "--runtime": _option(str, "NAME", "runtime, in place of the best one available"),
    "--model": _option(str, "NAME", "one of several models of this camera, each with its own slots"),
    "--slot": {"choices": ("a", "b"), "help": "slot, in place of the candidate or the one in service"},
    "--require": _option(
        str,
        "PRECISION=SHARE",
        "minimum share of the engine in a precision, such as int8=0.8; repeatable",
        action="append",
        default=[],
    ),
    "--layers": _flag("also measure the divergence of inner tensors from the network in float"),
    "--max-latency": _option(
        _positive, "MS", "maximum of the median run time, in place of the limit by the bundle's frames per second"
    ),
    "--max-memory": _option(
        int, "BYTES", "memory of all models of this camera together, in place of half of the device's"
    ),
    "--tries": _option(
        int, "N", "starts without a commit before a rollback (%(default)s); 0 for no trial", default=TRIES
    ),
    "--window": _option(
        _positive, "S", "seconds after the installation or a start within which it has to be committed (no limit)"
    ),
    "--builds": _option(int, "N", "maximum of engines with some layers in float (%(default)s)", default=4),
    "--choice": _option(Path, "FILE", "a tuning.json: build its form without measurements"),
    "--reset": _flag("remove the choice: the graph as shipped"),
    "--out": _option(Path, "FILE", "file to write", required=True),
    "--kit": _option(Path, "FILE", "kit.json of the validation kit: predictions for this bundle"),
    "--quick": _flag("time each engine for 2 seconds in place of 10"),
    "--patience": _option(_positive, "S", "maximum seconds of a process (2700)"),
    "--sha256": _option(str, "HASH", "SHA-256 of the file, checked besides its signatures"),
    "--max-bytes": _option(int, "N", "maximum size (%(default)s)", default=1 << 31),
    "--timeout": _option(
        _positive, "S", "seconds without a byte after which a connection counts as broken (%(default)s)", default=30.0
    ),
    "--batch": _option(int, "N", "frames of a run (%(default)s)", default=1),
    "--iterations": _option(int, "N", "minimum runs (%(default)s)", default=200),
    "--seconds": _option(float, "S", "minimum seconds (%(default)s)", default=5.0),
    "--cameras": _option(
        int, "N", "also find how many synthetic cameras can be served, up to N (%(default)s)", default=0
    ),
    "--camera-fps": _option(_positive, "FPS", "frames a second of each of them (%(default)s)", default=15.0),
}
_TRUST = ("--trust", "--state", "--root")
_CONTINUING = ("status", "renew")
"""Commands whose default is the runtime of the engine in service."""
_MODEL = ("--state", "--model", "--root")
_RUNTIME = (*_MODEL, "--runtime")
_ENGINE = (*_RUNTIME, "--slot")
COMMANDS = {
    "install": (
        "verify, unpack, build, test and activate a bundle, on trial until it is committed",
        ("bundle", *_RUNTIME, "--require", "--max-latency", "--max-memory", "--tries", "--window"),
    ),
    "commit": ("end the trial: the bundle in service stays", _MODEL),
    "boot": ("count a start of the application; roll back where the trial is over", _MODEL),
    "verify": ("check a bundle and its signatures, from the first byte to the last", ("bundle", *_TRUST)),
    "trust": ("replace the trust file, which has the keys of accepted bundles", ("trust_files", "--state", "--root")),
    "unpack": ("unpack a verified bundle into the free slot, and expand its graph", ("bundle", *_MODEL)),
    "build": ("build the engine of a slot for this device", (*_ENGINE, "--require")),
    "tune": (
        "find the layers that are faster in float on this device, and build that engine",
        (*_ENGINE, "--builds", "--iterations", "--seconds", "--choice", "--reset"),
    ),
    "selftest": (
        "compare the outputs of the engine with the golden set",
        (*_ENGINE, "--layers", "--max-latency"),
    ),
    "bench": (
        "time the engine by itself",
        (*_ENGINE, "--iterations", "--seconds", "--batch", "--cameras", "--camera-fps"),
    ),
    "status": ("describe what is in service, the candidate, and the device", _RUNTIME),
    "activate": ("put a slot with a tested engine into service", _ENGINE),
    "renew": ("after an update of the system: rebuild the engine in service", _RUNTIME),
    "validate": (
        "build, test and time a bundle by every runtime, each engine in a process of its own, and judge the claims",
        ("bundle", "--root", "--runtime", "--out", "--kit", "--quick", "--patience"),
    ),
    "fetch": (
        "download a bundle or a delta, and resume an interrupted download",
        ("url", "--out", "--sha256", "--max-bytes", "--timeout", "--state", "--root"),
    ),
    "patch": ("rebuild a bundle from a delta and the bundle on this camera", ("delta", "--out", *_MODEL)),
    "rollback": ("put the bundle that was in service before back into service", _MODEL),
}
"""Help text and arguments of each command."""
