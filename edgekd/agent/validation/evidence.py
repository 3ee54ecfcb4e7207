"""The evidence of a validation, parsed from `result.json`. Pure.

The file is untrusted: `from_json` checks and bounds everything that the verdicts and the report use. Raw data, such as
layer lists, is not parsed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgekd.core.canonical import short_int
from edgekd.core.errors import SpecError

FORMAT = 1
MAX_BYTES = 16 << 20
"""Maximum size of a file. Thirteen engines with 256 kB of raw data each stay below 4 MB."""
MAX_ITEMS = 4096
"""Maximum length of a list, such as that of activations without a scale."""
MAX_TEXT = 4000  # characters of one value

NetworkForm = Literal["float", "fp32-weights", "int8-constants", "calibrated"]
"""Forms of the network: without Q/DQ; Q/DQ with FP32 weights; DQ on INT8 constants; without Q/DQ, scales in a cache."""
FLOAT: NetworkForm = "float"
FP32_WEIGHTS: NetworkForm = "fp32-weights"
INT8_CONSTANTS: NetworkForm = "int8-constants"
CALIBRATED: NetworkForm = "calibrated"
StepOutcome = Literal["passed", "failed", "not here"]
PASSED: StepOutcome = "passed"
FAILED: StepOutcome = "failed"
NOT_HERE: StepOutcome = "not here"
StepName = Literal["unpack", "build", "inspect", "selftest", "departures", "bench"]
UNPACK: StepName = "unpack"
BUILD: StepName = "build"
INSPECT: StepName = "inspect"
SELF_TEST: StepName = "selftest"
DIVERGENCE: StepName = "departures"
BENCH: StepName = "bench"


@dataclass(frozen=True)
class Problem:
    """Reason why not all attempts were made.

    Args:
        kind: `started` (a run that did not end), `no-python`, `damaged-kit`, `crashed`, `bundle` (it cannot be
            unpacked) or `interrupted`.
        message: The same for people.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Process:
    """End of a process.

    Args:
        exit_code: Null where a signal ended it.
        signal: Name of the signal that ended it, such as `SIGSEGV`, or `SIGKILL` by a system without free memory.
        timed_out: True where it was ended at the time limit.
        seconds: Wall time.
    """

    exit_code: int | None
    signal: str | None
    timed_out: bool
    seconds: float

    @property
    def cut(self) -> str | None:
        """Reason why the process did not finish; None where it did."""
        if self.timed_out:
            return f"ended after {self.seconds:.0f} s without a result"
        if self.signal:
            return f"ended by {self.signal}"
        return f"exit code {self.exit_code}" if self.exit_code else None


@dataclass(frozen=True)
class AttemptStep:
    """One step of an attempt. result: raw."""

    name: str
    outcome: StepOutcome
    seconds: float
    error: str | None
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Build:
    """Facts from the record of an engine. float_layers: built in float because they have no INT8 kernel.

    int8_share: of the time, None without a profile; dla_layers: number of layers on the DLA, None where unknown;
    missing_scales: activations without a scale, None where unknown; log: the builder's warnings and errors.
    """

    source: str
    float_layers: tuple[str, ...]
    int8_share: float | None
    dla_layers: int | None
    unread: str | None
    missing_scales: tuple[str, ...] | None
    log: tuple[str, ...]


@dataclass(frozen=True)
class SelfTestEvidence:
    """Errors and tolerances of boxes and of scores, relative."""

    passed: bool
    errors: tuple[float, float]
    tolerances: tuple[float, float]


@dataclass(frozen=True)
class Bench:
    """Times of the engine alone, in milliseconds. p50_interval, mean_interval: 95 %; refused: why FPS is unknown."""

    p50: float
    p50_interval: tuple[float, float] | None
    mean_interval: tuple[float, float] | None
    fps: float | None
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Attempt:
    """One runtime with one form of the network, in a process of its own.

    problem: why the runtime cannot be used here; running: the step that did not finish.
    """

    runtime: str
    form: NetworkForm
    version: str | None
    problem: str | None
    process: Process
    running: str | None
    steps: tuple[AttemptStep, ...]
    build: Build | None
    self_test: SelfTestEvidence | None
    bench: Bench | None

    def step(self, name: str) -> AttemptStep | None:
        """Return the step of that name; None where there is none."""
        return next((step for step in self.steps if step.name == name), None)


@dataclass(frozen=True)
class Mode:
    """A power mode.

    Args:
        id: Number for `nvpmodel -m`.
        name: Its name.
    """

    id: int | None
    name: str | None

    @property
    def title(self) -> str:
        """The name, else the number."""
        return self.name if self.name is not None else f"mode {self.id}"


@dataclass(frozen=True)
class Prediction:
    """A prediction by `edgekd predict`, made with the kit.

    Args:
        target: Name of the target.
        compatible: Name of that device in its firmware.
        precision: `int8` or `fp16`.
        power_mode: Power mode that it is for.
        latency_ms: Latency of a frame.
        low_ms: Nine of ten measurements should lie above.
        high_ms: Nine of ten measurements should lie below.
        doubts: Reasons not to rely on it.
        fits: Whether the device is this target; null where that is unknown.
    """

    target: str
    compatible: str
    precision: str
    power_mode: Mode | None
    latency_ms: float
    low_ms: float
    high_ms: float
    doubts: Sequence[str]
    fits: bool | None


@dataclass(frozen=True)
class ValidationEvidence:
    """Evidence of one validation. device: its name, for people; system: facts by name, for people."""

    complete: bool
    problem: Problem | None
    device: str
    system: Mapping[str, str]
    power_mode: Mode | None
    bundle_sha256: str | None
    predictions: tuple[Prediction, ...]
    attempts: tuple[Attempt, ...]


def loads(content: bytes) -> ValidationEvidence:
    """Parse the bytes of a file. Raises SpecError."""
    if len(content) > MAX_BYTES:
        raise SpecError("the result is too large", expected=f"at most {MAX_BYTES} bytes", found=f"{len(content)}")
    try:
        document = json.loads(content.decode("utf-8"), parse_int=short_int, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SpecError("not JSON", expected="the result.json of a validation", found=_short(str(error))) from error
    return from_json(document)


def from_json(document: Any) -> ValidationEvidence:
    """Parse a JSON document. Raises SpecError where a value is missing or has another type."""
    root = _EvidenceReader(document, "")
    if root.integer("format") != FORMAT:
        raise SpecError("/format: not known", expected=str(FORMAT), found=str(root.integer("format")))
    problem, system = root.maybe("problem"), root.maybe("system")
    kit, mode = root.maybe("kit"), None
    if system is not None and (found := system.maybe("power_mode")) is not None:
        mode = _power_mode(found)
    return ValidationEvidence(
        complete=root.flag("complete"),
        problem=Problem(problem.text("kind"), problem.text("message")) if problem else None,
        device=_device(system),
        system=_system(system),
        power_mode=mode,
        bundle_sha256=kit.text("bundle_sha256") if kit else None,
        predictions=tuple(map(_prediction, kit.items("predictions"))) if kit else (),
        attempts=tuple(map(_attempt, root.items("attempts"))),
    )


def _device(system: _EvidenceReader | None) -> str:
    if system is None:
        return "unknown device"
    device = system.maybe("device")
    for name in ("model", "gpus", "cpu"):
        if device is not None and device.value(name):
            found = device.value(name)
            return _short(", ".join(map(str, found)) if isinstance(found, list) else str(found))
    return _short(f"unknown device, {system.value('machine')}")


def _system(system: _EvidenceReader | None) -> dict[str, str]:
    """Return the facts on system, device and versions as texts."""
    found: dict[str, str] = {}
    for reader in (system, system and system.maybe("device"), system and system.maybe("versions")):
        for name, value in reader.content.items() if reader else ():
            if isinstance(value, (str, int, float)) and value not in ("", None):
                found[_short(name)] = _short(str(value))
    return found


def _power_mode(mode: _EvidenceReader) -> Mode:
    return Mode(mode.integer("id", optional=True), mode.maybe_text("name"))


def _prediction(each: _EvidenceReader) -> Prediction:
    mode = each.maybe("power_mode")
    return Prediction(
        each.text("target"),
        each.text("compatible"),
        each.text("precision"),
        _power_mode(mode) if mode else None,
        each.number("latency_ms"),
        each.number("low_ms"),
        each.number("high_ms"),
        each.texts("doubts"),
        each.flag("fits", optional=True),
    )


def _attempt(each: _EvidenceReader) -> Attempt:
    process = each.part("process")
    steps = tuple(map(_step, each.items("steps")))
    results = {step.name: reader.part("result") for step, reader in zip(steps, each.items("steps")) if _has(step)}  # noqa: B905
    return Attempt(
        runtime=each.text("runtime"),
        form=each.choice("form", get_args(NetworkForm)),
        version=each.maybe_text("version"),
        problem=each.maybe_text("problem"),
        process=Process(
            process.integer("exit_code", optional=True),
            process.maybe_text("signal"),
            bool(process.flag("timed_out")),
            process.number("seconds"),
        ),
        running=each.maybe_text("running"),
        steps=steps,
        build=_build(results[BUILD]) if BUILD in results else None,
        self_test=_self_test(results[SELF_TEST]) if SELF_TEST in results else None,
        bench=_bench(results[BENCH]) if BENCH in results else None,
    )


def _has(step: AttemptStep) -> bool:
    """Return whether a step has figures. A self-test that failed has them, too."""
    return bool(step.result) and (step.outcome == PASSED or step.name == SELF_TEST)


def _step(each: _EvidenceReader) -> AttemptStep:
    result = each.maybe("result")
    return AttemptStep(
        each.text("name"),
        each.choice("outcome", get_args(StepOutcome)),
        each.number("seconds"),
        each.maybe_text("error"),
        result.content if result else {},
    )


def _build(record: _EvidenceReader) -> Build:
    realized = record.maybe("realized")
    times = realized.part("share").maybe("time") if realized else None
    layers = realized.part("layers") if realized else None
    missing = record.value("missing_scales")
    return Build(
        source=record.text("source"),
        float_layers=record.texts("float_layers"),
        int8_share=(times.number("int8") if "int8" in times.content else 0.0) if times else None,
        dla_layers=(layers.integer("dla") if "dla" in layers.content else 0) if layers else None,
        unread=record.maybe_text("unread"),
        missing_scales=None if missing is None else record.texts("missing_scales"),
        log=record.texts("log") if "log" in record.content else (),
    )


def _self_test(figures: _EvidenceReader) -> SelfTestEvidence:
    error, tolerance = figures.part("error"), figures.part("tolerance")
    return SelfTestEvidence(
        bool(figures.flag("passed")),
        (error.number("boxes"), error.number("scores")),
        (tolerance.number("boxes"), tolerance.number("scores")),
    )


def _bench(figures: _EvidenceReader) -> Bench:
    times = figures.part("inference_ms")
    intervals = times.part("intervals")
    return Bench(
        times.number("p50"),
        intervals.interval("p50"),
        intervals.interval("mean"),
        None if figures.value("fps") is None else figures.number("fps"),
        figures.texts("refused"),
    )


class _EvidenceReader:
    """An object of a document, and its place. Its methods raise SpecError for a value of another type."""

    def __init__(self, value: Any, place: str) -> None:
        self._place = place
        if not isinstance(value, dict):
            raise self._error("", "an object", value)
        self.content: Mapping[str, Any] = value

    def value(self, name: str) -> Any:
        return self.content.get(name)

    def part(self, name: str) -> _EvidenceReader:
        return _EvidenceReader(self.value(name), f"{self._place}/{name}")

    def maybe(self, name: str) -> _EvidenceReader | None:
        return None if self.value(name) is None else self.part(name)

    def items(self, name: str) -> list[_EvidenceReader]:
        return [_EvidenceReader(each, f"{self._place}/{name}/{index}") for index, each in enumerate(self._list(name))]

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise self._error(name, "a text", value)
        return _short(value)

    def maybe_text(self, name: str) -> str | None:
        return None if self.value(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        found = self._list(name)
        if not all(isinstance(each, str) for each in found):
            raise self._error(name, "a list of texts", found)
        return tuple(map(_short, found))

    def choice(self, name: str, choices: tuple[str, ...]) -> Any:
        if self.text(name) not in choices:
            raise self._error(name, f"one of {', '.join(choices)}", self.text(name))
        return self.text(name)

    def flag(self, name: str, *, optional: bool = False) -> Any:
        value = self.value(name)
        if not isinstance(value, bool) and not (optional and value is None):
            raise self._error(name, "true or false", value)
        return value

    def integer(self, name: str, *, optional: bool = False) -> Any:
        value = self.value(name)
        if (not isinstance(value, int) or isinstance(value, bool)) and not (optional and value is None):
            raise self._error(name, "an integer", value)
        return value

    def number(self, name: str, *, signed: bool = False) -> float:
        value = self.value(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or (value < 0 and not signed):
            raise self._error(name, "a number" if signed else "a number, not below 0", value)
        return float(value)

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the ends of an interval; few uneven times give the mean one that reaches below 0."""
        value = self.value(name)
        if value is None:
            return None
        ends = dict(zip(("low", "high"), value)) if isinstance(value, list) and len(value) == 2 else {}  # noqa: B905
        reader = _EvidenceReader(ends, f"{self._place}/{name}")
        return reader.number("low", signed=True), reader.number("high")

    def _list(self, name: str) -> list[Any]:
        value = self.value(name)
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise self._error(name, f"a list of at most {MAX_ITEMS}", value)
        return value

    def _error(self, name: str, expected: str, found: Any) -> SpecError:
        place = f"{self._place}/{name}" if name else self._place or "/"
        return SpecError(f"{place}: not as in a result.json", expected=expected, found=_short(repr(found), 60))


def _short(text: str, limit: int = MAX_TEXT) -> str:
    """Return the text without control characters, at most `limit` long."""
    shown = "".join(each if each.isprintable() else " " for each in text[:limit])
    return shown if len(text) <= limit else shown[: limit - 3] + "..."


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")
