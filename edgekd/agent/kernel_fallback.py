"""Builds that go on where a builder has no INT8 kernel for a layer: that layer in float, in the end all of them. Pure.

TensorRT 8 has no INT8 kernel for some layers, most often depthwise convolutions, and then ends the build with "Could
not find any implementation for node NAME" (NVIDIA/TensorRT issue 3385: SM 8.7; issue 4060: SM 7.5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.agent.runtimes.types import FLOAT, Wish

if TYPE_CHECKING:
    from edgekd.core.formats.qdq_graph import QdqGraph

MAX_BUILDS = 8
"""Builds with ever more layers in float before all are; each takes minutes on a Jetson."""
_SEPARATORS = re.compile(r"\s\+\s|\s*\|\|\s*|[{}()\[\],]|\.\.\.")
_ADDED = re.compile(r"(_clone_\d+|_(de)?quantize_scale_node)+$")  # by TensorRT, to names of the graph's
_FUSED = "ForeignNode["


def request_without(wish: Wish, node: str, graph: QdqGraph, builds: int) -> Wish | None:
    """Return what to build next after `builds` builds, the last of which found no kernel for `node`.

    None where the last build was in float already.
    """
    if wish.source == FLOAT:
        return None
    more = [name for name in _with_depthwise(layers_in(node, graph), graph) if name not in wish.float_layers]
    if more and builds < MAX_BUILDS:
        return replace(wish, float_layers=(*wish.float_layers, *more))
    return replace(wish, source=FLOAT, float_layers=())


def layers_in(node: str, graph: QdqGraph) -> tuple[str, ...]:
    """Return the names of the layers with Q/DQ in a builder's name of fused layers, in graph order.

    node: such as `/model.0/conv/Conv + PWN(/model.0/act/Sigmoid, ...)`, or `{ForeignNode[first...last]}`, which stands
    for all that lie between. It may also name the QuantizeLinear or DequantizeLinear in front of a layer, or weights.
    """
    from edgekd.core.formats.qdq_graph import float32_names, is_pair  # NumPy, which most commands do without

    parts = _names(node)
    if _FUSED in node and "..." in node:
        positions = {each.name: index for index, each in enumerate(graph.nodes)}
        sides = [[positions[name] for name in _names(side) if name in positions] for side in node.rsplit("...", 1)]
        if all(sides):
            parts.update(each.name for each in graph.nodes[max(sides[0]) : min(sides[1]) + 1])
    named = []
    for each in graph.nodes:
        if is_pair(each):
            continue
        pairs = [graph.dequantizers[name] for name in each.inputs if name in graph.dequantizers]
        before = {name for pair in pairs for name in (pair.name, pair.inputs[0], *float32_names(pair.inputs[0]))}
        before.update(graph.quantizers[pair.inputs[0]].name for pair in pairs if pair.inputs[0] in graph.quantizers)
        if pairs and not parts.isdisjoint({each.name, *before}):
            named.append(each.name)
    return tuple(named)


def _names(node: str) -> set[str]:
    """The names in a builder's name, without what TensorRT adds to them."""
    return {_ADDED.sub("", part.strip()) for part in _SEPARATORS.split(node)} - {""}


def _with_depthwise(layers: Sequence[str], graph: QdqGraph) -> tuple[str, ...]:
    """The layers, and where one is a depthwise or grouped convolution all of these: each would cost a build."""
    grouped = [each.name for each in graph.nodes if each.integers.get("group", 1) > 1 and layers_in(each.name, graph)]
    return tuple(layers) if set(layers).isdisjoint(grouped) else tuple(dict.fromkeys((*layers, *grouped)))
