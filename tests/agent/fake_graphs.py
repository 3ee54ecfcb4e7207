"""Small graphs with and without Q/DQ, and the fake builder's plans for them, for the tests of the fakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from fake_tensorrt_builder import Behaviour, Plan, Request, plan
from onnx import TensorProto, helper, numpy_helper

SIDE = 4


def tensor(name: str, shape: tuple[int, ...], kind: Any = np.float32, value: float = 1) -> onnx.TensorProto:
    """Return a constant tensor filled with one value."""
    return numpy_helper.from_array(np.full(shape, value, kind), name)


def model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    """Return a model with the input `x` [1, 2, 4, 4] and the output `y`."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, SIDE, SIDE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def float_chain() -> onnx.ModelProto:
    """Return a chain of two convolutions `a` and `b`, each with Sigmoid and Mul."""
    nodes = []
    for name, source, result in (("a", "x", "a/y"), ("b", "a/y", "y")):
        nodes += [
            helper.make_node("Conv", [source, f"{name}.weight"], [f"{name}/c"], name),
            helper.make_node("Sigmoid", [f"{name}/c"], [f"{name}/s"], f"{name}/Sigmoid"),
            helper.make_node("Mul", [f"{name}/c", f"{name}/s"], [result], f"{name}/Mul"),
        ]
    return model(nodes, [tensor(f"{name}.weight", (2, 2, 1, 1)) for name in "ab"])


def quantized_chain(*quantized: str, constants: bool = False) -> onnx.ModelProto:
    """Return `float_chain` with Q/DQ around these convolutions. constants: INT8 weights with DequantizeLinear only."""
    chain = float_chain()
    nodes, initializers = [], list(chain.graph.initializer)
    for node in chain.graph.node:
        if node.name in quantized:
            for index, axis in ((0, None), (1, 0)):
                name, shape = node.input[index], () if index == 0 else (2,)
                scale, zero = f"{name}/scale", f"{name}/zero"
                initializers += [tensor(scale, shape, value=0.1), tensor(zero, shape, np.int8, 0)]
                options = {} if axis is None else {"axis": axis}
                code = f"{name}/int8"
                if index and constants:
                    initializers.append(tensor(code, (2, 2, 1, 1), np.int8))
                else:
                    nodes.append(
                        helper.make_node("QuantizeLinear", [name, scale, zero], [code], f"{name}/Q", **options)
                    )
                result = f"{name}/dq"
                nodes.append(
                    helper.make_node("DequantizeLinear", [code, scale, zero], [result], f"{name}/DQ", **options)
                )
                node.input[index] = result
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    return model(nodes, [each for each in initializers if each.name in used])


def dequantized(
    data: onnx.TensorProto, scale: onnx.TensorProto, zero: onnx.TensorProto | None, **options: int
) -> onnx.ModelProto:
    """Return a model that adds a constant after QuantizeLinear and DequantizeLinear to the input."""
    given = [each.name for each in (scale, zero) if each is not None]
    nodes = [
        helper.make_node("QuantizeLinear", [data.name, *given], ["q"], "Q", **options),
        helper.make_node("DequantizeLinear", ["q", *given], ["dq"], "DQ", **options),
        helper.make_node("Conv", ["x", "dq"], ["y"], "conv"),
    ]
    return model(nodes, [each for each in (data, scale, zero) if each is not None])


def scales(graph: onnx.ModelProto, *without: str) -> dict[str, float]:
    """Return a scale for every computed tensor except some."""
    names = ["x", *(name for node in graph.graph.node for name in node.output)]
    return {name: 0.1 for name in names if name not in without}


class Log(list[tuple[str, str]]):
    """Collects log messages."""

    def __call__(self, severity: str, message: str) -> None:
        self.append((severity, message))

    def at(self, severity: str) -> list[str]:
        """Return the messages of one severity."""
        return [message for each, message in self if each == severity]


def planned(graph: onnx.ModelProto, request: Request, **options: Any) -> tuple[Plan | None, Log]:
    """Return the builder's plan for a graph, None if it refuses it, and its messages."""
    log = Log()
    return plan(graph, request, Behaviour(**options), log), log


def succeeded(graph: onnx.ModelProto, request: Request, **options: Any) -> Plan:
    """Return the builder's plan for a graph that it must accept."""
    result, log = planned(graph, request, **options)
    assert result is not None, log
    return result
