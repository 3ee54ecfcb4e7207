"""Who is beaten by nobody, who wins under a budget, and what is said of it."""

from __future__ import annotations

import pytest

from edgekd.builds.search.cost_filter import Cost
from edgekd.builds.search.pareto import FULL, NOISE, Point, best, front, has_margin, rank, shortfalls, why
from edgekd.builds.search.space import Candidate
from edgekd.hardware.budget import Budget

BUDGET = Budget(max_bytes=1000, min_retention=0.96, min_fps=100)


def point(kept: float, size: float, ms: float = 5.0, rung: int = FULL, error: str | None = None) -> Point:
    return Point(Candidate(None, round(1e4 * kept) + round(size)), rung, kept, Cost(size, ms, None), 1.0, error)


def test_the_front_holds_who_is_beaten_by_nobody_and_both_of_equals() -> None:
    small, sure, beaten, equal = point(0.9, 500), point(0.99, 900), point(0.89, 600), point(0.9, 500)
    broken = point(1.0, 0, error="diverged")
    assert front([small, beaten, sure, broken]) == [sure, small]
    assert front([small, equal]) == [small, equal]
    assert front([broken]) == []


def test_limits_that_are_missed_are_told_by_how_much() -> None:
    assert shortfalls(point(0.97, 1000, 10.0), BUDGET) == {}
    found = shortfalls(point(0.48, 1500, 20.0), BUDGET)
    assert found == pytest.approx({"min_retention": 0.5, "max_bytes": 0.5, "min_fps": 1.0})


def test_a_margin_is_a_part_of_what_is_given_away() -> None:
    assert has_margin(point(0.971, 970, 9.7), BUDGET)
    assert not has_margin(point(0.969, 970, 9.7), BUDGET)
    assert not has_margin(point(0.99, 990, 9.7), BUDGET)
    assert not has_margin(point(0.99, 970, 9.9), BUDGET)
    assert not has_margin(point(0.99, 970), Budget(max_bytes=1000)), "more accuracy is always welcome"
    assert not has_margin(point(0.99, 970, error="diverged"), BUDGET)


def test_the_winner_keeps_the_budget_and_then_most_accuracy() -> None:
    sure, small, large = point(0.98, 990), point(0.97, 500), point(1.0, 1100)
    assert best([small, large, sure], BUDGET) == sure
    assert best([small, large], BUDGET) == small
    assert best([large, point(0.5, 400)], BUDGET) == large, "it misses least"
    assert best([], BUDGET) is None
    assert best([point(1, 1, error="x")], BUDGET) is None


def test_where_only_accuracy_is_limited_the_smallest_wins() -> None:
    sure, small, bad = point(0.99, 900), point(0.97, 500), point(0.9, 400)
    assert best([sure, small, bad], Budget(min_retention=0.96)) == small
    assert best([sure, small, bad], Budget(min_retention=0.999)) == sure


def test_a_glance_does_not_beat_a_thorough_try() -> None:
    assert best([point(1.0, 10, rung=NOISE), point(0.97, 900)], BUDGET) == point(0.97, 900)
    assert rank(point(0.97, 900), BUDGET)[0] == 0


def test_why_it_won_names_what_is_next_and_what_was_too_dear() -> None:
    winner, next_best, dear = point(0.98, 900), point(0.97, 800), point(1.0, 1500)
    summary = " ".join(why(winner, [winner, next_best, dear], BUDGET))
    assert summary.startswith("It keeps every limit. 1 of 2 others")
    assert f"Next best: {next_best.candidate.text()}: -1.0%" in summary
    assert f"More accurate: {dear.candidate.text()}: +2.0%" in summary
    assert "bundle size by 50.0%" in summary
    summary = " ".join(why(dear, [dear], BUDGET))
    assert summary == "None keeps every limit; it misses least: bundle size by 50.0%."
