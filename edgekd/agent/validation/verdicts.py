"""Verdicts on the evidence of a validation, one for each claim of this project on hardware. Pure.

A claim is refuted by a figure, a refusal or a crash. One that could not be examined, because a runtime is missing or a
process was killed, is not tested, and the verdict has the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgekd.agent.runtimes.tensorrt_generations import generation
from edgekd.agent.runtimes.types import FLOAT as FROM_FLOAT
from edgekd.agent.validation.evidence import (
    BENCH,
    BUILD,
    CALIBRATED,
    FAILED,
    FLOAT,
    FP32_WEIGHTS,
    INT8_CONSTANTS,
    NOT_HERE,
    SELF_TEST,
    Attempt,
    Bench,
    Mode,
    NetworkForm,
    Prediction,
    ValidationEvidence,
)
from edgekd.core.errors import DeviceError

Outcome = Literal["confirmed", "refuted", "not tested"]
CONFIRMED: Outcome = "confirmed"
REFUTED: Outcome = "refuted"
NOT_TESTED: Outcome = "not tested"
OUTCOMES = (CONFIRMED, REFUTED, NOT_TESTED)
Claim = Literal["runtime", "parsed", "int8-share", "golden", "dla-int8", "fps", "prediction"]
RUNTIME: Claim = "runtime"
PARSED: Claim = "parsed"
SHARE: Claim = "int8-share"
GOLDEN: Claim = "golden"
DLA_INT8: Claim = "dla-int8"
FPS: Claim = "fps"
PREDICTION: Claim = "prediction"
MIN_INT8_SHARE = 0.5
"""Minimum share of an engine's time in INT8: less defeats the purpose of an INT8 bundle."""
ALL_CONFIRMED, SOME_REFUTED, WRONG_USE, NONE_TESTED, INCOMPLETE = 0, 1, 2, 3, 4
"""Exit codes of a validation; WRONG_USE also for a damaged kit."""
TITLES = {
    FLOAT: "the network in float",
    FP32_WEIGHTS: "Q/DQ with FP32 weights",
    INT8_CONSTANTS: "DQ on INT8 constants",
    CALIBRATED: "INT8 by calibration cache",
}
_KILLED = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
"""Signals from outside, such as from a system without free memory: they are no evidence on the engine."""
_NO_SCALE = ("missing scale and zero", "fall back to non-int8", "cannot run in int8 mode")
"""Phrases of the builder's log, in lower case, on layers that are not in INT8; NVIDIA/TensorRT issues 1556, 4555."""
_OF_TENSORRT = ("tensorrt", "trtexec")
"""Runtimes for claims on INT8 shares and predictions, the better first."""


@dataclass(frozen=True)
class VerdictSummary:
    """Outcome of one claim.

    Args:
        claim: `runtime`: it is here; `parsed`: a builder accepts a form of the network, or refuses it by the rule;
            `golden`: the golden test is passed; `int8-share`: most of the time is in INT8; `dla-int8`: a DLA core
            computes in INT8; `fps`: frames per second are known, with an interval; `prediction`: the latency is as
            predicted.
        runtime: The runtime; null where none was measured.
        form: Form of the network, as in `attempts`; null for a runtime as a whole.
        outcome: Verdict by the evidence.
        text: The claim, for people.
        detail: The figures or the reason, for people.
    """

    claim: Claim
    runtime: str | None
    form: NetworkForm | None
    outcome: Outcome
    text: str
    detail: str


@dataclass(frozen=True)
class Verdict(VerdictSummary):
    """Outcome of one claim, with its evidence.

    Args:
        number: The figure that decided; null where none did.
        unit: Unit of `number`.
        evidence: JSON pointer (RFC 6901) into `result.json`.
    """

    number: float | None
    unit: str | None
    evidence: str

    @property
    def line(self) -> str:
        """The verdict on one line."""
        return f"{self.outcome:10}  {self.text}: {self.detail}"

    @property
    def summary(self) -> VerdictSummary:
        """The verdict without its evidence."""
        return VerdictSummary(self.claim, self.runtime, self.form, self.outcome, self.text, self.detail)


def verdicts(evidence: ValidationEvidence) -> tuple[Verdict, ...]:
    """Return all verdicts, in the order of the attempts; that on the prediction is the last."""
    found: list[Verdict] = []
    by_runtime: dict[str, list[tuple[int, Attempt]]] = {}
    for index, attempt in enumerate(evidence.attempts):
        by_runtime.setdefault(attempt.runtime, []).append((index, attempt))
    for attempts in by_runtime.values():
        found += _of_runtime(attempts)
    if evidence.attempts:
        found.append(_prediction(evidence))
    return tuple(found)


def exit_code(evidence: ValidationEvidence, found: tuple[Verdict, ...]) -> int:
    """Return the exit code for verdicts. A refuted claim decides, then a process that was cut short."""
    outcomes = {verdict.outcome for verdict in found}
    if REFUTED in outcomes:
        return SOME_REFUTED
    if not evidence.complete or any(attempt.process.cut for attempt in evidence.attempts):
        return INCOMPLETE
    return ALL_CONFIRMED if CONFIRMED in outcomes else NONE_TESTED


def shipped_form(runtime: str, version: str | None) -> NetworkForm:
    """Return the form of the network that the agent itself gives to a runtime."""
    if runtime.startswith("tensorrt-dla"):
        return CALIBRATED
    return INT8_CONSTANTS if _takes_constants(runtime, version) else FP32_WEIGHTS


def _takes_constants(runtime: str, version: str | None) -> bool:
    if runtime not in _OF_TENSORRT:
        return True
    try:
        return generation(version or "").int8_constants
    except DeviceError:
        return False


def _of_runtime(attempts: list[tuple[int, Attempt]]) -> Iterator[Verdict]:
    index, first = attempts[0]
    why = next((found for _, attempt in attempts if (found := _absent(attempt))), None)
    if why is not None:
        yield _verdict(first, index, RUNTIME, NOT_TESTED, f"{first.runtime} runs here", why, step=None)
        return
    shipped = shipped_form(first.runtime, first.version)
    control = any(attempt.form == FP32_WEIGHTS and attempt.build for _, attempt in attempts)
    for index, attempt in attempts:
        yield _parsed(attempt, index, control=control)
    for index, attempt in attempts:
        if attempt.build is not None:
            yield _golden(attempt, index)
    for index, attempt in attempts:
        if attempt.form == shipped and attempt.build is not None:
            if attempt.form == CALIBRATED:
                yield _dla_int8(attempt, index, next((a for _, a in attempts if a.form == FLOAT), None))
            else:
                yield _share(attempt, index)
            yield _fps(attempt, index)


def _absent(attempt: Attempt) -> str | None:
    """Return the reason why a runtime is not on this device; None where it is."""
    if attempt.problem is not None:
        return attempt.problem
    built = attempt.step(BUILD)
    return built.error or "not here" if built and built.outcome == NOT_HERE else None


def _parsed(attempt: Attempt, index: int, *, control: bool) -> Verdict:
    """Judge whether the builder takes a form, or, where the rule says that it does not, refuses it.

    control: whether it takes Q/DQ with FP32 weights. Where it takes neither, a refusal is not one of INT8 constants.
    """
    title, step = TITLES[attempt.form], attempt.step(BUILD)
    refusal_expected = attempt.form == INT8_CONSTANTS and not _takes_constants(attempt.runtime, attempt.version)
    text = f"{_name(attempt)} {'refuses' if refusal_expected else 'builds'} {title}"
    if step is None:
        cut = attempt.process.cut or "no result"
        tested = attempt.process.signal is not None and attempt.process.signal not in _KILLED
        outcome = REFUTED if tested and not refusal_expected else NOT_TESTED
        return _verdict(attempt, index, PARSED, outcome, text, cut, step=None)
    if refusal_expected:
        if step.outcome == FAILED and not control:
            why = "the same network with FP32 weights was not built either"
            return _verdict(attempt, index, PARSED, NOT_TESTED, text, why, step=BUILD)
        outcome = CONFIRMED if step.outcome == FAILED else REFUTED
        return _verdict(attempt, index, PARSED, outcome, text, step.error or "it was built", step=BUILD)
    if attempt.build is None:
        return _verdict(attempt, index, PARSED, REFUTED, text, step.error or "no reason given", step=BUILD)
    if attempt.form != FLOAT and attempt.build.source == FROM_FLOAT:
        return _verdict(attempt, index, PARSED, REFUTED, text, "only in float: no INT8 kernels", step=BUILD)
    kept = len(attempt.build.float_layers)
    detail = f"{step.seconds:.1f} s" + (f", {kept} layers in float for want of an INT8 kernel" if kept else "")
    return _verdict(attempt, index, PARSED, CONFIRMED, text, detail, step=BUILD, number=step.seconds, unit="s")


def _golden(attempt: Attempt, index: int) -> Verdict:
    """Judge whether the outputs for the golden frames are those in the bundle."""
    text, tested = f"{_name(attempt)} passes the golden test, {TITLES[attempt.form]}", attempt.self_test
    if tested is None:
        step = attempt.step(SELF_TEST)
        outcome = REFUTED if step and step.outcome == FAILED else NOT_TESTED
        detail = (step and step.error) or attempt.process.cut or "no result"
        return _verdict(attempt, index, GOLDEN, outcome, text, detail, step=SELF_TEST)
    (boxes, scores), (most_boxes, most_scores) = tested.errors, tested.tolerances
    detail = f"error {boxes:.4g} of boxes, at most {most_boxes:.4g}; {scores:.4g} of scores, at most {most_scores:.4g}"
    outcome = CONFIRMED if tested.passed else REFUTED
    largest = max(tested.errors)
    return _verdict(attempt, index, GOLDEN, outcome, text, detail, step=SELF_TEST, number=largest, unit="relative")


def _share(attempt: Attempt, index: int) -> Verdict:
    """Judge whether most of the time goes into INT8: of TensorRT, whose rules Q/DQ is placed by."""
    text, build = f"{_name(attempt)} computes most of its time in INT8", attempt.build
    share = build.int8_share if build else None
    if share is None:
        why = (build and build.unread) or "the runtime reports no times by precision"
        return _verdict(attempt, index, SHARE, NOT_TESTED, text, why, step=BUILD)
    if attempt.runtime not in _OF_TENSORRT:
        why = f"{share:.0%}, but Q/DQ is placed by TensorRT's rules, and another runtime may leave it"
        return _verdict(attempt, index, SHARE, NOT_TESTED, text, why, step=BUILD, number=share, unit="share")
    outcome = CONFIRMED if share >= MIN_INT8_SHARE else REFUTED
    return _verdict(attempt, index, SHARE, outcome, text, f"{share:.0%}", step=BUILD, number=share, unit="share")


def _dla_int8(attempt: Attempt, index: int, in_float: Attempt | None) -> Verdict:
    """Judge whether a DLA core computes in INT8.

    INT8 and FP16 look alike in the layer list of such an engine. So every activation must have a scale, the log must
    name no layer that falls back, and the engine must be faster than its twin in FP16, beyond the error of both times.
    """
    text, build = f"{_name(attempt)} computes in INT8", attempt.build
    assert build is not None
    missing = build.missing_scales
    if missing:
        names = ", ".join(missing[:3])
        detail = f"{len(missing)} activations have no scale: {names}"
        return _verdict(attempt, index, DLA_INT8, REFUTED, text, detail, step=BUILD, number=len(missing))
    fallbacks = [line for line in build.log if any(words in line.lower() for words in _NO_SCALE)]
    if fallbacks:
        return _verdict(attempt, index, DLA_INT8, REFUTED, text, fallbacks[0], step=BUILD, number=len(fallbacks))
    if build.dla_layers == 0:
        return _verdict(attempt, index, DLA_INT8, REFUTED, text, "no layer is on the DLA", step=BUILD, number=0)
    twin = in_float.bench if in_float else None
    intervals = [each.p50_interval if each else None for each in (attempt.bench, twin)]
    if attempt.bench is None or twin is None or None in intervals:
        return _verdict(attempt, index, DLA_INT8, NOT_TESTED, text, "no times of both INT8 and FP16", step=BENCH)
    (int8, half), ratio = intervals, twin.p50 / max(attempt.bench.p50, 1e-9)
    assert int8 is not None
    assert half is not None
    known = "0 activations without a scale, " if missing is not None else ""
    detail = f"{known}{attempt.bench.p50:.3g} ms in INT8, {twin.p50:.3g} ms in FP16"
    outcome = CONFIRMED if int8[1] < half[0] else REFUTED
    return _verdict(attempt, index, DLA_INT8, outcome, text, detail, step=BENCH, number=ratio, unit="times as fast")


def _fps(attempt: Attempt, index: int) -> Verdict:
    """Report frames per second with their interval, where the times are even enough."""
    text, found = f"frames per second of {_name(attempt)}, {TITLES[attempt.form]}", attempt.bench
    if found is None or found.fps is None or found.mean_interval is None:
        step = attempt.step(BENCH)
        refused = [reason[len("fps: ") :] for reason in found.refused if reason.startswith("fps: ")] if found else []
        why = "; ".join(refused) or (step and step.error) or attempt.process.cut or "no times"
        return _verdict(attempt, index, FPS, NOT_TESTED, text, why, step=BENCH)
    slow, fast = (1000 / max(ms, 1e-9) for ms in reversed(found.mean_interval))
    detail = f"{found.fps:.4g}, 95 % interval {slow:.4g} to {fast:.4g}"
    return _verdict(attempt, index, FPS, CONFIRMED, text, detail, step=BENCH, number=found.fps, unit="fps")


def _prediction(evidence: ValidationEvidence) -> Verdict:
    """Judge whether the measured latency lies in the interval predicted for this device."""
    measured = _measured(evidence)
    predicted = next((each for each in evidence.predictions if each.fits), None)
    if predicted is None:
        why = "no prediction in this kit is of this device"
    elif measured is None:
        why = "no INT8 engine of TensorRT was timed"
    elif not _same_mode(predicted.power_mode, evidence.power_mode):
        found = evidence.power_mode.title if evidence.power_mode else "not known"
        why = f"the power mode is {found}, the prediction is of {predicted.power_mode and predicted.power_mode.title}"
    else:
        return _compared(*measured, predicted)
    text = "the latency is as predicted"
    return Verdict(PREDICTION, None, None, NOT_TESTED, text, why, None, None, "/kit/predictions")


def _same_mode(predicted: Mode | None, found: Mode | None) -> bool:
    """Return whether a prediction is for the current power mode; numbers decide, where both are known."""
    if predicted is None or found is None:
        return predicted is None
    return found.name == predicted.name if None in (predicted.id, found.id) else found.id == predicted.id


def _compared(index: int, attempt: Attempt, bench: Bench, predicted: Prediction) -> Verdict:
    text = f"the latency of {_name(attempt)} is as predicted for {predicted.target} in {predicted.precision}"
    detail = (
        f"{bench.p50:.3g} ms, predicted {predicted.latency_ms:.3g} ({predicted.low_ms:.3g} to {predicted.high_ms:.3g})"
    )
    outcome = CONFIRMED if predicted.low_ms <= bench.p50 <= predicted.high_ms else REFUTED
    return _verdict(attempt, index, PREDICTION, outcome, text, detail, step=BENCH, number=bench.p50, unit="ms")


def _measured(evidence: ValidationEvidence) -> tuple[int, Attempt, Bench] | None:
    """Return the attempt that a prediction is compared with, and its times."""
    for runtime in _OF_TENSORRT:
        for index, each in enumerate(evidence.attempts):
            if each.runtime == runtime and each.bench and each.form == shipped_form(runtime, each.version):
                return index, each, each.bench
    return None


def _name(attempt: Attempt) -> str:
    return f"{attempt.runtime} {attempt.version}" if attempt.version else attempt.runtime


def _verdict(
    attempt: Attempt,
    index: int,
    claim: Claim,
    outcome: Outcome,
    text: str,
    detail: str,
    *,
    step: str | None,
    number: float | None = None,
    unit: str | None = None,
) -> Verdict:
    """Build a verdict whose evidence is a step of an attempt, or the attempt where it has no such step."""
    place = next((at for at, each in enumerate(attempt.steps) if each.name == step), None)
    pointer = f"/attempts/{index}" + ("" if place is None else f"/steps/{place}")
    form = None if claim == RUNTIME else attempt.form
    return Verdict(claim, attempt.runtime, form, outcome, text, " ".join(detail.split()), number, unit, pointer)
