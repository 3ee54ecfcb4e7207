"""View of an ONNX graph for the fake parser and builder: constants, Q/DQ pairs, producers and consumers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that have INT8 kernels."""
QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
_WITHOUT_LAYER = (*QUANTIZING, "Constant")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UNDEFINED)


class Graph:
    """The nodes and tensors of one ONNX model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = [_named(node) for node in model.graph.node]
        self.producers = {name: node for node in self.nodes for name in node.output}
        self._constants = {each.name: each for each in model.graph.initializer}
        for node in self.nodes:
            value = next((each.t for each in node.attribute if each.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                self._constants[node.output[0]] = value

    @property
    def inputs(self) -> list[str]:
        """The names of the graph's inputs."""
        return [each.name for each in self.model.graph.input if each.name not in self._constants]

    @property
    def outputs(self) -> list[str]:
        """The names of the graph's outputs."""
        return [each.name for each in self.model.graph.output]

    @property
    def layers(self) -> list[onnx.NodeProto]:
        """The nodes that become layers of an engine."""
        return [node for node in self.nodes if node.op_type not in _WITHOUT_LAYER]

    @property
    def quantized(self) -> bool:
        """Whether the graph holds Q/DQ nodes."""
        return any(node.op_type in QUANTIZING for node in self.nodes)

    def constant(self, name: str) -> onnx.TensorProto | None:
        """Return the constant of this name, None where it is computed."""
        return self._constants.get(name)

    def value(self, name: str) -> np.ndarray:
        """Return the values of a constant."""
        return numpy_helper.to_array(self._constants[name])

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor."""
        return self._consumers.get(name, [])

    def origin(self, name: str) -> str:
        """Return the tensor before the Q/DQ nodes that lead to this one."""
        while name in self.producers and self.producers[name].op_type in QUANTIZING:
            name = self.producers[name].input[0]
        return name

    def dequantized(self, name: str) -> bool:
        """Return whether a tensor comes out of DequantizeLinear."""
        return name in self.producers and self.producers[name].op_type == "DequantizeLinear"

    def activations(self, names: Any) -> list[str]:
        """Return those of these tensors that are computed floats. Unknown types count as floats."""
        return [each for each in names if each and self.constant(each) is None and self._types.get(each, 0) in _FLOATS]

    @cached_property
    def _consumers(self) -> dict[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def _types(self) -> dict[str, int]:
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        listed = (*inferred.value_info, *inferred.input, *inferred.output)
        return {each.name: each.type.tensor_type.elem_type for each in listed}


def _named(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node with the name that TensorRT's parser gives it (`getNodeName` of onnx-tensorrt)."""
    if node.name:
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"node_of_{node.output[0]}"
    return copy
