"""What there is to say of a search: what was tried, what won and why, what each choice costs, what is next. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgekd.search.front import Point, front, lacks, point_json, why
from edgekd.search.loop import NEXT, Search
from edgekd.search.space import FIELDS, Candidate


def document(search: Search, told: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The documented `search.json`; told: of the beginning; seconds: that it took all together."""
    points = sorted(search.points.values(), key=lambda point: (-point.rung, -point.kept, point.cost.bytes))
    shown = front([point for point in points if point.rung == search.rungs - 1] or points)
    winner = search.winner
    thorough = [point for point in points if point.rung == search.rungs - 1]
    return {
        **told,
        "reason": search.reason or None,
        "seconds": round(seconds, 3),
        "candidates": len(search.space.candidates()),
        "refused": len(search.refused()),
        "tried": len(points),
        "thorough": len(thorough),
        "trainings": sum(point.candidate.trains for point in thorough),
        "trainings_saved": trainings_saved(search),
        "winner": None if winner is None else {**point_json(winner), "text": winner.candidate.text()},
        "lacking": None if winner is None else {name: round(share, 5) for name, share in _lacks(search).items()},
        "why": [] if winner is None else _why(search, winner, points),
        "parts": [] if winner is None else _parts(search, winner.candidate),
        "next": [_thought(search, candidate) for candidate in search.likeliest(NEXT)],
        "points": [{**point_json(p), "text": p.candidate.text(), "front": p in shown} for p in points],
    }


def trainings_saved(search: Search) -> int:
    """Candidates with a training that were looked at and not trained in full: refused, or beaten after less."""
    less = [p.candidate for p in search.points.values() if p.rung < search.rungs - 1]
    return sum(candidate.trains for candidate in (*search.refused(), *less))


def _why(search: Search, winner: Point, points: Sequence[Point]) -> list[str]:
    told = why(winner, points, search.budget)
    return told if winner.rung == search.rungs - 1 else [*told, "It was tried in part only: what it keeps may change."]


def _lacks(search: Search) -> dict[str, float]:
    return {} if search.winner is None else lacks(search.winner, search.budget)


def _parts(search: Search, winner: Candidate) -> list[dict[str, Any]]:
    """What each choice of the winner costs and gains beside the gentlest one, by what was learnt from all trials."""
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
    told = {key: value for key, value in point_json(point).items() if key not in ("rung", "seconds", "error")}
    return {**told, "text": candidate.text()}
