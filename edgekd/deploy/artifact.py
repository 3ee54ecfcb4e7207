"""Open checkpoints, ONNX files, packed graphs, bundles and conversions as a graph with its contract."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekd.core.bundle.archive import extract
from edgekd.core.bundle.network import max_network_bytes, require_network
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.formats.packed_graph import unpack
from edgekd.core.formats.packed_layout import MAX_BYTES
from edgekd.core.input_files import is_folder, read_input
from edgekd.deploy.converters.contract import read_contract
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.detectors.family import detector_file, require_family
from edgekd.detectors.onnx import understand
from edgekd.graph.rehearsal import rehearse
from edgekd.graph.runtimes import runtime_named
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.types import HostRuntime
from edgekd.graph.view import load_graph
from edgekd.hardware.target import EXPORT_OPSET, Target, opset_for

BUNDLE_SUFFIX = ".edgekd"
PACKED_SUFFIX = ".packed"
_GRAPH = "graph.onnx"


@contextmanager
def opened(
    artifact: Path, head: str | None, classes: tuple[str, ...], trust_checkpoint: bool
) -> Iterator[tuple[Path, DetectorSpec]]:
    """Yield the graph of a `.pt`, `.onnx`, `.packed` or bundle as an ONNX file, with its contract.

    The file exists while the block lasts. A checkpoint is exported, a packed graph expanded, a bundle verified. Raises
    SpecError, BundleError.
    """
    artifact = detector_file(artifact)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        if artifact.suffix == BUNDLE_SUFFIX:
            manifest = extract(artifact, Path(scratch) / "bundle")
            artifact = Path(scratch) / "bundle" / manifest.graph.path
        if artifact.suffix == PACKED_SUFFIX:
            artifact = expanded(artifact, Path(scratch) / _GRAPH)
        detector = load(artifact, head, classes, trust_checkpoint)
        if require_family(artifact).is_graph:
            model = load_graph(artifact)
            understood = understand(model, artifact, head, classes)
            if understood.appended:
                artifact = Path(scratch) / _GRAPH
                artifact.write_bytes(model.SerializeToString())
            rehearse(artifact, (understood.spec.preprocess.height, understood.spec.preprocess.width))
            yield artifact, understood.spec
        else:
            graph = Path(scratch) / _GRAPH
            yield graph, export(detector, graph, EXPORT_OPSET).spec


@contextmanager
def runnable(
    artifact: Path, head: str | None, classes: tuple[str, ...], trust_checkpoint: bool
) -> Iterator[tuple[Path, DetectorSpec, HostRuntime]]:
    """Yield graph, contract and a runtime of this machine, as `opened` does; also open the folder of a conversion.

    Raises SpecError, DeviceError.
    """
    if not is_folder(detector_file(artifact)):
        with opened(artifact, head, classes, trust_checkpoint) as (graph, spec):
            yield graph, spec, ONNXRUNTIME_CPU
        return
    contract = read_contract(artifact)
    if contract.runtime is None:
        raise DeviceError(
            f"{artifact}: no runtime for {contract.format} on this machine", fix="score the model it was converted from"
        )
    yield artifact / contract.entry, contract.spec, runtime_named(contract.runtime)


def expanded(packed: Path, graph: Path) -> Path:
    """Unpack a packed graph to the ONNX file `graph`, and return that path. Raises SpecError."""
    content = read_input(packed, MAX_BYTES, SpecError)
    try:
        require_network(content)
        graph.write_bytes(unpack(content, max_network_bytes(len(content))))
    except OSError as error:
        raise SpecError(f"{graph}: cannot write", found=error.strerror, fix="free some space there") from error
    except ValueError as error:
        raise SpecError(f"{packed}: cannot be read as a packed graph", found=str(error), fix="copy it again") from error
    return graph


@contextmanager
def graph_of(model: Path, head: str | None, trust_checkpoint: bool, target: Target) -> Iterator[Path]:
    """Yield the graph that a build for `target` starts from; an ONNX file without a known head is not changed."""
    model = detector_file(model)
    detector = load(model, head, (), trust_checkpoint)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        graph = Path(scratch) / _GRAPH
        try:
            detector.export(graph, opset_for(target))
        except SpecError:
            if head is not None or not require_family(model).is_graph:
                raise
            rehearse(model, weights=False)
            graph = model
        yield graph
