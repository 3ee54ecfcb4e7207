"""The result of a search as JSON and sentences: trials, winner and reasons, cost of each choice, next ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgekd.builds.search.loop import NEXT_COUNT, Search
from edgekd.builds.search.pareto import Point, front, point_json, shortfalls, why
from edgekd.builds.search.space import FIELDS, Candidate


def document(search: Search, summary: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the documented `search.json`; summary: of the setup; seconds: of all trials."""
    points = sorted(search.points.values(), key=lambda point: (-point.rung, -point.kept, point.cost.bytes))
    thorough = [point for point in points if point.rung == search.rungs - 1]
    shown, refused = front(thorough or points), search.refused()
    spared = [*refused, *(point.candidate for point in points if point.rung < search.rungs - 1)]
    return {
        **summary,
        "reason": search.reason or None,
        "seconds": round(seconds, 3),
        "candidates": len(search.space.candidates()),
        "refused": len(refused),
        "tried": len(points),
        "thorough": len(thorough),
        "trainings": sum(point.candidate.trains for point in thorough),
        "trainings_saved": sum(candidate.trains for candidate in spared),
        **_won(search, points),
        "next": [_expected_point(search, candidate) for candidate in search.likeliest(NEXT_COUNT)],
        "points": [{**point_json(point), "front": point in shown} for point in points],
    }


def _won(search: Search, points: Sequence[Point]) -> dict[str, Any]:
    """Return the document's part on the winner, if there is one."""
    if (winner := search.winner) is None:
        return {"winner": None, "lacking": None, "why": [], "parts": []}
    return {
        "winner": point_json(winner),
        "lacking": {name: round(share, 5) for name, share in shortfalls(winner, search.budget).items()},
        "why": _why(search, winner, points),
        "parts": _parts(search, winner.candidate),
    }


def _why(search: Search, winner: Point, points: Sequence[Point]) -> list[str]:
    reasons = why(winner, points, search.budget)
    partial = winner.rung < search.rungs - 1
    return [*reasons, "It was tried in part only: what it keeps may change."] if partial else reasons


def _parts(search: Search, winner: Candidate) -> list[dict[str, Any]]:
    """Return the cost and gain of each choice of the winner against the gentlest one, estimated from all trials."""
    kept, parts = search.losses.parts(winner), []
    for name in FIELDS:
        gentlest = getattr(search.space, name)[0]
        if getattr(winner, name) == gentlest or name in ("teaching", "recovery", "quant_aware"):
            continue
        before, after = (search.filter.cost(each) for each in (_with(winner, name, gentlest), winner))
        choice = {"choice": name, "value": getattr(winner, name), "instead_of": gentlest, "kept": round(kept[name], 5)}
        saved = before.latency_ms and after.latency_ms and before.latency_ms - after.latency_ms
        parts.append(
            {
                **choice,
                "bytes_saved": round(before.bytes - after.bytes),
                "ms_saved": float(f"{saved:.4g}") if saved is not None else None,
            }
        )
    return parts


def _with(candidate: Candidate, name: str, value: Any) -> Candidate:
    return replace(candidate, **{name: value})


def _expected_point(search: Search, candidate: Candidate) -> dict[str, Any]:
    """Return a candidate that was not tried with its estimates."""
    cost = search.filter.cost(candidate)
    point = Point(candidate, 0, search.losses.kept(candidate), cost, 0.0)
    return {key: value for key, value in point_json(point).items() if key not in ("rung", "seconds", "error")}
