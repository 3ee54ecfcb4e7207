"""Estimated costs of a candidate: bytes by arithmetic, time and energy by the predictor. Pure.

A pruned network is modelled as the given one with all channel counts scaled by one factor, and a smaller input by fewer
positions. Measured costs of tried candidates correct the estimates for similar ones.
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
"""Largest factor by which estimates are too high: if the same network was tried, a similar one, or none of these.

Bytes after pruning are uncertain: with half of the multiply-adds, a quarter or three quarters of the weights may go.
"""
PACKING_RATIO = {FLOAT: 0.93, INT8: 0.9}
"""Packed size by size of the weights, for lossless packing; 1 for other bits, because plans count packed bytes."""


@dataclass(frozen=True)
class BaseGraph:
    """A float graph that candidates start from. side: of its input in pixels; works: its kernels."""

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
    """Return a layer with `share` of its weights, for an input with `area` times its positions."""
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
    """Estimated costs of candidates, and whether they may keep a budget.

    networks: the detector, under None, and each student by name; beside: bytes of a bundle besides its graph.
    """

    def __init__(self, space: Space, networks: Mapping[str | None, BaseGraph], beside: int, target: Target) -> None:
        self.space = space
        self._networks = networks
        self._beside = beside
        self._predictors = {quantized: _predictor(target, quantized) for quantized in (False, True)}
        self._known: dict[Candidate, Cost] = {}
        self._seen: dict[str, dict[tuple[float, ...], list[float]]] = {"bytes": {}, "latency_ms": {}, "energy_mj": {}}

    def cost(self, candidate: Candidate) -> Cost:
        """Return the estimated cost of a candidate, corrected by the measured cost of similar ones."""
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
        """Record the measured cost of a candidate."""
        reckoned = self._estimated(candidate)
        for name, known in self._seen.items():
            thought, real = getattr(reckoned, name), getattr(found, name)
            if thought and real:
                for kind in _kinds(name, candidate):
                    known.setdefault(kind, []).append(log(real / thought))

    def refusal(self, candidate: Candidate, budget: Budget) -> str | None:
        """Return why a candidate cannot keep a budget, according to the estimates; None if it may."""
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
        """Return the largest factor by which an estimate may be too high."""
        kinds = _kinds(name, candidate)
        what = "bytes" if name == "bytes" else "time"
        exact, like, none = MAX_OVERESTIMATE[f"{what}, {'pruned' if candidate.ratio else 'whole'}"]
        if kinds[0] in self._seen[name]:
            return exact
        return like if any(kind in self._seen[name] for kind in kinds) else none

    def _factor(self, name: str, candidate: Candidate) -> float | None:
        """Return the median ratio of measured to estimated cost of the most similar candidates; None without any."""
        known = (self._seen[name].get(kind) for kind in _kinds(name, candidate))
        found = next(filter(None, known), None)
        return exp(median(found)) if found else None


def _kinds(name: str, candidate: Candidate) -> tuple[tuple[float, ...], ...]:
    """Return the groups of candidates with similar errors of the estimate to which one belongs, the narrowest first."""
    if name != "bytes":
        executed = float(candidate.bits == FLOAT)
        return (candidate.ratio, executed, candidate.image_size), (candidate.ratio, executed)
    return (
        (candidate.ratio, candidate.image_size, candidate.bits),
        (candidate.ratio, candidate.bits),
        (candidate.ratio,),
    )


def excesses(cost: Cost, budget: Budget) -> dict[str, float]:
    """Return cost by limit for each limit on size, time and energy, without unknown costs; above 1 it is missed."""
    found = {}
    if budget.max_bytes is not None:
        found["max_bytes"] = cost.bytes / budget.max_bytes
    if budget.min_fps and cost.latency_ms is not None:
        found["min_fps"] = cost.latency_ms * budget.min_fps / 1e3
    if budget.max_energy_mj and cost.energy_mj is not None:
        found["max_energy_mj"] = cost.energy_mj / budget.max_energy_mj
    return found


def predicted(works: Sequence[Work], target: Target, quantized: bool) -> tuple[float | None, float | None]:
    """Return predicted milliseconds and millijoules of a frame; None where the target cannot be predicted."""
    if (predictor := _predictor(target, quantized)) is None:
        return None, None
    found = predictor.predict(works)
    return found.latency_ms, found.energy_mj


def _predictor(target: Target, quantized: bool) -> Predictor | None:
    """Return the predictor of a target: INT8 if quantized, else its narrowest float format with data; None without."""
    return narrowest(target, but=None if quantized else "int8")


_NAMES = {"max_bytes": "size", "min_fps": "time a frame", "max_energy_mj": "energy a frame"}
