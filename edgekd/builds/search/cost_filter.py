"""Estimated costs of a candidate: bytes by arithmetic, time and energy by the predictor. Pure.

A pruned network is the given one with each layer's channels fewer in the same proportion, and a smaller input has fewer
positions. Candidates that were tried say how far such reckoning is off, for the next ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from statistics import median

from edgekd.builds.search.space import FLOAT, INT8, Candidate, Space
from edgekd.hardware.budget import Budget
from edgekd.hardware.predict.latency import Predictor, narrowest
from edgekd.hardware.predict.work import Work
from edgekd.hardware.target import Target

MAX_OVERESTIMATE = {
    "time, whole": (1.005, 1.01, 1.03),
    "time, pruned": (1.005, 1.02, 1.1),
    "bytes, whole": (1.02, 1.1, 1.1),
    "bytes, pruned": (1.02, 1.3, 2.0),
}
"""How far estimates are too high at most: where the same network was tried, one pruned as much, and none of these.

What pruning leaves is hard to tell: with half of the multiply-adds a quarter of the weights may go, or three quarters.
"""
PACKING_RATIO = {FLOAT: 0.93, INT8: 0.9}
"""Of a weight's bits the share that is left when codes are packed without loss; plans are made for packed bytes."""


@dataclass(frozen=True)
class BaseGraph:
    """A float graph that candidates begin with. side: of its input in pixels; works: what it does."""

    side: int
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Cost:
    """Bytes of a candidate's bundle; milliseconds and millijoules of a frame on the target.

    None where the target cannot be predicted.
    """

    bytes: float
    latency_ms: float | None
    energy_mj: float | None


def scaled_layer(work: Work, share: float, area: float) -> Work:
    """A layer with this share of its weights left, for an input with this share of the positions."""
    width = sqrt(share)
    if work.kind == "depthwise":
        groups = max(round(work.groups * width), 1)
        channels, weights = {"inputs": groups, "outputs": groups, "groups": groups}, work.weights * width
    else:
        channels = {name: round(getattr(work, name) * width) for name in ("inputs", "outputs")}
        weights = work.weights * share
    kept = {name: max(value, min(getattr(work, name), 1)) for name, value in channels.items()}
    moved = {name: round(getattr(work, name) * area * width) for name in ("read", "written")}
    return replace(work, **kept, **moved, weights=round(weights), positions=round(work.positions * area))


class CostFilter:
    """Costs of candidates, and which of them a budget leaves.

    networks: of the detector, under None, and of each student; beside: bytes of a bundle beside its graph.
    """

    def __init__(self, space: Space, networks: Mapping[str | None, BaseGraph], beside: int, target: Target) -> None:
        self.space = space
        self._networks = networks
        self._beside = beside
        self._predictors = {quantized: _predictor(target, quantized) for quantized in (False, True)}
        self._known: dict[Candidate, Cost] = {}
        self._seen: dict[str, dict[tuple[float, ...], list[float]]] = {"bytes": {}, "latency_ms": {}, "energy_mj": {}}

    def cost(self, candidate: Candidate) -> Cost:
        """Return the estimated cost of a candidate, corrected by those that were tried."""
        found = self._estimated(candidate)
        size = self._corrected("bytes", found.bytes, candidate) or found.bytes
        latency, energy = (
            self._corrected(each, getattr(found, each), candidate) for each in ("latency_ms", "energy_mj")
        )
        return Cost(size, latency, energy)

    def lower_bound(self, candidate: Candidate) -> Cost:
        """Return the lowest cost of a candidate that the error of its estimates allows."""
        cost = self.cost(candidate)
        size = cost.bytes / self._slack("bytes", candidate)
        latency, energy = (
            (value := getattr(cost, name)) and value / self._slack(name, candidate)
            for name in ("latency_ms", "energy_mj")
        )
        return Cost(size, latency, energy)

    def learn(self, candidate: Candidate, found: Cost) -> None:
        """Take note of what a candidate really costs."""
        reckoned = self._estimated(candidate)
        for name, known in self._seen.items():
            thought, real = getattr(reckoned, name), getattr(found, name)
            if thought and real:
                for kind in _kinds(name, candidate):
                    known.setdefault(kind, []).append(log(real / thought))

    def refusal(self, candidate: Candidate, budget: Budget) -> str | None:
        """Why a candidate cannot keep a budget, by these estimates; None where it may."""
        over = [(name, excess) for name, excess in excesses(self.lower_bound(candidate), budget).items() if excess > 1]
        reasons = (f"{_NAMES[name]} would be at least {excess:.2f} times what is allowed" for name, excess in over)
        return "; ".join(reasons) or None

    def _estimated(self, candidate: Candidate) -> Cost:
        network = candidate.untrained
        if network not in self._known:
            self._known[network] = self._estimate(network)
        return self._known[network]

    def _estimate(self, candidate: Candidate) -> Cost:
        network = self._networks[candidate.student]
        area = (candidate.image_size / network.side) ** 2
        works = [scaled_layer(work, 1 - candidate.ratio, area) for work in network.works]
        weights = sum(work.weights for work in works)
        size = self._beside + weights * candidate.bits / 8 * PACKING_RATIO.get(candidate.bits, 1.0)
        predictor = self._predictors[candidate.bits != FLOAT]
        found = predictor.predict(works) if predictor else None
        return Cost(size, found.latency_ms if found else None, found.energy_mj if found else None)

    def _corrected(self, name: str, value: float | None, candidate: Candidate) -> float | None:
        factor = self._factor(name, candidate)
        return value * factor if value and factor is not None else value

    def _slack(self, name: str, candidate: Candidate) -> float:
        """How far too high an estimate may be."""
        kinds = _kinds(name, candidate)
        what = "bytes" if name == "bytes" else "time"
        exact, like, none = MAX_OVERESTIMATE[f"{what}, {'pruned' if candidate.ratio else 'whole'}"]
        if kinds[0] in self._seen[name]:
            return exact
        return like if any(kind in self._seen[name] for kind in kinds) else none

    def _factor(self, name: str, candidate: Candidate) -> float | None:
        """How much more candidates like this one cost than was reckoned; None where none was tried."""
        known = (self._seen[name].get(kind) for kind in _kinds(name, candidate))
        found = next(filter(None, known), None)
        return exp(median(found)) if found else None


def _kinds(name: str, candidate: Candidate) -> tuple[tuple[float, ...], ...]:
    """Candidates about which an estimate is off alike, those most alike first."""
    if name != "bytes":
        executed = float(candidate.bits == FLOAT)
        return (candidate.ratio, executed, candidate.image_size), (candidate.ratio, executed)
    return (
        (candidate.ratio, candidate.image_size, candidate.bits),
        (candidate.ratio, candidate.bits),
        (candidate.ratio,),
    )


def excesses(cost: Cost, budget: Budget) -> dict[str, float]:
    """By how many times each limit on size, time and energy is used up; those that nobody knows are left out."""
    found = {}
    if budget.max_bytes is not None:
        found["max_bytes"] = cost.bytes / budget.max_bytes
    if budget.min_fps and cost.latency_ms is not None:
        found["min_fps"] = cost.latency_ms * budget.min_fps / 1e3
    if budget.max_energy_mj and cost.energy_mj is not None:
        found["max_energy_mj"] = cost.energy_mj / budget.max_energy_mj
    return found


def predicted(works: Sequence[Work], target: Target, quantized: bool) -> tuple[float | None, float | None]:
    """Milliseconds and millijoules of a frame; None where the target cannot be predicted."""
    if (predictor := _predictor(target, quantized)) is None:
        return None, None
    found = predictor.predict(works)
    return found.latency_ms, found.energy_mj


def _predictor(target: Target, quantized: bool) -> Predictor | None:
    """In INT8 for what is quantized, else in the narrowest float that the target has figures for."""
    return narrowest(target, but=None if quantized else "int8")


_NAMES = {"max_bytes": "size", "min_fps": "time a frame", "max_energy_mj": "energy a frame"}
