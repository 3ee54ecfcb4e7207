"""The search loop: propose candidates that may fit, measure their noise, train the best, and repeat until it stops.

Pure except for its parameters: a source of candidates, a function that tries them, and a clock. Their answers alone
determine its course, independent of the number of workers and of restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Protocol

from edgekd.builds.search.accuracy_model import AccuracyModel
from edgekd.builds.search.cost_filter import CostFilter
from edgekd.builds.search.pareto import FULL, NOISE, Point, best, has_margin, rank, shortfalls
from edgekd.builds.search.space import Candidate, Space
from edgekd.hardware.budget import Budget

ROUND_SIZE = 6
"""Default number of candidates per round; independent of the number of workers."""
SAMPLED_EVERY = 3
"""One candidate in so many is drawn by the sampler, in case the models of accuracy and cost are wrong."""
ETA = 3
"""Each round tries the best ceil(batch / ETA) candidates in full."""
MAX_DRAWS = 4
"""Draws of the sampler for a new candidate that may fit, before the likeliest one is taken."""
PATIENCE = 4
"""Rounds without a better winner after which a search without a limit on accuracy ends."""
NEXT_COUNT = 3
"""Number of candidates that are reported as the next ones to try."""

TrialRequest = tuple[Candidate, int]
"""A candidate, and the rung to try it on."""


class CandidateSource(Protocol):
    """Source of candidates that learns from those that were tried in full, such as Optuna."""

    def draw(self) -> Candidate: ...

    def learn(self, candidate: Candidate, values: Sequence[float], missed: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class StopLimits:
    """Limits of a search. trials: maximum number of candidates; left_s: returns the seconds that are left."""

    trials: int
    left_s: Callable[[], float]


@dataclass
class Search:
    """A search that runs until `reason` is set.

    study: draws candidates; run_trials: tries candidates on their rungs; note: called after every round; batch: new
    candidates of a round; points: the most thorough trial of each candidate; estimates: for candidates tried in full,
    the share of the accuracy that was estimated before; reason: why it stopped.
    """

    space: Space
    filter: CostFilter
    budget: Budget
    study: CandidateSource
    run_trials: Callable[[Sequence[TrialRequest]], list[Point]]
    ends: StopLimits
    note: Callable[[Search], None] = lambda search: None
    batch: int = ROUND_SIZE
    points: dict[Candidate, Point] = field(default_factory=dict)
    estimates: dict[Candidate, float] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        self.accuracy = AccuracyModel(self.space)
        self._all = self.space.candidates()
        self._still = 0
        self._last: Point | None = None

    @property
    def winner(self) -> Point | None:
        """The best candidate so far; None if all have failed."""
        return best(list(self.points.values()), self.budget)

    def run(self) -> None:
        """Search until there is a reason to stop."""
        while not self.reason:
            self.step()

    def step(self) -> None:
        """Run one round: propose, measure, try the best in full, and decide whether to stop."""
        new = self._proposed()
        self._measure(new)
        finalists = self._finalists()
        if not new and not finalists:
            self.reason = "every candidate that may fit was tried"
            return
        if self.ends.left_s() > 0:
            self._try_in_full(finalists)
        self._judge()
        self.note(self)

    def likeliest(self, count: int | None = None) -> list[Candidate]:
        """Return untried candidates that may fit, by expected rank, the best first; count: at most so many."""
        free = [each for each in self._all if each not in self.points and self._fits(each)]
        expected = (Point(each, NOISE, 0.0, self.filter.lower_bound(each), 0.0) for each in free)
        return [point.candidate for point in sorted(expected, key=self._rank)[:count]]

    def refused(self) -> dict[Candidate, str]:
        """Return the untried candidates that cannot fit, and why."""
        free = (each for each in self._all if each not in self.points)
        return {each: why for each in free if (why := self.filter.refusal(each, self.budget)) is not None}

    def _fits(self, candidate: Candidate) -> bool:
        """Return whether a candidate may keep the budget."""
        return self.filter.refusal(candidate, self.budget) is None

    def _estimated(self, point: Point) -> Point:
        """Return a point with its estimated accuracy, unless it was tried in full."""
        return point if point.rung == FULL else replace(point, kept=self.accuracy.kept(point.candidate))

    def _rank(self, point: Point) -> tuple[float, ...]:
        """Return the sort key of a candidate, estimated where it was not tried in full; fewer epochs break ties."""
        return (*rank(self._estimated(point), self.budget), point.candidate.epochs)

    def _proposed(self) -> list[Candidate]:
        """Return new candidates that may fit: the likeliest ones, and some drawn by the sampler between them."""
        likeliest = self.likeliest()
        batch: list[Candidate] = []
        room = min(self.batch, self.ends.trials - len(self.points))
        while len(batch) < room:
            drawn = self._drawn(batch) if len(batch) % SAMPLED_EVERY == SAMPLED_EVERY - 1 else None
            candidate = drawn or self._other(likeliest, batch)
            if candidate is None:
                break
            batch.append(candidate)
        return batch

    def _other(self, likeliest: list[Candidate], batch: list[Candidate]) -> Candidate | None:
        """Return the likeliest candidate that is not in a batch, preferably of a shape that is not, to learn more."""
        free = [each for each in likeliest if each not in batch]
        shapes = {each.shape for each in batch}
        return next((each for each in free if each.shape not in shapes), free[0] if free else None)

    def _drawn(self, batch: list[Candidate]) -> Candidate | None:
        """Return a new candidate of the sampler that may fit; None after MAX_DRAWS draws without one."""
        for _ in range(MAX_DRAWS):
            candidate = self.study.draw()
            if candidate not in batch and candidate not in self.points and self._fits(candidate):
                return candidate
        return None

    def _measure(self, new: Sequence[Candidate]) -> None:
        """Measure costs and noise of untrained networks; a student has only estimates before its training."""
        students = [each for each in new if each.student is not None]
        self.points |= {each: Point(each, NOISE, 0.0, self.filter.cost(each), 0.0) for each in students}
        self._learn(self.run_trials([(each, NOISE) for each in new if each.student is None]))

    def _finalists(self) -> list[Candidate]:
        """Return the best candidates that were not tried in full, each with a different untrained network."""
        waiting = [each for each in self.points.values() if each.rung == NOISE and not each.error]
        found: dict[Candidate, Candidate] = {}
        for point in sorted(filter(self._may_win, waiting), key=self._rank):
            found.setdefault(point.candidate.untrained, point.candidate)
        return list(found.values())[: ceil(self.batch / ETA)]

    def _may_win(self, point: Point) -> bool:
        """Return whether a candidate with unlimited accuracy would win."""
        winner = self.winner
        if winner is None or winner.rung != FULL:
            return True
        return rank(replace(point, kept=inf), self.budget) < rank(winner, self.budget)

    def _try_in_full(self, finalists: Sequence[Candidate]) -> None:
        """Train and score candidates, and store the estimates that they had before."""
        before = {each: self.points[each] for each in finalists}
        tried = self.run_trials([(each, FULL) for each in finalists])
        for point in tried:
            if point.error is None:
                self.estimates[point.candidate] = before[point.candidate].kept
            missed = {"error": 1.0} if point.error else shortfalls(point, self.budget)
            self.study.learn(point.candidate, (point.kept, point.cost.bytes, point.cost.latency_ms or 0.0), missed)
        self._learn([replace(point, noise=before[point.candidate].noise) for point in tried])

    def _learn(self, tried: Sequence[Point]) -> None:
        """Store trials, fit the models to them, and update the estimates."""
        self.points |= {point.candidate: point for point in tried}
        for point in tried:
            if point.error is None:
                self.filter.learn(point.candidate, point.cost)
        known = [point for point in self.points.values() if point.error is None]
        noise = {point.candidate.untrained: point.noise for point in known if point.noise is not None}
        self.accuracy.fit(noise, [(point.candidate, point.kept) for point in known if point.rung == FULL])
        self.points |= {point.candidate: self._estimated(point) for point in known}

    def _judge(self) -> None:
        """Set `reason` if the search is to stop."""
        winner = self.winner
        self._still = self._still + 1 if winner == self._last else 0
        self._last = winner
        if winner is not None and winner.rung == FULL and has_margin(winner, self.budget):
            self.reason = "the budget is met with a margin"
        elif self.ends.left_s() <= 0:
            self.reason = "the time is over"
        elif len(self.points) >= self.ends.trials:
            self.reason = f"{self.ends.trials} candidates were tried"
        elif self.budget.min_retention is None and self._still >= PATIENCE:
            self.reason = f"none of the last {PATIENCE} rounds found a better one"
