"""Parser of the names that builders give to fused layers, such as `/0/conv/Conv + PWN(/0/act/Sigmoid, ...)`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.core.formats.onnx_bytes import Node
    from edgekd.core.formats.qdq_graph import QdqGraph

_SEPARATORS = re.compile(r"[\s,(){}\[\]|+]+")
_RANGE = "..."  # between the first and the last of the nodes that `ForeignNode[first...last]` stands for
_ENDINGS = "/_:."
"""Characters in front of a suffix that a runtime appends to the name of a node."""


def fused_nodes(name: str, positions: Mapping[str, int]) -> list[str]:
    """Return the known names in a builder's name of fused layers, ranges filled in graph order.

    positions: by known name, of nodes and of weights, its position in the graph.
    """
    names: list[str] = []
    for token in filter(None, _SEPARATORS.split(name)):
        ends = [_known(end, positions) for end in token.split(_RANGE)] if _RANGE in token else []
        if len(ends) == 2 and None not in ends:
            first, last = sorted(positions[end] for end in ends if end)
            names += [each for each, position in positions.items() if first <= position <= last]
            continue
        known = _known(token, positions)
        names += [known] if known else []
    return names


def operand_names(graph: QdqGraph, node: Node) -> list[str]:
    """Return the names of the Q/DQ nodes, tensors and weights in front of a node; empty where it reads no Q/DQ."""
    from edgekd.core.formats.qdq_graph import float32_names  # NumPy, which most commands do without

    names: list[str] = []
    for pair in (graph.dequantizers[name] for name in node.inputs if name in graph.dequantizers):
        codes = pair.inputs[0]
        names += [pair.name, codes, *float32_names(codes)]
        names += [graph.quantizers[codes].name] if codes in graph.quantizers else []
    return names


def _known(token: str, positions: Mapping[str, int]) -> str | None:
    """Return the longest known name that a token begins with, up to one of `_ENDINGS`."""
    while token and token not in positions:
        token = token[: max(token.rfind(ending) for ending in _ENDINGS)] if any(map(token.count, _ENDINGS)) else ""
    return token or None
