"""The result of a search as JSON and sentences: trials, winner and reasons, cost of each choice, next ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgekd.build.search.loop import NEXT, Search
from edgekd.build.search.pareto import Point, front, lacks, point_json, why
from edgekd.build.search.space import FIELDS, Candidate


def document(search: Search, told: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The documented `search.json`; told: of the beginning; seconds: that it took all together."""
    points = sorted(search.points.values(), key=lambda point: (-point.rung, -point.kept, point.cost.bytes))
    thorough = [point for point in points if point.rung == search.rungs - 1]
    shown, refused = front(thorough or points), search.refused()
    spared = [*refused, *(point.candidate for point in points if point.rung < search.rungs - 1)]
    return {
        **told,
        "reason": search.reason or None,
        "seconds": round(seconds, 3),
        "candidates": len(search.space.candidates()),
        "refused": len(refused),
        "tried": len(points),
        "thorough": len(thorough),
        "trainings": sum(point.candidate.trains for point in thorough),
        "trainings_saved": sum(candidate.trains for candidate in spared),
        **_won(search, points),
        "next": [_thought(search, candidate) for candidate in search.likeliest(NEXT)],
        "points": [{**point_json(point), "front": point in shown} for point in points],
    }


def _won(search: Search, points: Sequence[Point]) -> dict[str, Any]:
    """Return the document's part on the winner, if there is one."""
    if (winner := search.winner) is None:
        return {"winner": None, "lacking": None, "why": [], "parts": []}
    return {
        "winner": point_json(winner),
        "lacking": {name: round(share, 5) for name, share in lacks(winner, search.budget).items()},
        "why": _why(search, winner, points),
        "parts": _parts(search, winner.candidate),
    }


def _why(search: Search, winner: Point, points: Sequence[Point]) -> list[str]:
    told = why(winner, points, search.budget)
    return told if winner.rung == search.rungs - 1 else [*told, "It was tried in part only: what it keeps may change."]


def _parts(search: Search, winner: Candidate) -> list[dict[str, Any]]:
    """Return the cost and gain of each choice of the winner against the gentlest one, estimated from all trials."""
    kept, found = search.losses.parts(winner), []
    for name in FIELDS:
        gentlest = getattr(search.space, name)[0]
        if getattr(winner, name) == gentlest or name in ("teaching", "recovery", "quant_aware"):
            continue
        before, after = (search.filter.cost(each) for each in (_with(winner, name, gentlest), winner))
        told = {"choice": name, "value": getattr(winner, name), "instead_of": gentlest, "kept": round(kept[name], 5)}
        saved = before.latency_ms and after.latency_ms and before.latency_ms - after.latency_ms
        found.append(
            {
                **told,
                "bytes_saved": round(before.bytes - after.bytes),
                "ms_saved": float(f"{saved:.4g}") if saved is not None else None,
            }
        )
    return found


def _with(candidate: Candidate, name: str, value: Any) -> Candidate:
    return replace(candidate, **{name: value})


def _thought(search: Search, candidate: Candidate) -> dict[str, Any]:
    """A candidate that was not tried, and what is thought of it."""
    cost = search.filter.cost(candidate)
    point = Point(candidate, 0, search.losses.kept(candidate), cost, 0.0)
    return {key: value for key, value in point_json(point).items() if key not in ("rung", "seconds", "error")}
