"""ONNX at another opset, in float16, or with weights that the TensorRT of a device accepts."""

from __future__ import annotations

from pathlib import Path

from edgekd.agent.runtimes.tensorrt_generations import generation
from edgekd.core.atomic_files import new_file
from edgekd.core.errors import SpecError
from edgekd.deploy.converters.types import ConversionRequest, ConversionResult, Format, Source
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import opset_of

MIN_INT8_OPSET = 13  # the first with an axis of Q/DQ


def convert(source: Source, folder: Path, name: str, request: ConversionRequest) -> ConversionResult:
    """Write `NAME.onnx` with its contract in its metadata; INT8 stays Q/DQ, for TensorRT 8 with FP32 weights."""
    import onnx

    from edgekd.detectors.onnx import describe_in
    from edgekd.graph.fp16 import half
    from edgekd.graph.opset import to_opset
    from edgekd.graph.view import load_graph

    out = folder / f"{name}{ONNX.suffix}"
    _require_opset(request)
    graph = source.graph
    if request.precision == "fp16":
        half(graph, out)
        graph = out
    model = load_graph(graph)
    if request.opset is not None and request.opset != opset_of(model):
        model = to_opset(model, request.opset, str(source.graph))
    describe_in(model, source.spec)
    onnx.save(model, out)
    if request.tensorrt is not None and not generation(request.tensorrt).int8_constants:
        _write_float_weights(out)
    return ConversionResult(out.name, len(source.layers), opset_of(model))


ONNX = Format(
    name="onnx",
    suffix=".onnx",
    single_file=True,
    runtime=ONNXRUNTIME_CPU,
    libraries=("onnx",),
    convert=convert,
)


def _write_float_weights(path: Path) -> None:
    """Replace INT8 weights by FP32 ones with Q/DQ. Raises SpecError for Q/DQ of another kind."""
    from edgekd.core.formats.qdq_graph import QdqGraph

    try:
        file = QdqGraph(path.read_bytes()).form(int8_constants=False)
        with new_file(path) as stream:
            file.write(stream)
    except ValueError as error:
        fix = "convert without --target, or the float model"
        raise SpecError(f"{path.name}: its INT8 cannot be written for TensorRT 8", found=str(error), fix=fix) from error


def _require_opset(request: ConversionRequest) -> None:
    import onnx

    from edgekd.graph.fp16 import MIN_OPSET

    lowest = MIN_OPSET if request.precision == "fp16" else MIN_INT8_OPSET
    highest = onnx.defs.onnx_opset_version()
    if request.opset is not None and not lowest <= request.opset <= highest:
        kind = " with float16" if request.precision == "fp16" else ""
        raise SpecError("--opset", expected=f"{lowest} to {highest}{kind}", found=str(request.opset))
