"""The loop on worlds that are a formula: what it finds, in how many trials, and that it does the same again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any

import pytest

from edgekd.builds.search.cost_filter import BaseGraph, CostFilter
from edgekd.builds.search.explain import search_result
from edgekd.builds.search.loop import ROUND_SIZE, Search, StopLimits, TrialRequest
from edgekd.builds.search.optuna_sampler import OptunaSampler
from edgekd.builds.search.pareto import FULL, NOISE, Point, best, rank, shortfalls
from edgekd.builds.search.space import Candidate, DetectorFacts, Space, space_for
from edgekd.evaluation.search_result import Rung, SearchSetup
from edgekd.hardware.budget import Budget
from edgekd.hardware.predict.work import convolution
from edgekd.hardware.target import load_target

pytest.importorskip("optuna")
TARGET = load_target("xavier")
WORKS = tuple(convolution(str(at), 128, 128, 6400, 9) for at in range(20))
SPACE = space_for(DetectorFacts(640, trains=True, resizes=True, quant_aware=True), TARGET, 30)
BUDGET = Budget(max_bytes=2_400_000, min_retention=0.9, min_fps=400)
SETUP = SearchSetup(
    identity="0" * 64,
    model="yolo11s.pt",
    target="xavier",
    budget=BUDGET,
    basis="predicted",
    held_out=128,
    rungs=(Rung(16, trained=False), Rung(128, trained=True)),
)


@dataclass
class World:
    """Costs as they are reckoned, a tenth dearer; accuracy by a formula; every try is counted."""

    filter: CostFilter = field(
        default_factory=lambda: CostFilter(SPACE, {None: BaseGraph(640, WORKS)}, 100_000, TARGET)
    )
    tries: list[TrialRequest] = field(default_factory=list)

    def point(self, candidate: Candidate, rung: int = FULL) -> Point:
        cost = self.filter.cost(candidate)
        if candidate.ratio == 0.2 and candidate.image_size == 640:
            return Point(candidate, rung, 0.0, replace(cost, bytes=0), 1.0, "prune: not faster")
        cost, noise = replace(cost, bytes=1.1 * cost.bytes), candidate.ratio + 0.01 * SPACE.level(candidate, "bits")
        if rung == NOISE:
            return Point(candidate, rung, 0.0, cost, 1.0, noise=noise)
        kept = 0.96 ** SPACE.level(candidate, "image_size")
        kept *= exp(-noise) if not candidate.trains else 1 - 0.1 * noise**2 - 0.01 * (candidate.quant_aware == 0)
        return Point(candidate, rung, kept, cost, 1.0)

    def run_trials(self, wanted: Sequence[TrialRequest]) -> list[Point]:
        self.tries += wanted
        return [self.point(*each) for each in wanted]


def search(
    budget: Budget = BUDGET,
    trials: int = 60,
    left_s: Callable[[], float] = lambda: 1e9,
    space: Space = SPACE,
    **more: Any,
) -> tuple[Search, World]:
    world = World()
    networks = more.pop("networks", {None: BaseGraph(640, WORKS)})
    world.filter = CostFilter(space, networks, 100_000, TARGET)
    made = Search(
        space,
        CostFilter(space, networks, 100_000, TARGET),
        budget,
        more.pop("study", None) or OptunaSampler(space, more.pop("seed", 0)),
        world.run_trials,
        StopLimits(trials, left_s),
        **more,
    )
    made.run()
    return made, world


def test_the_budget_is_met_with_a_margin_in_a_few_trials() -> None:
    found, world = search()
    assert found.reason == "the budget is met with a margin"
    assert found.winner.rung == FULL
    assert not shortfalls(found.winner, BUDGET)
    assert len(found.points) <= 18
    assert len({each for each, rung in world.tries if rung == NOISE}) == len(found.points), "none is tried twice"


def test_a_budget_of_size_alone_ends_when_nothing_better_comes() -> None:
    budget = Budget(max_bytes=2_000_000)
    found, world = search(budget)
    assert "rounds found a better one" in found.reason
    every = [world.point(each) for each in SPACE.candidates()]
    assert found.winner.kept >= 0.99 * best(every, budget).kept


def test_only_the_two_best_of_a_round_are_tried_in_full_each_with_another_network() -> None:
    found, world = search(Budget(max_bytes=2_000_000), trials=ROUND_SIZE)
    assert [rung for _, rung in world.tries] == [NOISE] * 6 + [FULL] * 2
    assert found.reason == f"{ROUND_SIZE} candidates were tried"
    measured, _ = search(Budget(max_bytes=2_000_000), trials=ROUND_SIZE, left_s=lambda: 0.0)
    best_first = sorted(measured.points.values(), key=lambda point: rank(point, measured.budget))
    assert {each: found.estimates[each] for each, _ in world.tries[6:]} == {
        point.candidate: point.kept for point in best_first[:2]
    }
    assert len({each.untrained for each, rung in world.tries if rung == FULL}) == 2


def test_who_waits_is_tried_in_full_in_a_later_round_unless_its_cost_cannot_win() -> None:
    space = space_for(DetectorFacts(640), TARGET, 0)
    found, world = search(Budget(max_bytes=9_000_000), space=space)
    assert found.reason == "every candidate that may fit was tried"
    assert {each for each, rung in world.tries if rung == FULL} == set(found.points)
    smallest, _ = search(Budget(min_retention=0.9), space=space)
    tried = [point for point in smallest.points.values() if point.rung == FULL]
    assert smallest.winner.cost.bytes == min(point.cost.bytes for point in tried)
    waiting = [point for point in smallest.points.values() if point.rung == NOISE]
    assert any(point.cost.bytes > smallest.winner.cost.bytes for point in waiting)


def test_a_student_is_tried_in_full_or_not_at_all() -> None:
    facts = DetectorFacts(640, trains=True, students=("small.pt",))
    space = space_for(facts, TARGET, 30)
    thin = tuple(replace(work, weights=work.weights // 8, outputs=work.outputs // 8) for work in WORKS)
    networks = {None: BaseGraph(640, WORKS), "small.pt": BaseGraph(640, thin)}
    found, world = search(Budget(max_bytes=500_000), space=space, networks=networks)
    assert {rung for each, rung in world.tries if each.student} == {FULL}
    assert found.winner.candidate.student == "small.pt"
    assert found.winner.noise is None


def test_the_time_ends_it_even_in_the_middle_of_a_round() -> None:
    left = iter([0.0] * 99)
    found, world = search(left_s=lambda: next(left))
    assert found.reason == "the time is over"
    assert {rung for _, rung in world.tries} == {NOISE}
    assert found.winner.rung == NOISE
    assert 0 < found.winner.kept < 1


def test_what_cannot_be_met_tries_all_that_may_fit_and_tells_the_nearest() -> None:
    space = space_for(DetectorFacts(640, trains=True, resizes=True), TARGET, 0)
    found, _ = search(Budget(max_bytes=1_600_000, min_retention=0.999, min_fps=900), trials=9999, space=space)
    assert found.reason == "every candidate that may fit was tried"
    assert len(found.points) + len(found.refused()) == len(space.candidates())
    assert shortfalls(found.winner, found.budget)


def test_a_budget_that_nothing_can_fit_tries_nothing() -> None:
    found, world = search(Budget(max_bytes=1000))
    assert (found.winner, world.tries) == (None, [])
    assert search_result(found, SETUP, 0.0).winner is None


def test_the_same_answers_lead_to_the_same_search_and_another_seed_to_another(tmp_path: Path) -> None:
    tight = Budget(max_bytes=2_000_000, min_retention=0.97)
    (one, a), (two, b), (_, c) = (search(tight, 18), search(tight, 18), search(tight, 18, seed=5))
    assert a.tries == b.tries != c.tries
    assert search_result(one, SETUP, 0.0) == search_result(two, SETUP, 0.0)
    journal = tmp_path / "study.log"
    for _ in range(2):  # the second finds the first one's, as after a kill, and writes it anew
        _, d = search(tight, 18, study=OptunaSampler(SPACE, 0, journal))
        assert d.tries == a.tries
        assert journal.stat().st_size > 0
        journal.write_bytes(journal.read_bytes()[:-7])


def test_a_candidate_that_cannot_be_made_is_told_and_does_not_win() -> None:
    found, _ = search(Budget(max_bytes=3_000_000, min_fps=300), trials=200)
    failed = [each for each in found.points.values() if each.error]
    assert failed
    summary = search_result(found, SETUP, 0.0)
    assert all(row.kept is None and not row.front for row in summary.points if row.error)
    assert found.winner not in failed


def test_the_document_counts_what_was_saved() -> None:
    found, world = search()
    summary = search_result(found, SETUP, 1.5)
    assert summary.tried == len(found.points)
    assert summary.refused == len(found.refused()) > 0
    assert summary.thorough == sum(rung == FULL for _, rung in world.tries)
    looked_at = [*found.points, *found.refused()]
    assert summary.trainings + summary.trainings_saved == sum(each.trains for each in looked_at)
    assert summary.winner.text == found.winner.candidate.text()
    assert sum(row.front for row in summary.points) >= 1
    assert {part.choice for part in summary.parts} <= {"image_size", "ratio", "bits"}
    assert len(summary.next) == 3
    assert not {row.text for row in summary.next} & {row.text for row in summary.points}
