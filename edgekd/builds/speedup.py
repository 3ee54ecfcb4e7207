"""A detector and a lighter one derived from it: their results side by side, and the requirement that it is faster."""

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
"""The split for scores and times, where there is one; nothing is chosen by it."""


@dataclass(frozen=True)
class Start:
    """A detector before it is made lighter. before: its float graph; target: None for this machine."""

    stages: Stages
    dataset: Dataset
    before: Stage
    target: Target | None
    measured: Measured
    latency: Latency

    def export(self, checkpoint: Path) -> Stage:
        """Export a checkpoint that was written here."""
        return self.stages.export(load(checkpoint), None, self.dataset.classes, EXPORT_OPSET)


def start(
    stages: Stages,
    model: Path,
    data: Path,
    *,
    target: Target | None,
    device: str,
    trust_checkpoint: bool,
    uses_training_images: bool,
) -> Start:
    """Export a detector, and choose how latency is judged. Raises SpecError, DataError.

    device: for measurements, `local` or `local:ENGINE`. uses_training_images: the result depends on them.
    """
    detector, dataset = load(model, trust_checkpoint=trust_checkpoint), load_dataset(data)
    split = dataset.split(SCORED if SCORED in dataset.splits else "train")
    if split.name == SCORED and uses_training_images:
        stages.refuse_shared(dataset.split("train"), split)
    before = stages.export(detector, None, dataset.classes, EXPORT_OPSET)
    require_classes(spec_of(before), dataset)
    measured = Measured(stages, split, stages.fingerprint(split), local_device(device))
    return Start(stages, dataset, before, target, measured, latency_on(target, measured))


class Lighter(Protocol):
    """A lighter detector. graph: its float graph; parameters, multiply_adds, latency_ms: before and after."""

    @property
    def graph(self) -> Stage: ...

    @property
    def parameters(self) -> tuple[int, int]: ...

    @property
    def multiply_adds(self) -> tuple[int, int]: ...

    @property
    def latency_ms(self) -> tuple[float, float]: ...


def compared(begun: Start, found: Lighter) -> dict[str, Any]:
    """Return `before`, `after`, `target` and `host` of a result: docs/json.md."""
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
    return {**sides, "target": _on_target(begun, found), "host": measured.host(before, found.graph)}


def _on_target(begun: Start, found: Lighter) -> dict[str, Any] | None:
    """Return the latencies that decided, where they are not of this machine."""
    if begun.target is None:
        return None
    before, after = found.latency_ms
    basis = {"name": begun.target.name, "basis": begun.latency.basis, "where": begun.latency.where}
    return {**basis, "before_ms": before, "after_ms": after}


def _scores(graph: Stage, split: Split, data: str, stages: Stages) -> dict[str, float | None]:
    """Return mAP of a graph; None where there is no split to score."""
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
