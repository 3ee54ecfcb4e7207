"""Engines of TensorRT for RTX, compiled ahead of time for GPUs that are not here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.deploy.converters.types import Asked, FormatName, Made, Source
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.graph.runtimes.types import require

ENGINE = "engine.rtx"


@dataclass(frozen=True)
class TensorRtRtxEngine:
    """A folder with one engine for all the GPUs asked for. Nothing here runs it."""

    name: FormatName = "tensorrt-rtx"
    suffix: str = "_tensorrt_rtx_model"
    single_file: bool = False
    engine: None = None
    libraries: tuple[str, ...] = ("tensorrt-rtx",)

    def require(self) -> None:
        """Raises DeviceError unless TensorRT for RTX is installed."""
        require(TENSORRT_RTX)

    def convert(self, source: Source, folder: Path, name: str, asked: Asked) -> Made:
        """Write the engine in the graph's precisions, or after `edgekd.graph.fp16` for `fp16`. Raises as `Format`."""
        from edgekd.graph.fp16 import half

        if not asked.compute_capabilities:
            raise SpecError(
                "an engine is for certain GPUs", expected="--target, such as rtx-40", fix="`edgekd targets` lists them"
            )
        graph = source.graph
        if asked.precision == "fp16":
            graph = folder / "half.onnx"
            half(source.graph, graph)
        made = compile_ahead(graph, asked.compute_capabilities, folder / ENGINE)
        if graph is not source.graph:
            graph.unlink()
        told = f"for {', '.join(made.sm)}; the kernels are chosen on the card, where the engine is loaded first"
        return Made(ENGINE, len(source.layers), notes=(told, *dict.fromkeys(made.log)))


TENSORRT_RTX_ENGINE = TensorRtRtxEngine()
