"""The result of a search as JSON and sentences: trials, winner and reasons, cost of each choice, next ones. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Literal, get_args

from edgekd.builds.search.accuracy_model import rank_correlation
from edgekd.builds.search.loop import NEXT_COUNT, Search
from edgekd.builds.search.pareto import FULL, NOISE, Point, front, shortfalls, tried_candidate, why
from edgekd.builds.search.space import Candidate
from edgekd.evaluation.search_result import (
    CandidateEstimate,
    ChoiceEffect,
    FrontCandidate,
    SearchResult,
    SearchSetup,
)

_Choice = Literal["student", "image_size", "ratio", "bits"]
_CHOICES: tuple[_Choice, ...] = get_args(_Choice)
"""Choices whose effect is reported; the others are trainings."""


def search_result(search: Search, setup: SearchSetup, seconds: float) -> SearchResult:
    """Return the content of `search.json`; seconds: spent on trials."""
    points = sorted(search.points.values(), key=lambda point: (-point.rung, -point.kept, point.cost.bytes))
    thorough = [point for point in points if point.rung == FULL]
    shown, refused = front(thorough or points), search.refused()
    spared = [*refused, *(point.candidate for point in points if point.rung < FULL)]
    winner = search.winner
    lacking = shortfalls(winner, search.budget) if winner else {}
    return SearchResult(
        **vars(setup),
        reason=search.reason or None,
        seconds=round(seconds, 3),
        candidates=len(search.space.candidates()),
        refused=len(refused),
        tried=len(points),
        thorough=len(thorough),
        trainings=sum(point.candidate.trains for point in thorough),
        trainings_saved=sum(candidate.trains for candidate in spared),
        rank_correlation=_rank_correlation(search),
        winner=tried_candidate(winner) if winner else None,
        lacking={name: round(share, 5) for name, share in lacking.items()} if winner else None,
        why=_why(search, winner, points) if winner else (),
        parts=_effects(search, winner.candidate) if winner else (),
        next=tuple(_estimate(search, candidate) for candidate in search.likeliest(NEXT_COUNT)),
        points=tuple(FrontCandidate(**vars(tried_candidate(point)), front=point in shown) for point in points),
    )


def _why(search: Search, winner: Point, points: Sequence[Point]) -> tuple[str, ...]:
    reasons = why(winner, points, search.budget)
    partial = winner.rung < FULL
    return (*reasons, *(["It was not tried in full: what it keeps is estimated."] if partial else []))


def _rank_correlation(search: Search) -> float | None:
    """Return the rank correlation of estimated and measured accuracy over the candidates tried in full."""
    measured = [search.points[candidate].kept for candidate in search.estimates]
    found = rank_correlation(list(search.estimates.values()), measured)
    return None if found is None else round(found, 3)


def _effects(search: Search, winner: Candidate) -> tuple[ChoiceEffect, ...]:
    """Return the estimated effect of each choice of the winner, compared with the gentlest choice of its kind."""
    effects = []
    for name in _CHOICES:
        value, gentlest = getattr(winner, name), getattr(search.space, name)[0]
        if value == gentlest:
            continue
        other = search.space.sensible(replace(winner, **{name: gentlest}))
        kept = search.accuracy.kept(winner) / search.accuracy.kept(other)
        before, after = (search.filter.cost(each) for each in (other, winner))
        saved = before.latency_ms and after.latency_ms and before.latency_ms - after.latency_ms
        saved_ms = float(f"{saved:.4g}") if saved is not None else None
        saved_bytes = round(before.bytes - after.bytes)
        effects.append(ChoiceEffect(name, value, gentlest, round(kept, 5), saved_bytes, saved_ms))
    return tuple(effects)


def _estimate(search: Search, candidate: Candidate) -> CandidateEstimate:
    """Return a candidate that was not tried, with its estimates."""
    kept, cost = search.accuracy.kept(candidate), search.filter.cost(candidate)
    point = tried_candidate(Point(candidate, NOISE, kept, cost, 0.0))
    names = (entry.name for entry in fields(CandidateEstimate))
    return CandidateEstimate(**{name: getattr(point, name) for name in names})
