"""ONNX at another opset, or with float16 in place of float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.conversion.types import Asked, Made, Source
from edgekd.engines.onnxruntime import ONNXRUNTIME_CPU, OnnxRuntime
from edgekd.errors import SpecError

LEAST_OPSET = 13
"""Before it, Q/DQ has no axis, and what edgekd writes cannot be said."""


@dataclass(frozen=True)
class OnnxFile:
    """One file with its contract in its metadata. INT8 stays Q/DQ."""

    name: str = "onnx"
    suffix: str = ".onnx"
    single_file: bool = True
    engine: OnnxRuntime = ONNXRUNTIME_CPU
    libraries: tuple[str, ...] = ("onnx",)

    def require(self) -> None:
        """Nothing is needed that edgekd itself does not need."""

    def convert(self, source: Source, folder: Path, name: str, asked: Asked) -> Made:
        """Write `NAME.onnx`. Raises SpecError for an opset that the graph cannot be brought to."""
        import onnx

        from edgekd.detectors.onnx import describe_in, load_graph, opset_of, to_opset
        from edgekd.half import half

        out = folder / f"{name}{self.suffix}"
        _require_opset(asked)
        graph = source.graph
        if asked.precision == "fp16":
            half(graph, out)
            graph = out
        model = load_graph(graph)
        if asked.opset is not None:
            model = to_opset(model, asked.opset, source.graph)
        describe_in(model, source.spec)
        onnx.save(model, out)
        return Made(out.name, len(source.layers), opset_of(model))


def _require_opset(asked: Asked) -> None:
    import onnx

    from edgekd.half import LEAST_OPSET as LEAST_OF_HALF

    least = LEAST_OF_HALF if asked.precision == "fp16" else LEAST_OPSET
    most = onnx.defs.onnx_opset_version()
    if asked.opset is not None and not least <= asked.opset <= most:
        kind = " with float16" if asked.precision == "fp16" else ""
        raise SpecError("--opset", expected=f"{least} to {most}{kind}", found=str(asked.opset))


ONNX = OnnxFile()
