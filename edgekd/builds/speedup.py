"""A detector and the lighter one that was made of it: what commands tell of both, and that it is faster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekd.builds.latency import Latency, Measured, latency_on
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import Stages, local_device, spec_of
from edgekd.core.errors import CompressError
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.types import Dataset, Split
from edgekd.detectors import load
from edgekd.hardware.target import EXPORT_OPSET, Target

SCORED = "val"
"""The split that is scored and timed on where there is one; nothing is chosen by it."""


class Job(Protocol):
    """Which detector a lighter one is to be made of, by which images. target: what for, if not for this machine.

    device: what latency is measured on, `local` or `local:ENGINE`.
    """

    @property
    def model(self) -> Path: ...

    @property
    def data(self) -> Path: ...

    @property
    def target(self) -> Target | None: ...

    @property
    def device(self) -> str: ...

    @property
    def trust_checkpoint(self) -> bool: ...


@dataclass(frozen=True)
class Start:
    """What there is before anything is made lighter. before: the detector's float graph; latency: what decides."""

    stages: Stages
    dataset: Dataset
    before: Stage
    measured: Measured
    latency: Latency

    def export(self, checkpoint: Path) -> Stage:
        """The float graph of a checkpoint that was written here."""
        return self.stages.export(load(checkpoint), None, self.dataset.classes, EXPORT_OPSET)


def start(job: Job, stages: Stages, sees: bool) -> Start:
    """Open a job; sees: whether what is made depends on training images. Raises SpecError, DataError."""
    detector, dataset = load(job.model, trust_checkpoint=job.trust_checkpoint), load_dataset(job.data)
    split = dataset.split(SCORED if SCORED in dataset.splits else "train")
    if split.name == SCORED and sees:
        stages.refuse_shared(dataset.split("train"), split)
    before = stages.export(detector, None, dataset.classes, EXPORT_OPSET)
    require_classes(spec_of(before), dataset)
    measured = Measured(stages, split, stages.fingerprint(split), local_device(job.device))
    return Start(stages, dataset, before, measured, latency_on(job.target, measured))


class Lighter(Protocol):
    """What was made. graph: its float graph; parameters, multiply_adds, latency_ms: before and after."""

    @property
    def graph(self) -> Stage: ...

    @property
    def parameters(self) -> tuple[int, int]: ...

    @property
    def multiply_adds(self) -> tuple[int, int]: ...

    @property
    def latency_ms(self) -> tuple[float, float]: ...


def told(begun: Start, found: Lighter, target: Target | None) -> dict[str, Any]:
    """`before`, `after`, `target` and `host` of a result: docs/json.md."""
    before, measured = begun.before, begun.measured
    times = measured.of_both(before, found.graph)
    sides = {
        side: {
            "parameters": found.parameters[at],
            "multiply_adds": found.multiply_adds[at],
            **_scores(graph, measured.split, measured.data, measured.stages),
            "latency_ms": times[at],
            "fps": measured.timed(before, found.graph)[side]["fps"],
        }
        for at, (side, graph) in enumerate((("before", before), ("after", found.graph)))
    }
    return {**sides, "target": _on_target(target, begun.latency, found), "host": measured.host(before, found.graph)}


def _on_target(target: Target | None, latency: Latency, found: Lighter) -> dict[str, Any] | None:
    """What was decided by, where that was not this machine."""
    if target is None:
        return None
    before, after = found.latency_ms
    told = {"name": target.name, "basis": latency.basis, "where": latency.where}
    return {**told, "before_ms": before, "after_ms": after}


def _scores(graph: Stage, split: Split, data: str, stages: Stages) -> dict[str, float | None]:
    """mAP of a graph; None where there is no split to score."""
    if split.name != SCORED:
        return {"map50_95": None, "map50": None}
    found = stages.score(graph, split, data, "fp32").results
    return {name: found[name] for name in ("map50_95", "map50")}


def require_faster(what: str, found: Lighter, latency: Latency, with_what: str, fix: str) -> None:
    """Raise CompressError where the lighter detector takes no less time. what: was done; with_what: came of it."""
    before, after = found.latency_ms
    if after < before:
        return
    raise CompressError(
        f"{what}, and not faster",
        expected=f"less than {before:.2f} ms a frame, as before, on {latency.where} ({latency.basis})",
        found=f"{after:.2f} ms with {with_what}",
        fix=fix,
    )
