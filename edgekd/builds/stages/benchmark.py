"""Stage `benchmark`: latency of two graphs on this machine, interleaved in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.core.benchmark import Basis, TimingSummary
from edgekd.core.host_facts import HostFacts
from edgekd.data.images import ReadableImages
from edgekd.data.types import Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.evaluation.latency import time_graphs

SAMPLES = "samples.json"
TIMED_FRAMES = 16


@dataclass(frozen=True)
class TimingResult(StageResult):
    """The machine and the times of both graphs; each frame's are in the file SAMPLES."""

    host: HostFacts
    before: TimingSummary
    after: TimingSummary

    @property
    def sides(self) -> Mapping[str, TimingSummary]:
        """Both graphs by name."""
        return {"before": self.before, "after": self.after}


BENCHMARK = StageKind("benchmark", 2, TimingResult)


def run(
    context: StageContext,
    before: GraphStage,
    after: GraphStage,
    split: Split,
    data: str,
    device: LocalDevice,
    basis: Basis,
) -> Stage[TimingResult]:
    """Time two graphs on images of a split. data: its fingerprint. Raises DataError, DeviceError."""

    def work(folder: Path) -> TimingResult:
        frames = [image for _, image in ReadableImages(split.samples[:TIMED_FRAMES], max_bad_share=0.5)]
        # A recipe without steps ships the given graph: timing it twice would only show noise.
        stages = {"after": after} if before.key == after.key else {"before": before, "after": after}
        context.note(f"benchmark: timing on {device.engine.name} ...")
        graphs = {label: stage.path / GRAPH for label, stage in stages.items()}
        specs = {label: stage.result.spec for label, stage in stages.items()}
        timings = time_graphs(graphs, specs, frames, device, basis)
        timings = {"before": timings["after"], **timings}
        samples = {label: timing.total_ms.round(4).tolist() for label, timing in timings.items()}
        (folder / SAMPLES).write_text(json.dumps(samples), "ascii")
        summaries = {label: timing.summary() for label, timing in timings.items()}
        return TimingResult(device.facts(), **summaries)

    facts = device.facts()
    inputs = {
        "before": before.sha256,
        "after": after.sha256,
        "data": data,
        "host": [facts.cpu, facts.threads, facts.engine, facts.libraries, basis],
    }
    return context.run(BENCHMARK, inputs, work)
