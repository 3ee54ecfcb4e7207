"""ONNX at another opset, with float16 in place of float32, or with the weights as a device's TensorRT takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.agent.runtimes.tensorrt_generations import generation
from edgekd.core.atomic_files import new_file
from edgekd.core.errors import SpecError
from edgekd.deploy.converters.types import Asked, FormatName, Made, Source
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU, OnnxRuntime
from edgekd.graph.view import opset_of

LEAST_OPSET = 13
"""Before it, Q/DQ has no axis, and what edgekd writes cannot be said."""


@dataclass(frozen=True)
class OnnxFile:
    """One file with its contract in its metadata. INT8 stays Q/DQ; for TensorRT 8 weights are FP32 before Q/DQ."""

    name: FormatName = "onnx"
    suffix: str = ".onnx"
    single_file: bool = True
    engine: OnnxRuntime = ONNXRUNTIME_CPU
    libraries: tuple[str, ...] = ("onnx",)

    def require(self) -> None:
        """Nothing is needed that edgekd itself does not need."""

    def convert(self, source: Source, folder: Path, name: str, asked: Asked) -> Made:
        """Write `NAME.onnx`. Raises SpecError for an opset that the graph cannot be brought to."""
        import onnx

        from edgekd.detectors.onnx import describe_in, to_opset
        from edgekd.graph.fp16 import half
        from edgekd.graph.view import load_graph

        out = folder / f"{name}{self.suffix}"
        _require_opset(asked)
        graph = source.graph
        if asked.precision == "fp16":
            half(graph, out)
            graph = out
        model = load_graph(graph)
        if asked.opset is not None and asked.opset != opset_of(model):
            model = to_opset(model, asked.opset, source.graph)
        describe_in(model, source.spec)
        onnx.save(model, out)
        if asked.tensorrt is not None and not generation(asked.tensorrt).int8_constants:
            _with_float_weights(out)
        return Made(out.name, len(source.layers), opset_of(model))


def _with_float_weights(path: Path) -> None:
    """Put FP32 weights behind Q/DQ in place of INT8 ones. Raises SpecError where the Q/DQ is of another kind."""
    from edgekd.core.formats.qdq_graph import QdqGraph

    try:
        file = QdqGraph(path.read_bytes()).form(int8_constants=False)
        with new_file(path) as stream:
            file.write(stream)
    except ValueError as error:
        fix = "convert without --target, or the float model"
        raise SpecError(f"{path.name}: its INT8 cannot be written for TensorRT 8", found=str(error), fix=fix) from error


def _require_opset(asked: Asked) -> None:
    import onnx

    from edgekd.graph.fp16 import MIN_OPSET

    least = MIN_OPSET if asked.precision == "fp16" else LEAST_OPSET
    most = onnx.defs.onnx_opset_version()
    if asked.opset is not None and not least <= asked.opset <= most:
        kind = " with float16" if asked.precision == "fp16" else ""
        raise SpecError("--opset", expected=f"{least} to {most}{kind}", found=str(asked.opset))


ONNX = OnnxFile()
