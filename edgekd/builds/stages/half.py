"""Stage `half`: the graph with float16 in place of float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind
from edgekd.builds.stages.base import GRAPH, GraphResult, GraphStage, StageContext
from edgekd.graph.fp16 import half


@dataclass(frozen=True)
class HalfResult(GraphResult):
    """A graph in float16."""


HALF = StageKind("half", 2, HalfResult, ("onnx", "onnxruntime"))


def run(context: StageContext, graph: GraphStage) -> Stage[HalfResult]:
    """Convert a graph to float16."""

    def work(folder: Path) -> HalfResult:
        opset = half(graph.path / GRAPH, folder / GRAPH)
        return HalfResult(graph.result.detector, opset, (folder / GRAPH).stat().st_size)

    return context.run(HALF, {"graph": graph.sha256}, work)
