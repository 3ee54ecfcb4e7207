"""Stages `prune` and `sensitivity`: remove channels iteratively until the MAC, size or latency goal is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages import train as train_module
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.builds.stages.derived import DerivedDetector, require_faster
from edgekd.builds.stages.latency import LatencySource
from edgekd.compress.steps import Prune
from edgekd.core.errors import CompressError, SpecError
from edgekd.data.types import Dataset
from edgekd.detectors.family import offering, require_family
from edgekd.detectors.results import SCANNED_SHARES
from edgekd.hardware.target import Target

Widths = Mapping[str, tuple[int, int]]
"""Channels of each unit by its name, before and after."""
MAX_TRIES = 6
"""Maximum number of attempts to reach a latency."""
MARGIN = 0.97
"""Further factor on the multiply-adds that the next attempt keeps, because latency falls less than they do."""


@dataclass(frozen=True)
class PruneResult(StageResult):
    """One round of pruning; the checkpoint is in the file `checkpoint_name(detector)`.

    Args:
        bytes: Length of the checkpoint.
        parameters: Numbers of parameters before and after.
        multiply_adds: Multiply-adds of a frame before and after.
        widths: Channels of each unit before and after.
        importance: Share of each unit's importance that is kept.
    """

    bytes: int
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    widths: Widths
    importance: Mapping[str, float]

    @property
    def summary(self) -> str:
        """The multiply-adds."""
        return multiply_adds_text(self.multiply_adds)


@dataclass(frozen=True)
class SensitivityResult(StageResult):
    """Loss on the labels when channels are removed from one unit only.

    Args:
        shares: Shares of the channels that are removed.
        loss: Loss without any removal.
        units: Loss at each share, for each unit by its name.
    """

    shares: tuple[float, ...]
    loss: float
    units: Mapping[str, tuple[float, ...]]


_TOOLS = ("numpy", "scipy", "torch", "torch-pruning", "torchvision", "ultralytics")
PRUNE = StageKind("prune", 7, PruneResult, _TOOLS)
SENSITIVITY = StageKind("sensitivity", 3, SensitivityResult, _TOOLS)


@dataclass(frozen=True)
class PrunedDetector(DerivedDetector):
    """A detector after all rounds of pruning; importance: least share of each unit's importance kept in a round."""

    widths: Widths
    importance: Mapping[str, float]

    @property
    def left(self) -> float:
        """Share of the multiply-adds that is left."""
        before, after = self.multiply_adds
        return after / before


@dataclass(frozen=True)
class ChannelPruner:
    """Prunes a checkpoint until the goal of a step on multiply-adds, size or latency is met.

    Args:
        before: The float graph of the checkpoint.
        export: Exports a pruned checkpoint.
        latency: Source of latencies.
        trust: Allow code that is pickled in the checkpoint to run.
        quantized: The quantized graph of the checkpoint, to rank channels by their effect there; None to rank without.
        train_on: GPUs for the training between rounds, such as `0,1`; None for one GPU, if available.
    """

    context: StageContext
    dataset: Dataset
    checkpoint: Path
    before: GraphStage
    export: Callable[[Path], GraphStage]
    latency: LatencySource
    trust: bool = False
    quantized: GraphStage | None = None
    train_on: str | None = None

    def run(self, step: Prune) -> PrunedDetector:
        """Prune a detector. Raises CompressError if the goal is not reached or the result is not faster, SpecError."""
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

    def _until_fast(self, step: Prune, most_ms: float) -> PrunedDetector:
        """Prune more with each attempt until a frame takes at most `most_ms`. Raises CompressError."""
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

    def _prune(self, step: Prune) -> PrunedDetector:
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
        shares = [stage.result.importance for stage in rounds]
        start, end = first.result, last.result
        return PrunedDetector(
            checkpoint=last.path / checkpoint_name(self.checkpoint),
            graph=graph,
            parameters=(start.parameters[0], end.parameters[1]),
            multiply_adds=(start.multiply_adds[0], end.multiply_adds[1]),
            latency_ms=self.latency.of_both(self.before, graph),
            widths={name: (width, end.widths[name][1]) for name, (width, _) in start.widths.items()},
            importance={name: min(each[name] for each in shares) for name in shares[0]},
        )

    def _rounds(self, step: Prune) -> Iterator[Stage[PruneResult]]:
        """Yield rounds that each remove the same share of what is left, with training between rounds if wanted."""
        checkpoint = self.checkpoint
        widths: Widths = {}
        for left in range(step.rounds, 0, -1):
            stage = self._round(part_of(step, left, widths), checkpoint, left)
            yield stage
            widths = {name: (widths.get(name, (old,))[0], new) for name, (old, new) in stage.result.widths.items()}
            checkpoint = stage.path / checkpoint_name(self.checkpoint)
            if step.recovery and left > 1:
                recovery = replace(step.recovery, student=str(checkpoint))
                trained = train_module.distill(
                    self.context, recovery, self.checkpoint, self.dataset, trust=self.trust, device=self.train_on
                )
                checkpoint = trained.path / train_module.student_file(recovery)

    def _round(self, step: Prune, checkpoint: Path, left: int) -> Stage[PruneResult]:
        """Run one round; left: number of remaining rounds, including this one."""
        teacher = None if checkpoint == self.checkpoint else self.checkpoint

        def work(folder: Path) -> PruneResult:
            out = folder / checkpoint_name(self.checkpoint)
            settings = (out, self.dataset.source, step, self.trust, self.context.progress, self.latency.cost)
            family = require_family(checkpoint)
            if self.quantized:
                prune = family.capability("prune_quantized")
                done = prune(checkpoint, *settings, teacher, left, self.quantized.path / GRAPH)
            else:
                done = family.capability("prune")(checkpoint, *settings, teacher, left)
            importance = {name: float(f"{share:.6g}") for name, share in done.importance.items()}
            size = out.stat().st_size
            return PruneResult(size, done.parameters, done.multiply_adds, dict(done.widths), importance)

        elsewhere = ("min_fps", "recovery", "rounds")  # settings that no single round depends on
        settings = {name: value for name, value in asdict(step).items() if name not in elsewhere}
        inputs = {
            "model": self.context.sha256(checkpoint),
            "teacher": self.context.sha256(teacher) if teacher else None,
            "train": self.context.fingerprint(self.dataset.split("train")) if step.needs_images else None,
            "step": settings,
            "left": left if step.max_size else None,
            "latency": self.latency.identity,
            "quantized": self.quantized.sha256 if self.quantized else None,
        }
        return self.context.run(PRUNE, inputs, work, libraries=require_family(checkpoint).libraries)


def sensitivity(
    context: StageContext, dataset: Dataset, checkpoint: Path, step: Prune, *, trust: bool = False
) -> Stage[SensitivityResult]:
    """Measure the loss on the labels when channels are removed from one unit only, for each unit."""

    def work(folder: Path) -> SensitivityResult:
        scan = require_family(checkpoint).capability("scan")
        found = scan(checkpoint, dataset.source, step, trust, context.progress)
        units = {name: tuple(float(f"{loss:.6g}") for loss in losses) for name, losses in found.units.items()}
        return SensitivityResult(SCANNED_SHARES, float(f"{found.loss:.6g}"), units)

    chosen = {name: getattr(step, name) for name in ("importance", "images", "batch", "image_size", "seed")}
    train = context.fingerprint(dataset.split("train"))
    inputs = {"model": context.sha256(checkpoint), "train": train, "step": chosen}
    return context.run(SENSITIVITY, inputs, work, libraries=require_family(checkpoint).libraries)


def multiply_adds_text(multiply_adds: tuple[int, int]) -> str:
    """Return multiply-adds before and after as text."""
    before, after = (count / 1e9 for count in multiply_adds)
    return f"{after:.2f} of {before:.2f} G multiply-adds a frame"


def for_target(step: Prune, target: Target | None) -> Prune:
    """Return the step with the target's preferred multiple of channels, if it has no multiple of its own."""
    preferred = target.precisions.multiple if target else None
    return replace(step, multiple=step.multiple or (preferred.value if preferred else None))


def checkpoint_name(detector: Path) -> str:
    """Return the name of the file that pruning a detector writes."""
    return f"pruned{require_family(detector).suffix}"


def part_of(step: Prune, left: int, widths: Widths) -> Prune:
    """Return the settings of one of several rounds, each of which removes the same share of the multiply-adds left.

    Caps are relative to the width of a unit before the first round. Relative to its width now, rounding to multiples
    of channels would repeat in each round, and small shares would never be removed.

    Args:
        left: Number of remaining rounds, including this one.
        widths: Channels of each unit before the first round, and now; empty in the first round.
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
    """Return the share removed after `part` of all rounds, if each removes the same share of what is left."""
    return float(1 - (1 - share) ** part)
