"""Rules for float16 (largest value 65504), in which TensorRT computes layers without Q/DQ.

Sources: NVIDIA/TensorRT issue 2781 (a maintainer: from 8.6 on LayerNormalization of opset 17 gets the precision that it
needs; below, the operators of a decomposed one have to be held in FP32); marcoslucianops/DeepStream-Yolo pull request
647 (D-FINE at opset 16 detects nothing in FP16, at opset 17 it works); Intellindust-AI-Lab/DEIMv2 issue 112 (its
authors: nothing detected in FP16 with TensorRT 10.4, all well with 10.6) and NVIDIA/TensorRT issue 4723 (DINOv3, 10.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgekd.graph.pins import pinned
from edgekd.graph.view import Graph, where
from edgekd.hardware.compatibility_rules import Finding, Rule, runtime_title, tensorrt_range
from edgekd.hardware.target import Target

_NATIVE_NORMALIZATION = (8, 6)
_TRANSFORMERS_IN_HALF = (10, 6)


def _pins(graph: Graph, target: Target) -> Iterator[Finding]:
    """Nodes whose values on calibration frames exceeded the range of float16, or came close to its limit."""
    names = pinned(graph.model)
    nodes = [node for node in graph.nodes if node.name in names]
    if nodes and target.on_tensorrt:
        what = f"{len(nodes)} nodes have values up to {max(names.values()):.3g}, or constants, that float16 cannot hold"
        yield Finding("note", where(nodes), what, "nothing: they are held in float32, which the graph's metadata says")


def _decomposed_normalization(graph: Graph, target: Target) -> Iterator[Finding]:
    nodes, trt = [node for node in graph.of("Sqrt") if _of_a_variance(graph, node)], tensorrt_range(target)
    if not nodes or not target.on_tensorrt:
        return
    what = f"{len(nodes)} normalizations written with older operators: their squares may overflow in FP16"
    change = "export with opset 17 or newer: LayerNormalization is computed in FP32"
    if trt and trt[0] < _NATIVE_NORMALIZATION:
        change = f"quantize: calibration finds those that overflow; {runtime_title(target)} has no LayerNormalization"
    yield Finding("note", where(nodes), what, change)


def _of_a_variance(graph: Graph, root: Any) -> bool:
    """Return whether the input of a Sqrt is ReduceMean(x * x) + epsilon."""
    addition = graph.producers.get(root.input[0])
    if addition is None or addition.op_type != "Add":
        return False
    means = [by for name in addition.input if (by := graph.producers.get(name)) and by.op_type == "ReduceMean"]
    squares = [by for mean in means if (by := graph.producers.get(mean.input[0]))]
    return any(each.op_type == "Pow" or (each.op_type == "Mul" and len({*each.input}) == 1) for each in squares)


def _attention(graph: Graph, target: Target) -> Iterator[Finding]:
    nodes, trt = graph.of("LayerNormalization"), tensorrt_range(target)
    if nodes and graph.of("Softmax") and trt and trt[0] < _TRANSFORMERS_IN_HALF:
        what = (
            f"transformers have failed in FP16 before TensorRT 10.6 (DEIMv2, DINOv3); this is {runtime_title(target)}"
        )
        yield Finding(
            "note", where(nodes), what, "use TensorRT 10.6 or newer, or see whether the agent's self-test passes"
        )


HALF_RULES: tuple[Rule, ...] = (_pins, _decomposed_normalization, _attention)
