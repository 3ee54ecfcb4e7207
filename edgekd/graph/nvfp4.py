"""NVFP4 weights in ONNX graphs: written with standard operators, and expanded for runtimes without NVFP4.

docs/reference/formats/nvfp4.md describes the nodes, and the support of each runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.core.formats.fp4x import pack_nibbles
from edgekd.core.formats.nvfp4 import BLOCK, Nvfp4, unpack
from edgekd.graph.model_file import read_model
from edgekd.graph.session import copied

OPSET = 23  # the first in which DequantizeLinear takes FLOAT4E2M1
IR_VERSION = 11  # the first with tensors of FLOAT4E2M1
_CODES = "/nvfp4"  # suffix of the names of FLOAT4E2M1 constants


def dequantizers(tensor: Nvfp4, stem: str) -> tuple[list[Any], list[Any]]:
    """Return nodes that compute the weights float32 [O, K] as `stem`/dq, and their initializers."""
    from onnx import TensorProto, helper, numpy_helper

    codes, scales, scale = f"{stem}{_CODES}", f"{stem}/block_scale", f"{stem}/scale"
    nibbles, blocks = pack_nibbles(tensor.nibbles), tensor.scales.tobytes()
    initializers = [
        helper.make_tensor(codes, TensorProto.FLOAT4E2M1, tensor.nibbles.shape, nibbles, raw=True),
        helper.make_tensor(scales, TensorProto.FLOAT8E4M3FN, tensor.scales.shape, blocks, raw=True),
        numpy_helper.from_array(tensor.scale.reshape(()), scale),
    ]
    of_blocks = helper.make_node("DequantizeLinear", [scales, scale], [f"{stem}/step"], f"{stem}/dequantize_scale")
    inputs, outputs = [codes, f"{stem}/step"], [f"{stem}/dq"]
    of_weights = helper.make_node("DequantizeLinear", inputs, outputs, f"{stem}/dequantize", axis=1, block_size=BLOCK)
    return [of_blocks, of_weights], initializers


def runnable(graph: Path) -> str | bytes:
    """Return a model that ONNX Runtime can load: the path of the file, or its content with expanded NVFP4 weights.

    ONNX Runtime 1.32 has no kernel for FLOAT4E2M1. The expanded weights equal the outputs of the DequantizeLinear nodes
    that they replace, bit for bit. Raises SpecError if the file cannot be read.
    """
    if _CODES.encode("ascii") not in graph.read_bytes():
        return str(graph)

    content: bytes = expanded(read_model(graph)).SerializeToString()
    return content


def expanded(model: Any) -> Any:
    """Return a copy of a model with NVFP4 weights as constants in the type of their scales."""
    from onnx import TensorProto, numpy_helper

    initializers = {each.name: each for each in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    replaced: dict[str, Any] = {}
    for name, node in makers.items():
        codes = initializers.get(node.input[0])
        if codes is not None and codes.data_type == TensorProto.FLOAT4E2M1:
            scales, scale = (initializers[each] for each in makers[node.input[1]].input)
            number = numpy_helper.to_array(scale)
            tensor = unpack(codes.raw_data, scales.raw_data, float(number), (codes.dims[0], codes.dims[1]))
            replaced[name] = numpy_helper.from_array(tensor.values.astype(number.dtype), name)
            replaced[node.input[1]] = None
    copy = copied(model)
    if not replaced:
        return copy
    nodes = [node for node in model.graph.node if node.output[0] not in replaced]
    read = {name for node in nodes for name in node.input}
    kept = [each for each in model.graph.initializer if each.name in read]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend([*kept, *(each for each in replaced.values() if each is not None)])
    return copy
