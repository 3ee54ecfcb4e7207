"""Stage `export`: the float32 graph of a detector, or of another network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.stage_store import Stage, StageKind
from edgekd.builds.stages.base import GRAPH, GraphResult, StageContext
from edgekd.core.toml import read_toml
from edgekd.data.dataset import require_classes
from edgekd.data.types import Dataset
from edgekd.detectors import Detector, load
from edgekd.detectors.export import export
from edgekd.detectors.family import files_beside
from edgekd.detectors.generic_onnx import Input, prepare


@dataclass(frozen=True)
class ExportResult(GraphResult):
    """The float32 graph of a detector. error: largest relative difference of its outputs from those of the source."""

    error: float

    @property
    def summary(self) -> str:
        """The error."""
        return f"largest relative error against the source {self.error:.1e}"


@dataclass(frozen=True)
class NetworkResult(GraphResult):
    """The float32 graph of a network that is no detector. input: name and shape."""

    input: tuple[str, tuple[int, ...]]


EXPORT = StageKind("export", 1, ExportResult, ("onnx", "onnxslim"))
NETWORK = StageKind(EXPORT.name, EXPORT.version, NetworkResult, EXPORT.tools)


def run(
    context: StageContext, detector: Detector, head: str | None, classes: Sequence[str], opset: int
) -> Stage[ExportResult]:
    """Export a detector; head: the user's description of an ONNX file's output."""

    def work(folder: Path) -> ExportResult:
        exported = export(detector, folder / GRAPH, opset)
        return ExportResult(exported.spec, exported.opset, (folder / GRAPH).stat().st_size, exported.error)

    inputs: dict[str, Any] = {
        "model": context.sha256(detector.path),
        "family": detector.family,
        "head": head_inputs(head),
        "classes": list(classes),
        "opset": opset,
    }
    if beside := {path.name: context.sha256(path) for path in files_beside(detector.path)}:
        inputs["beside"] = beside
    return context.run(EXPORT, inputs, work, libraries=detector.libraries)


def head_inputs(head: str | None) -> Any:
    """Return the inputs of a stage for the description of a head: its name, or the content of its file.

    Raises SpecError if the file cannot be read.
    """
    return read_toml(Path(head)) if head and head.endswith(".toml") else head


def run_model(
    context: StageContext, model: Path, head: str | None, dataset: Dataset, opset: int, *, trust: bool = False
) -> tuple[Detector, Stage[ExportResult]]:
    """Load and export a detector. Raises DataError if its classes are not those of the data, and SpecError."""
    detector = load(model, head, dataset.classes, trust)
    graph = run(context, detector, head, dataset.classes, opset)
    require_classes(graph.result.spec, dataset)
    return detector, graph


def run_network(context: StageContext, model: Path) -> tuple[Stage[NetworkResult], Input]:
    """Prepare an ONNX network that is no detector for quantization; return the stage and the network's input."""

    def work(folder: Path) -> NetworkResult:
        prepared = prepare(model, folder / GRAPH)
        return NetworkResult(None, None, (folder / GRAPH).stat().st_size, (prepared.name, tuple(prepared.shape)))

    stage = context.run(NETWORK, {"model": context.sha256(model), "family": "network"}, work)
    return stage, Input(*stage.result.input)
