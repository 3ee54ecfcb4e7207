"""Render the evidence of a validation on hardware as one self-contained HTML page; all of its text is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgekd.agent.validation.evidence import FAILED, Attempt, ValidationEvidence
from edgekd.agent.validation.verdicts import (
    CONFIRMED,
    INCOMPLETE,
    NOT_TESTED,
    OUTCOMES,
    REFUTED,
    TITLES,
    Verdict,
    exit_code,
)
from edgekd.evaluation.report import text
from edgekd.evaluation.report.page import render_page

MAX_LOG = 50
"""Maximum number of lines of a builder's log on the page; the evidence file has all."""


def render(name: str, evidence: ValidationEvidence, verdicts: Sequence[Verdict]) -> str:
    """Return the page. name: File name of the evidence."""
    counts = Counter(each.outcome for each in verdicts)
    mode = evidence.power_mode
    return render_page(
        "validation.html",
        name=name,
        evidence=evidence,
        verdicts=verdicts,
        counts=[(outcome, counts[outcome]) for outcome in OUTCOMES],
        worst=next((each for each in (REFUTED, CONFIRMED) if counts[each]), NOT_TESTED),
        incomplete=exit_code(evidence, tuple(verdicts)) == INCOMPLETE or not evidence.complete,
        attempts=[_attempt(each) for each in evidence.attempts],
        logs=[(_title(a), a.build.log[:MAX_LOG]) for a in evidence.attempts if a.build and a.build.log],
        failed=[
            f"{_title(attempt)}, {step.name}: {step.error or text.MISSING}"
            for attempt in evidence.attempts
            for step in attempt.steps
            if step.outcome == FAILED
        ],
        system=[*sorted(evidence.system.items()), *([("power mode", mode.title)] if mode else [])],
    )


def _attempt(attempt: Attempt) -> tuple[str, ...]:
    steps = {step.name: step for step in attempt.steps}
    built, tested = steps.get("build"), steps.get("selftest")
    ended = attempt.process.cut or (attempt.problem and f"not here: {attempt.problem}") or "ended by itself"
    return (
        f"{attempt.runtime} {attempt.version or ''}".strip(),
        TITLES[attempt.form],
        f"{built.outcome}, {text.duration(built.seconds)}" if built else text.MISSING,
        tested.outcome if tested else text.MISSING,
        text.milliseconds(attempt.bench.p50 if attempt.bench else None),
        text.rate(attempt.bench.fps if attempt.bench else None),
        text.percent(attempt.build.int8_share if attempt.build else None),
        ended if attempt.running is None else f"{ended}, in step {attempt.running}",
    )


def _title(attempt: Attempt) -> str:
    return f"{attempt.runtime}, {TITLES[attempt.form]}"
