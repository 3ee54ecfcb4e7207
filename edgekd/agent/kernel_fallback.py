"""Builds that go on where a builder has no INT8 kernel for a layer: that layer in float, in the end all of them. Pure.

Volta and Turing GPUs (SM 7.2 and 7.5) have no INT8 kernel for some shapes of a layer, and TensorRT then ends the build
with "Could not find any implementation for node NAME".
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.agent.runtimes.types import FLOAT, Wish

if TYPE_CHECKING:
    from edgekd.formats.qdq_graph import QdqGraph

MAX_BUILDS = 8
"""Builds with ever more layers in float before all are; each takes minutes on a Jetson."""
_SEPARATORS = re.compile(r"\s\+\s|\s*\|\|\s*|[{}()\[\],]|\.\.\.")
_RANGE = re.compile(r"\[(?P<first>[^\[\]]+)\.\.\.(?P<last>[^\[\]]+)\]")


def request_without(wish: Wish, node: str, graph: QdqGraph, builds: int) -> Wish | None:
    """Return what to build next after `builds` builds, the last of which found no kernel for `node`.

    None where the last build was in float already.
    """
    if wish.source == FLOAT:
        return None
    more = [name for name in layers_in(node, graph) if name not in wish.float_layers]
    if more and builds < MAX_BUILDS:
        return replace(wish, float_layers=(*wish.float_layers, *more))
    return replace(wish, source=FLOAT, float_layers=())


def layers_in(node: str, graph: QdqGraph) -> tuple[str, ...]:
    """Return the names of the layers with Q/DQ in a builder's name of fused layers, in graph order.

    node: such as `/model.0/conv/Conv + PWN(/model.0/act/Sigmoid, ...)`, or `{ForeignNode[first...last]}`, which stands
    for all that lie between. It may also name the QuantizeLinear or DequantizeLinear in front of a layer, or weights.
    """
    from edgekd.formats.qdq_graph import DEQUANTIZE, QUANTIZE  # NumPy, which most commands do without

    parts = {part.strip() for part in _SEPARATORS.split(node)}
    positions = {each.name: index for index, each in enumerate(graph.nodes)}
    for found in _RANGE.finditer(node):
        first, last = (positions.get(found[name].strip()) for name in ("first", "last"))
        if first is not None and last is not None:
            parts.update(each.name for each in graph.nodes[min(first, last) : max(first, last) + 1])
    named = []
    for each in graph.nodes:
        if each.operator in (QUANTIZE, DEQUANTIZE):
            continue
        pairs = [graph.dequantizers[name] for name in each.inputs if name in graph.dequantizers]
        before = {name for pair in pairs for name in (pair.name, pair.inputs[0])}
        before.update(graph.quantizers[pair.inputs[0]].name for pair in pairs if pair.inputs[0] in graph.quantizers)
        if pairs and not parts.isdisjoint({each.name, *before}):
            named.append(each.name)
    return tuple(named)
