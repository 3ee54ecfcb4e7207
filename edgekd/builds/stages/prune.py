"""The stages that prune channels iteratively until the MAC, size or latency goal is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgekd.builds.latency import Latency
from edgekd.builds.recipe import Prune
from edgekd.builds.speedup import require_faster
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages import train as train_module
from edgekd.builds.stages.base import GRAPH, Stages
from edgekd.core.errors import CompressError, SpecError
from edgekd.data.types import Dataset
from edgekd.detectors.family import offering, require_family
from edgekd.detectors.results import SCANNED_SHARES

Widths = Mapping[str, tuple[int, int]]
"""Channels of units, by name, before and after."""
MAX_TRIES = 6
"""Most prunings to reach a frame rate, each with fewer channels than the one before."""
MARGIN = 0.97
"""Factor of the share that a further try keeps, beside the one that follows from its time."""


@dataclass(frozen=True)
class PruneResult:
    """A pruned detector.

    checkpoint: its file; graph: its float graph; parameters, multiply_adds, latency_ms: before and after; widths:
    channels of each unit before and after; importance: the share of each unit's importance that stays.
    """

    checkpoint: Path
    graph: Stage
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    latency_ms: tuple[float, float]
    widths: Mapping[str, tuple[int, int]]
    importance: Mapping[str, float]

    @property
    def left(self) -> float:
        """The share of the multiply-adds that is left."""
        before, after = self.multiply_adds
        return after / before


@dataclass(frozen=True)
class ChannelPruner:
    """Prunes a detector. before: its float graph; export: exports a checkpoint to its float graph.

    quantized: its quantized graph, to prune what that one needs least. train_on: the GPUs for training between rounds,
    such as `0,1`; None for one if there is any.
    """

    stages: Stages
    dataset: Dataset
    checkpoint: Path
    before: Stage
    export: Callable[[Path], Stage]
    latency: Latency
    trust: bool = False
    quantized: Stage | None = None
    train_on: str | None = None

    def run(self, step: Prune) -> PruneResult:
        """Prune as the step says. Raises CompressError where the goal cannot be met or nothing gets faster."""
        found = self._prune(step) if step.min_fps is None else self._until_fast(step, 1000 / step.min_fps)
        widths = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in found.widths.items() if new < old)
        if not widths:
            raise CompressError(
                "prune: nothing to do, the checkpoint is small enough as it is",
                expected=f"one of more than {step.max_size} in half precision",
                fix="ask for less, or leave pruning out",
            )
        fix = "prune more, or keep widths at a larger multiple"
        require_faster("prune: narrower layers", found, self.latency, widths, fix)
        return found

    def _until_fast(self, step: Prune, most_ms: float) -> PruneResult:
        """Prune more and more until a frame takes `most_ms` at most."""
        now = self.latency.of_both(self.before, self.before)[1]
        left = min(1 - step.share, most_ms / now)
        if left >= 1 and step.max_size is None:
            raise CompressError(
                f"prune: nothing to do, {1000 / now:.1f} FPS ({self.latency.basis}, {self.latency.where})",
                expected=f"a detector slower than {1000 / most_ms:g} FPS",
                fix="ask for more, or leave pruning out",
            )
        for _ in range(MAX_TRIES):
            found = self._prune(replace(step, ratio=1 - left if left < 1 else None))
            if found.latency_ms[1] <= most_ms:
                return found
            left = (left if left < 1 else found.left) * MARGIN * most_ms / found.latency_ms[1]
        raise CompressError(
            f"prune: {1000 / most_ms:g} FPS not reached",
            expected=f"{most_ms:.2f} ms a frame on {self.latency.where}",
            found=f"{found.latency_ms[1]:.2f} ms ({self.latency.basis}), {found.left:.0%} of the multiply-adds left",
            fix="raise most, take a smaller model or a smaller image, or ask for less",
        )

    def _prune(self, step: Prune) -> PruneResult:
        unsupported = require_family(self.checkpoint).prune_quantized is None
        if self.quantized and (step.rounds > 1 or unsupported):
            raise SpecError(
                f"prune: what is quantized is pruned in one round, and is a detector by {offering('prune_quantized')}",
                found=f"{step.rounds} rounds of {self.checkpoint.name}",
                fix="leave out rounds, or prune before it is quantized",
            )
        rounds = list(self._rounds(step))
        first, last = rounds[0], rounds[-1]
        graph = self.export(last.path / checkpoint_name(self.checkpoint))
        shares = [stage.results["importance"] for stage in rounds]
        return PruneResult(
            checkpoint=last.path / checkpoint_name(self.checkpoint),
            graph=graph,
            parameters=(first.results["parameters"][0], last.results["parameters"][1]),
            multiply_adds=(first.results["multiply_adds"][0], last.results["multiply_adds"][1]),
            latency_ms=self.latency.of_both(self.before, graph),
            widths={
                name: (width, last.results["widths"][name][1]) for name, (width, _) in first.results["widths"].items()
            },
            importance={name: min(each[name] for each in shares) for name in shares[0]},
        )

    def _rounds(self, step: Prune) -> Iterator[Stage]:
        """Prune the same share in each round; train between two rounds."""
        checkpoint = self.checkpoint
        widths: Widths = {}
        for left in range(step.rounds, 0, -1):
            stage = self._round(part_of(step, left, widths), checkpoint, left)
            yield stage
            widths = {name: (widths.get(name, (old,))[0], new) for name, (old, new) in stage.results["widths"].items()}
            checkpoint = stage.path / checkpoint_name(self.checkpoint)
            if step.recovery and left > 1:
                recovery = replace(step.recovery, student=str(checkpoint))
                known = (self.stages, recovery, self.checkpoint, self.dataset, self.trust, self.train_on)
                trained = train_module.distill(*known)
                checkpoint = trained.path / train_module.student_file(recovery)

    def _round(self, step: Prune, checkpoint: Path, left: int) -> Stage:
        """Prune one round. left: rounds left, this one included. Results: as of `Pruned`, and `bytes`."""
        teacher = None if checkpoint == self.checkpoint else self.checkpoint

        def work(folder: Path) -> Mapping[str, Any]:
            out = folder / checkpoint_name(self.checkpoint)
            settings = (out, self.dataset.source, step, self.trust, self.stages.progress, self.latency.cost)
            family = require_family(checkpoint)
            if self.quantized:
                prune = family.capability("prune_quantized")
                done = prune(checkpoint, *settings, teacher, left, self.quantized.path / GRAPH)
            else:
                done = family.capability("prune")(checkpoint, *settings, teacher, left)
            return {
                "bytes": out.stat().st_size,
                "parameters": list(done.parameters),
                "multiply_adds": list(done.multiply_adds),
                "widths": {name: list(pair) for name, pair in done.widths.items()},
                "importance": {name: float(f"{share:.6g}") for name, share in done.importance.items()},
            }

        seen = step.importance != "magnitude"
        counted = {name: value for name, value in asdict(step).items() if name not in ("min_fps", "recovery", "rounds")}
        inputs = {
            "model": self.stages.sha256(checkpoint),
            "teacher": self.stages.sha256(teacher) if teacher else None,
            "train": self.stages.fingerprint(self.dataset.split("train")) if seen else None,
            "step": counted,
            "left": left if step.max_size else None,
            "latency": self.latency.identity,
            "quantized": self.quantized.sha256 if self.quantized else None,
        }
        return self.stages.run("prune", inputs, work, require_family(checkpoint).libraries)


def sensitivity(
    stages: Stages, dataset: Dataset, checkpoint: Path, step: Prune, trust: bool = False
) -> Mapping[str, Any]:
    """Measure the growth of the loss on labels when a single unit loses channels: `shares`, `loss`, `units` by name."""

    def work(folder: Path) -> Mapping[str, Any]:
        scan = require_family(checkpoint).capability("scan")
        found = scan(checkpoint, dataset.source, step, trust, stages.progress)
        units = {name: [float(f"{loss:.6g}") for loss in losses] for name, losses in found.units.items()}
        return {"shares": list(SCANNED_SHARES), "loss": float(f"{found.loss:.6g}"), "units": units}

    chosen = {name: getattr(step, name) for name in ("importance", "images", "batch", "image_size", "seed")}
    train = stages.fingerprint(dataset.split("train"))
    inputs = {"model": stages.sha256(checkpoint), "train": train, "step": chosen}
    results = stages.run("sensitivity", inputs, work, require_family(checkpoint).libraries).results
    return {name: results[name] for name in ("shares", "loss", "units")}


def checkpoint_name(detector: Path) -> str:
    """Return the name of the file of a pruned detector."""
    return f"pruned{require_family(detector).suffix}"


def part_of(step: Prune, left: int, widths: Widths) -> Prune:
    """Return the step of one round. left: rounds left, this one included; widths: at first, and now.

    The same share of the multiply-adds goes in each. Caps are of what a unit had at first: in multiples of channels
    that is rounded once, and not in every round, where a small share would be none.
    """
    ratio = _gone(step.share, 1 / step.rounds) or None
    done = 1 - (left - 1) / step.rounds
    most, caps = _gone(step.most, done), {pattern: _gone(cap, done) for pattern, cap in step.caps.items()}
    whole = replace(step, ratio=ratio, most=most, caps=caps)
    if not widths:
        return whole
    caps = {name: max(0.0, 1 - (1 - whole.cap(name)) * first / now) for name, (first, now) in widths.items()}
    return replace(whole, most=max(caps.values(), default=most) or most, caps=caps)


def _gone(share: float, part: float) -> float:
    """Return the share that is gone after a part of several rounds that each remove the same share."""
    return float(1 - (1 - share) ** part)
