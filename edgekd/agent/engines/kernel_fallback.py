"""Build options after a missing INT8 kernel: that layer in float, in the end all of them. Pure.

TensorRT 8 has no INT8 kernel for some layers, most often depthwise convolutions, and then ends the build with "Could
not find any implementation for node NAME" (NVIDIA/TensorRT issue 3385: SM 8.7; issue 4060: SM 7.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.agent.runtimes.fused_names import fused_nodes, operand_names
from edgekd.agent.runtimes.types import FLOAT, BuildOptions

if TYPE_CHECKING:
    from edgekd.core.formats.qdq_graph import QdqGraph

MAX_BUILDS = 8
"""Builds with ever more layers in float before all are; each takes minutes on a Jetson."""


def options_without(options: BuildOptions, node: str, graph: QdqGraph, builds: int) -> BuildOptions | None:
    """Return the options of the next build after `builds` builds, the last of which found no kernel for `node`.

    None where the last build was in float already.
    """
    if options.source == FLOAT:
        return None
    more = [name for name in _with_grouped(layers_in(node, graph), graph) if name not in options.float_layers]
    if more and builds < MAX_BUILDS:
        return replace(options, float_layers=(*options.float_layers, *more))
    return replace(options, source=FLOAT, float_layers=())


def layers_in(node: str, graph: QdqGraph) -> tuple[str, ...]:
    """Return the names of the layers with Q/DQ in a builder's name of fused layers, in graph order.

    node: may also name the QuantizeLinear or DequantizeLinear in front of a layer, or weights.
    """
    from edgekd.core.formats.qdq_graph import is_pair  # NumPy, which most commands do without

    operands = [[] if is_pair(each) else operand_names(graph, each) for each in graph.nodes]
    positions = {each.name: index for index, each in enumerate(graph.nodes)}
    for index, names in enumerate(operands):
        for name in names:
            positions.setdefault(name, index)
    named = set(fused_nodes(node, positions))
    return tuple(
        each.name
        for each, names in zip(graph.nodes, operands)  # noqa: B905 strict= is Python 3.10
        if names and not named.isdisjoint((each.name, *names))
    )


def _with_grouped(layers: Sequence[str], graph: QdqGraph) -> tuple[str, ...]:
    """Return the layers, and where one is a grouped convolution all of these: each would cost a build."""
    grouped = [each.name for each in graph.nodes if each.integers.get("group", 1) > 1 and operand_names(graph, each)]
    return tuple(layers) if set(layers).isdisjoint(grouped) else tuple(dict.fromkeys((*layers, *grouped)))
