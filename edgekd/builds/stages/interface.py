"""Stage `interface`: the graph that ships, with raw frames, the best candidates, or a dynamic batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from edgekd.builds.stage_store import StageKind
from edgekd.builds.stages.base import GRAPH, GraphResult, GraphStage, StageContext
from edgekd.detectors.interface import Interface, with_interface
from edgekd.graph.model_file import read_model
from edgekd.graph.view import opset_of


@dataclass(frozen=True)
class InterfaceResult(GraphResult):
    """A graph with another input or output."""


INTERFACE = StageKind("interface", 1, InterfaceResult, ("onnx",))


def run(context: StageContext, graph: GraphStage, interface: Interface) -> GraphStage:
    """Return a graph with another interface; the graph itself for the default interface. Raises SpecError."""
    if interface == Interface():
        return graph

    def work(folder: Path) -> InterfaceResult:
        import onnx

        model = read_model(graph.path / GRAPH)
        spec = with_interface(model, graph.result.spec, interface, graph.name)
        onnx.checker.check_model(model)
        onnx.save(model, folder / GRAPH)
        return InterfaceResult(spec, opset_of(model), (folder / GRAPH).stat().st_size)

    return context.run(INTERFACE, {"graph": graph.sha256, "interface": asdict(interface)}, work)
