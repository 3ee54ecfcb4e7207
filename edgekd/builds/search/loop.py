"""The loop: propose, refuse what cannot fit, try a little, try the best of those more, learn; until it has to stop.

Pure but for what is handed in: a study that draws, a function that tries candidates, and a clock. What it does follows
from their answers alone, however many workers there are and however often it was begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from edgekd.builds.search.accuracy_model import AccuracyModel
from edgekd.builds.search.cost_filter import CostFilter
from edgekd.builds.search.pareto import Point, best, has_margin, rank, shortfalls
from edgekd.builds.search.space import Candidate, Space
from edgekd.hardware.budget import Budget

ROUND_SIZE = 6
"""Default number of candidates per round; independent of the number of workers."""
SAMPLED_EVERY = 3
"""One of so many is drawn by the study, in case what was learnt of choices is wrong."""
ETA = 3
"""One of so many is tried more thoroughly."""
MAX_PROPOSALS = 4
"""Proposals of the study that are tried for a new candidate that may fit, before the likeliest one is taken."""
PATIENCE = 4
"""Rounds without a better winner after which a search without a least accuracy ends."""
NEXT_COUNT = 3
"""Candidates that are named as the next ones."""

TrialRequest = tuple[Candidate, int]
"""A candidate, and the rung to try it on."""


class CandidateSource(Protocol):
    """Source of candidates, such as Optuna."""

    def ask(self) -> tuple[int, Candidate]: ...

    def put(self, candidate: Candidate) -> int: ...

    def tell(self, number: int, values: Sequence[float], lacking: dict[str, float]) -> None: ...

    def drop(self, number: int) -> None: ...


@dataclass(frozen=True)
class StopLimits:
    """When to stop, beside when the budget is met with a margin. trials: candidates; left_s: seconds that are left."""

    trials: int
    left_s: Callable[[], float]


@dataclass
class Search:
    """A search that goes on until `reason` says why it stopped.

    points: the most thorough try of each candidate; note: called after every round; batch: candidates of one.
    """

    space: Space
    filter: CostFilter
    budget: Budget
    study: CandidateSource
    run_trials: Callable[[Sequence[TrialRequest]], list[Point]]
    rungs: int
    ends: StopLimits
    note: Callable[[Search], None] = lambda search: None
    batch: int = ROUND_SIZE
    points: dict[Candidate, Point] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        self.losses = AccuracyModel(self.space)
        self._all = self.space.candidates()
        self._still = 0
        self._last: Point | None = None

    @property
    def winner(self) -> Point | None:
        """The best so far."""
        return best(list(self.points.values()), self.budget)

    def run(self) -> None:
        """Search until there is a reason to stop, and store it in `reason`."""
        while not self.reason:
            self.step()

    def step(self) -> None:
        """One round: propose, try, learn, and judge whether to go on."""
        batch = self._batch()
        if not batch:
            self.reason = "every candidate that may fit was tried"
            return
        self._run_rungs(batch)
        self._judge()
        self.note(self)

    def likeliest(self, count: int | None = None) -> list[Candidate]:
        """Candidates that may fit and were not tried, those first that should win."""
        free = [each for each in self._all if each not in self.points and self._fits(each)]
        return sorted(free, key=self._expected_rank)[:count]

    def _expected_rank(self, candidate: Candidate) -> tuple[float, ...]:
        """The rank that a candidate is thought to have."""
        point = Point(candidate, 0, self.losses.kept(candidate), self.filter.lower_bound(candidate), 0.0)
        # Among equals those without training: they take minutes.
        return (*rank(point, self.budget), candidate.epochs)

    def refused(self) -> dict[Candidate, str]:
        """Candidates that were not tried, because they cannot fit, and why."""
        free = (each for each in self._all if each not in self.points)
        return {each: why for each in free if (why := self.filter.refusal(each, self.budget)) is not None}

    def _fits(self, candidate: Candidate) -> bool:
        """Return whether a candidate may keep the budget."""
        return self.filter.refusal(candidate, self.budget) is None

    def _batch(self) -> dict[Candidate, int]:
        """New candidates that may fit, with their numbers: the likeliest ones, and between them drawn ones."""
        batch: dict[Candidate, int] = {}
        likeliest = self.likeliest()
        room = min(self.batch, self.ends.trials - len(self.points))
        while len(batch) < room:
            drawn = self._drawn(batch) if len(batch) % SAMPLED_EVERY == SAMPLED_EVERY - 1 else None
            if drawn is None:
                found = self._other(likeliest, batch)
                if found is None:
                    break
                drawn = found, self.study.put(found)
            batch[drawn[0]] = drawn[1]
        return batch

    def _other(self, likeliest: list[Candidate], batch: dict[Candidate, int]) -> Candidate | None:
        """The likeliest candidate beside a batch, of another kind if there is one: of that more is to be learnt."""
        free = [each for each in likeliest if each not in batch]
        kinds = {self._kind(each) for each in batch}
        return next((each for each in free if self._kind(each) not in kinds), free[0] if free else None)

    def _kind(self, candidate: Candidate) -> tuple[str | None, float, int | None]:
        """Return what distinguishes a candidate's network: student, ratio, and image size once that ratio was tried."""
        known = any(each.ratio == candidate.ratio for each in self.points)
        return candidate.student, candidate.ratio, candidate.image_size if known else None

    def _drawn(self, batch: dict[Candidate, int]) -> tuple[Candidate, int] | None:
        """A candidate of the study's that is new and may fit; None where it has none after a while."""
        for _ in range(MAX_PROPOSALS):
            number, candidate = self.study.ask()
            if candidate not in batch and candidate not in self.points and self._fits(candidate):
                return candidate, number
            self.study.drop(number)
        return None

    def _run_rungs(self, batch: dict[Candidate, int]) -> None:
        """Try all a little, the best of them more, and the best of those in full."""
        chosen = list(batch)
        for rung in range(self.rungs):
            tried = self.run_trials([(candidate, rung) for candidate in chosen])
            for point in tried:
                self.points[point.candidate] = point
                if point.error is None:
                    self.filter.learn(point.candidate, point.cost)
            whole = sorted((p for p in tried if p.error is None), key=lambda point: rank(point, self.budget))
            chosen = [point.candidate for point in whole[: ceil(len(tried) / ETA)]]
            if not chosen or self.ends.left_s() <= 0:
                break
        for candidate, number in batch.items():
            self._tell(number, self.points[candidate])
        self.losses.fit([(p.candidate, p.kept) for p in self.points.values() if p.error is None])

    def _tell(self, number: int, point: Point) -> None:
        values = (point.kept, point.cost.bytes, point.cost.latency_ms or 0.0)
        self.study.tell(number, values, {"error": 1.0} if point.error else shortfalls(point, self.budget))

    def _judge(self) -> None:
        """Find a reason to stop."""
        winner = self.winner
        self._still = self._still + 1 if winner == self._last else 0
        self._last = winner
        thorough = winner is not None and winner.rung == self.rungs - 1
        if winner is not None and thorough and has_margin(winner, self.budget):
            self.reason = "the budget is met with a margin"
        elif self.ends.left_s() <= 0:
            self.reason = "the time is over"
        elif len(self.points) >= self.ends.trials:
            self.reason = f"{self.ends.trials} candidates were tried"
        elif self.budget.min_retention is None and self._still >= PATIENCE:
            self.reason = f"none of the last {PATIENCE} rounds found a better one"
