"""Stage `encode`: the graph as it ships, packed without loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.core.errors import CompressError
from edgekd.core.formats.packed_graph import pack, unpack

PACKED = "graph.packed"


@dataclass(frozen=True)
class EncodeResult(StageResult):
    """The lengths of the packed graph, in the file PACKED, and of the ONNX file that it expands to."""

    bytes: int
    onnx_bytes: int

    @property
    def summary(self) -> str:
        """The length of the ONNX file."""
        return f"the ONNX file of {self.onnx_bytes / 1e6:.2f} MB, packed without loss"


ENCODE = StageKind("encode", 2, EncodeResult)


def run(context: StageContext, graph: GraphStage, precision: str) -> Stage[EncodeResult]:
    """Pack a graph. Raises CompressError if unpacking does not give the same bytes."""

    def work(folder: Path) -> EncodeResult:
        content = (graph.path / GRAPH).read_bytes()
        packed = pack(content)
        if unpack(packed) != content:
            raise CompressError("encode: the packed graph does not expand to the graph that was packed")
        (folder / PACKED).write_bytes(packed)
        return EncodeResult(len(packed), len(content))

    return context.run(ENCODE, {"graph": graph.files[GRAPH].sha256}, work, label=precision)
