"""Pareto front of the candidates that were tried, the winner under a budget, and the reasons. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.build.budget import LABELS, size_text
from edgekd.build.recipe import Budget
from edgekd.build.search.cost_filter import Cost, excesses
from edgekd.build.search.space import Candidate, candidate_json

SPARE = 0.25
"""Of the accuracy that a budget gives away, the part that is to be left for a budget to be met with a margin."""
ROOM = 0.98
"""Of a limit on size, time or energy, the most that may be used then."""


@dataclass(frozen=True)
class Point:
    """A candidate that was tried.

    rung: how thoroughly, 0 the least; kept: the share of the detector's mAP50-95 on held-out images; cost: of its real
    graph; seconds: that the try took when it was made; error: why nothing came of it, all else is None or 0 then.
    """

    candidate: Candidate
    rung: int
    kept: float
    cost: Cost
    seconds: float
    error: str | None = None


def point_json(point: Point) -> dict[str, Any]:
    """A point as search.json has it."""
    return {
        **candidate_json(point.candidate),
        "rung": point.rung,
        "kept": None if point.error else round(point.kept, 5),
        "bytes": None if point.error else round(point.cost.bytes),
        "latency_ms": _short(point.cost.latency_ms),
        "energy_mj": _short(point.cost.energy_mj),
        "seconds": round(point.seconds, 3),
        "error": point.error,
        "text": point.candidate.text(),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def lacks(point: Point, budget: Budget) -> dict[str, float]:
    """By what share each limit is missed, by its name; empty where all are kept, as far as is known."""
    found = {name: used - 1 for name, used in excesses(point.cost, budget).items() if used > 1}
    if budget.min_retention and point.kept < budget.min_retention:
        found["min_retention"] = 1 - point.kept / budget.min_retention
    return found


def spacious(point: Point, budget: Budget) -> bool:
    """Return whether all limits are kept with a margin, and accuracy is one of them."""
    if budget.min_retention is None or point.error:
        return False
    wanted = budget.min_retention + SPARE * (1 - budget.min_retention)
    return point.kept >= wanted and all(used <= ROOM for used in excesses(point.cost, budget).values())


def rank(point: Point, budget: Budget) -> tuple[float, ...]:
    """The lower the better: who misses least; then who keeps most, or takes least where only accuracy is limited."""
    missed = sum(lacks(point, budget).values())
    cost = (point.cost.bytes, point.cost.latency_ms or 0.0)
    limited = any((budget.max_bytes, budget.min_fps, budget.max_energy_mj))
    order = (-point.kept, *cost) if limited or missed or budget.min_retention is None else (*cost, -point.kept)
    return (missed, *order)


def best(points: Sequence[Point], budget: Budget) -> Point | None:
    """The winner among those that were tried most thoroughly; None where nothing came of any."""
    whole = [point for point in points if point.error is None]
    top = max((point.rung for point in whole), default=0)
    return min((point for point in whole if point.rung == top), key=lambda point: rank(point, budget), default=None)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in accuracy, size and time at once; the most accurate first."""
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
    """Why it won: what of the budget it keeps, and what those next to it would have cost."""
    missed = lacks(winner, budget)
    told = ["It keeps every limit." if not missed else f"None keeps every limit; it misses least: {_missed(missed)}."]
    others = [p for p in points if p.error is None and p.rung == winner.rung and p != winner]
    fit = [point for point in others if not lacks(point, budget)]
    if not missed and others:
        told.append(f"{len(fit)} of {len(others)} others that were tried as thoroughly keep every limit, too.")
    if not missed and fit:
        next_best = min(fit, key=lambda point: rank(point, budget))
        told.append(f"Next best: {next_best.candidate.text()}: {against(next_best, winner)}.")
    better = [point for point in others if point.kept > winner.kept and lacks(point, budget)]
    if better:
        top = max(better, key=lambda point: point.kept)
        told.append(f"More accurate: {top.candidate.text()}: {against(top, winner)}; {_missed(lacks(top, budget))}.")
    return told


def against(point: Point, winner: Point) -> str:
    """Return the differences of a point to the winner."""
    told = [f"{point.kept - winner.kept:+.1%} of the mAP50-95", size_text(point.cost.bytes)]
    if point.cost.latency_ms is not None:
        told.append(f"{point.cost.latency_ms:.2f} ms")
    return ", ".join(told)


def _missed(lacking: Mapping[str, float]) -> str:
    return ", ".join(f"{LABELS[name]} by {share:.1%}" for name, share in lacking.items())
