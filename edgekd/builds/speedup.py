"""A detector and a lighter one derived from it: their results side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.stage_store import sorted_plain
from edgekd.builds.stages import export, score
from edgekd.builds.stages.base import GraphStage, StageContext
from edgekd.builds.stages.derived import DerivedDetector
from edgekd.builds.stages.latency import Latency, Measured, latency_on
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.types import Dataset
from edgekd.deploy.devices.local import local_device
from edgekd.detectors import load
from edgekd.hardware.target import EXPORT_OPSET, Target

SCORED = "val"
"""The split that is scored and timed on if there is one; nothing is chosen by it."""


@dataclass(frozen=True)
class Start:
    """A detector before it is made lighter; before: its float graph; target: None for this machine."""

    context: StageContext
    dataset: Dataset
    before: GraphStage
    target: Target | None
    measured: Measured
    latency: Latency

    def export(self, checkpoint: Path) -> GraphStage:
        """Return the float graph of a checkpoint that was written here."""
        return export.run(self.context, load(checkpoint), None, self.dataset.classes, EXPORT_OPSET)


def start(
    context: StageContext,
    model: Path,
    data: Path,
    *,
    target: Target | None,
    device: str,
    trust_checkpoint: bool,
    uses_training_images: bool,
) -> Start:
    """Export a detector, and choose how latency is judged. Raises SpecError, DataError.

    Args:
        device: For measurements, `local` or `local:ENGINE`.
        uses_training_images: The result depends on them.
    """
    detector, dataset = load(model, trust_checkpoint=trust_checkpoint), load_dataset(data)
    split = dataset.split(SCORED if SCORED in dataset.splits else "train")
    if split.name == SCORED and uses_training_images:
        context.refuse_shared(dataset.split("train"), split)
    before = export.run(context, detector, None, dataset.classes, EXPORT_OPSET)
    require_classes(before.result.spec, dataset)
    measured = Measured(context, split, context.fingerprint(split), local_device(device))
    return Start(context, dataset, before, target, measured, latency_on(target, measured))


def compared(begun: Start, derived: DerivedDetector) -> dict[str, Any]:
    """Return `before`, `after`, `target` and `host` of a result: docs/json.md."""
    before, measured = begun.before, begun.measured
    timing = measured.timed(before, derived.graph)
    sides = {
        side: {
            "parameters": derived.parameters[index],
            "multiply_adds": derived.multiply_adds[index],
            **_scores(graph, measured),
            "latency_ms": summary.total_ms.p50,
            "fps": summary.fps,
        }
        for index, (side, graph, summary) in enumerate(
            (("before", before, timing.before), ("after", derived.graph, timing.after))
        )
    }
    return {**sides, "target": _on_target(begun, derived), "host": sorted_plain(timing.host)}


def _on_target(begun: Start, derived: DerivedDetector) -> dict[str, Any] | None:
    """Return the latencies that decided, where they are not of this machine."""
    if begun.target is None:
        return None
    before, after = derived.latency_ms
    basis = {"name": begun.target.name, "basis": begun.latency.basis, "where": begun.latency.where}
    return {**basis, "before_ms": before, "after_ms": after}


def _scores(graph: GraphStage, measured: Measured) -> dict[str, float | None]:
    """Return the mAP of a graph; None where there is no split to score."""
    if measured.split.name != SCORED:
        return {"map50_95": None, "map50": None}
    found = score.run(measured.context, graph, measured.split, measured.data, "fp32").result
    return {"map50_95": found.map50_95, "map50": found.map50}
