"""Engines of TensorRT for RTX, compiled ahead of time for GPUs that this machine need not have."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.deploy.converters.types import ConversionRequest, ConversionResult, Format, Source
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.graph.runtimes.types import require

ENGINE = "engine.rtx"


def convert(source: Source, folder: Path, name: str, request: ConversionRequest) -> ConversionResult:
    """Compile one engine for all requested GPUs, in the graph's precisions; for `fp16` after `edgekd.graph.fp16`."""
    from edgekd.graph.fp16 import half

    if not request.compute_capabilities:
        raise SpecError(
            "an engine is for certain GPUs", expected="--target, such as rtx-40", fix="`edgekd targets` lists them"
        )
    graph = source.graph
    if request.precision == "fp16":
        graph = folder / "half.onnx"
        half(source.graph, graph)
    compiled = compile_ahead(graph, request.compute_capabilities, folder / ENGINE)
    if graph is not source.graph:
        graph.unlink()
    note = f"for {', '.join(compiled.sm)}; kernels are chosen on the GPU that loads the engine first"
    return ConversionResult(ENGINE, len(source.layers), notes=(note, *dict.fromkeys(compiled.log)))


TENSORRT_RTX_ENGINE = Format(
    name="tensorrt-rtx",
    suffix="_tensorrt_rtx_model",
    single_file=False,
    runtime=None,
    libraries=("tensorrt-rtx",),
    convert=convert,
    require=partial(require, TENSORRT_RTX),
)
