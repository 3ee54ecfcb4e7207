"""A Q/DQ graph taken apart: the same network in float, the scales of its activations, and which layers are float.

For what takes no Q/DQ: NVIDIA's DLA, which up to TensorRT 10 gets INT8 by a calibration cache, and an engine in FP16
where the INT8 one cannot be had. A pair of QuantizeLinear and DequantizeLinear becomes the tensor it reads; a
DequantizeLinear of constants becomes the values that they stand for.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekd.formats.qdq_graph import QdqGraph, StreamedFile


@dataclass(frozen=True)
class PlainGraph:
    """A network without Q/DQ.

    file: its ONNX file; weights have the values that the integers stood for, in the type of their scales. scales: of
    each quantized activation, by the name of its tensor in the file; float_layers: names of the computing nodes whose
    operands the Q/DQ graph does not quantize.
    """

    file: StreamedFile
    scales: Mapping[str, float]
    float_layers: tuple[str, ...]

    @property
    def onnx(self) -> bytes:
        """The whole file in memory."""
        return self.file.content()


def plain_graph(onnx: bytes) -> PlainGraph:
    """Take the Q/DQ graph of an ONNX file apart.

    Raises ValueError where it is no such file, an output or a zero point is in the way, or a scale is no constant.
    """
    graph = QdqGraph(onnx)
    return PlainGraph(graph.without_qdq(), graph.scales(), graph.float_layers())
