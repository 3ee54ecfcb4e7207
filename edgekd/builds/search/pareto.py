"""Pareto front of the candidates that were tried, the winner under a budget, and the reasons. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.builds.search.cost_filter import Cost, excesses
from edgekd.builds.search.space import Candidate
from edgekd.evaluation.search_result import TriedCandidate
from edgekd.hardware.budget import LABELS, Budget, size_text

NOISE, FULL = 0, 1
"""Rungs. NOISE: noise of the untrained network, measured; FULL: trained, and scored on all held-out images."""
MARGIN_RETENTION = 0.25
"""Share of the accuracy loss allowed by a budget that must be unused for a margin."""
MARGIN_USE = 0.98
"""Largest share of a limit on size, time or energy that may be used for a margin."""


@dataclass(frozen=True)
class Point:
    """A candidate that was tried.

    rung: NOISE or FULL; kept: share of the detector's mAP50-95 on held-out images, estimated on the rung NOISE; cost:
    of its real graph, estimated for a student on the rung NOISE; seconds: duration of the trial when it ran; error: why
    it failed, with `kept` and `cost` unset, or None; noise: output noise of its network before training, None if
    unknown.
    """

    candidate: Candidate
    rung: int
    kept: float
    cost: Cost
    seconds: float
    error: str | None = None
    noise: float | None = None


def tried_candidate(point: Point) -> TriedCandidate:
    """Return the entry of a point in search.json."""
    return TriedCandidate(
        **vars(point.candidate),
        rung=point.rung,
        kept=None if point.error else round(point.kept, 5),
        bytes=None if point.error else round(point.cost.bytes),
        latency_ms=_short(point.cost.latency_ms),
        energy_mj=_short(point.cost.energy_mj),
        noise=_short(point.noise),
        seconds=round(point.seconds, 3),
        error=point.error,
        text=point.candidate.text(),
    )


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def shortfalls(point: Point, budget: Budget) -> dict[str, float]:
    """Return the share by which each missed limit is missed, by its name; unknown costs miss no limit."""
    found = {name: used - 1 for name, used in excesses(point.cost, budget).items() if used > 1}
    if budget.min_retention and point.kept < budget.min_retention:
        found["min_retention"] = 1 - point.kept / budget.min_retention
    return found


def has_margin(point: Point, budget: Budget) -> bool:
    """Return whether all limits are kept with a margin, and accuracy is one of them."""
    if budget.min_retention is None or point.error:
        return False
    wanted = budget.min_retention + MARGIN_RETENTION * (1 - budget.min_retention)
    return point.kept >= wanted and all(used <= MARGIN_USE for used in excesses(point.cost, budget).values())


def rank(point: Point, budget: Budget) -> tuple[float, ...]:
    """Return a sort key, best first: limits missed by least; then accuracy, or cost if only accuracy is limited."""
    missed = sum(shortfalls(point, budget).values())
    cost = (point.cost.bytes, point.cost.latency_ms or 0.0)
    limited = any((budget.max_bytes, budget.min_fps, budget.max_energy_mj))
    order = (-point.kept, *cost) if limited or missed or budget.min_retention is None else (*cost, -point.kept)
    return (missed, *order)


def best(points: Sequence[Point], budget: Budget) -> Point | None:
    """Return the winner on the highest rung reached; None if all trials failed."""
    whole = [point for point in points if point.error is None]
    top = max((point.rung for point in whole), default=0)
    return min((point for point in whole if point.rung == top), key=lambda point: rank(point, budget), default=None)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto front in accuracy, size, time and energy; the most accurate first."""
    whole = [point for point in points if point.error is None]
    kept = [point for point in whole if not any(_beats(other, point) for other in whole)]
    return sorted(kept, key=lambda point: (-point.kept, point.cost.bytes, point.cost.latency_ms or 0.0))


def _beats(one: Point, other: Point) -> bool:
    a, b = (
        (-point.kept, point.cost.bytes, point.cost.latency_ms or 0.0, point.cost.energy_mj or 0.0)
        for point in (one, other)
    )
    return a != b and all(left <= right for left, right in zip(a, b, strict=True))


def why(winner: Point, points: Sequence[Point], budget: Budget) -> list[str]:
    """Return the reasons for the winner as sentences: limits kept, the next best, and more accurate ones."""
    missed = shortfalls(winner, budget)
    reasons = [
        "It keeps every limit." if not missed else f"None keeps every limit; it misses least: {_missed(missed)}."
    ]
    others = [p for p in points if p.error is None and p.rung == winner.rung and p != winner]
    fit = [point for point in others if not shortfalls(point, budget)]
    if not missed and others:
        reasons.append(f"{len(fit)} of {len(others)} others that were tried as thoroughly keep every limit, too.")
    if not missed and fit:
        next_best = min(fit, key=lambda point: rank(point, budget))
        reasons.append(f"Next best: {next_best.candidate.text()}: {against(next_best, winner)}.")
    better = [point for point in others if point.kept > winner.kept and shortfalls(point, budget)]
    if better:
        top = max(better, key=lambda point: point.kept)
        reasons.append(
            f"More accurate: {top.candidate.text()}: {against(top, winner)}; {_missed(shortfalls(top, budget))}."
        )
    return reasons


def against(point: Point, winner: Point) -> str:
    """Return a point's difference in accuracy to the winner, its size and its latency as text."""
    differences = [f"{point.kept - winner.kept:+.1%} of the mAP50-95", size_text(point.cost.bytes)]
    if point.cost.latency_ms is not None:
        differences.append(f"{point.cost.latency_ms:.2f} ms")
    return ", ".join(differences)


def _missed(lacking: Mapping[str, float]) -> str:
    return ", ".join(f"{LABELS[name]} by {share:.1%}" for name, share in lacking.items())
