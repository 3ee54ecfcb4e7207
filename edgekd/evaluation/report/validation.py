"""Render the evidence of a validation on hardware as one self-contained HTML page; all of its text is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from edgekd.agent.validation.evidence import FAILED, Attempt, Evidence
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
from edgekd.evaluation.report.markup import Html, details, page, section, table, tag

STATES = {CONFIRMED: ("met", "✓"), REFUTED: ("missed", "✕"), NOT_TESTED: ("open", "○")}
"""Of an outcome: its class and its sign."""
MAX_LOG = 50
"""Lines of a builder's log on the page; the file has all."""


def render(name: str, evidence: Evidence, found: Sequence[Verdict]) -> str:
    """Return the page. name: file name of the evidence."""
    parts = (_head(name, evidence, found), _verdicts(found), _attempts(evidence), _logs(evidence), _system(evidence))
    return page(f"{evidence.device}: validation", parts, styles=("validation.css",))


def _head(name: str, evidence: Evidence, found: Sequence[Verdict]) -> Html:
    counts = Counter(each.outcome for each in found)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    worst = next((each for each in (REFUTED, CONFIRMED) if counts[each]), NOT_TESTED)
    state, sign = STATES[worst]
    bundle = f", bundle {evidence.bundle_sha256[:16]}" if evidence.bundle_sha256 else ""
    cut = exit_code(evidence, tuple(found)) == INCOMPLETE or not evidence.complete
    return tag(
        "header",
        tag("p", "edgekd validate-report", class_="kicker"),
        tag("h1", evidence.device),
        tag("p", f"Evidence in {name}{bundle}", class_="lead"),
        tag("p", tag("span", sign, class_="sign", aria_hidden="true"), f" Claims: {told}", class_=f"verdict {state}"),
        tag("p", "Cut short: a process crashed, was killed or took too long.", class_="why") if cut else "",
        tag("p", f"Problem: {evidence.problem.message}", class_="why") if evidence.problem else "",
    )


def _verdicts(found: Sequence[Verdict]) -> Html:
    if not found:
        return Html()
    rows = [(each.text, _state(each.outcome), each.detail, tag("code", each.evidence)) for each in found]
    why = (
        "Judged from the evidence by this edgekd, whatever the file itself says. Evidence: JSON pointers into the file."
    )
    heads = ("Claim", "Outcome", "Why", "Evidence")
    return section("Verdicts", why, table("One line for each claim", heads, rows, class_="sentences"))


def _state(outcome: str) -> Html:
    state, sign = STATES[outcome]
    return tag("span", tag("span", sign, class_="sign", aria_hidden="true"), f" {outcome}", class_=f"state {state}")


def _attempts(evidence: Evidence) -> Html:
    if not evidence.attempts:
        return Html()
    heads = ("Runtime", "Network", "Build", "Golden test", "Median", "FPS", "INT8 share", "Process")
    rows = [_attempt(each) for each in evidence.attempts]
    why = "Each ran in a process of its own, in this order. Times are of the engine alone."
    return section("Attempts", why, table("Runtimes and forms of the network", heads, rows))


def _attempt(each: Attempt) -> tuple[str, ...]:
    steps = {step.name: step for step in each.steps}
    built, tested = steps.get("build"), steps.get("selftest")
    share = each.build.int8_share if each.build else None
    ended = each.process.cut or (each.problem and f"not here: {each.problem}") or "ended by itself"
    return (
        f"{each.runtime} {each.version or ''}".strip(),
        TITLES[each.form],
        f"{built.outcome}, {text.duration(built.seconds)}" if built else text.MISSING,
        tested.outcome if tested else text.MISSING,
        text.milliseconds(each.bench.p50 if each.bench else None),
        text.rate(each.bench.fps if each.bench else None),
        text.percent(share),
        ended if each.running is None else f"{ended}, in step {each.running}",
    )


def _logs(evidence: Evidence) -> Html:
    logs = [(each, each.build.log) for each in evidence.attempts if each.build and each.build.log]
    failed = [(each, step) for each in evidence.attempts for step in each.steps if step.outcome == FAILED]
    if not logs and not failed:
        return Html()
    shown = [details(_title(each), _list(lines[:MAX_LOG])) for each, lines in logs]
    told = _list(f"{_title(each)}, {step.name}: {step.error or text.MISSING}" for each, step in failed)
    why = "What the builders warned of, and what the steps failed with."
    return section("Logs", why, told, *shown)


def _title(each: Attempt) -> str:
    return f"{each.runtime}, {TITLES[each.form]}"


def _list(lines: Iterable[str]) -> Html:
    return tag("ul", *(tag("li", line) for line in lines))


def _system(evidence: Evidence) -> Html:
    facts = sorted(evidence.system.items())
    if evidence.power_mode:
        facts.append(("power mode", evidence.power_mode.title))
    return section("System", "As the device says.", table("System", ("", "Value"), facts))
