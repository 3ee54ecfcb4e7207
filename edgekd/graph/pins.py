"""Nodes that must compute in float32, because float16 cannot hold their values: an entry of a graph's metadata.

The entry is part of the graph, like the scales of Q/DQ. `graph.fp16` reads it, `hardware.compatibility` reports it, and
on the camera, the nodes are constrained to FP32 for builders that choose types themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgekd.core.formats.onnx_bytes import FLOAT32_NODES, float32_nodes_in


def pin(model: Any, largest: Mapping[str, float]) -> None:
    """Set the nodes of a ModelProto that must compute in float32, by name with their largest magnitudes, in place."""
    kept = [entry for entry in model.metadata_props if entry.key != FLOAT32_NODES]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if largest:
        rounded = {name: float(f"{value:.3g}") for name, value in largest.items()}
        model.metadata_props.add(key=FLOAT32_NODES, value=json.dumps(rounded))


def pinned(model: Any) -> dict[str, float]:
    """Return the nodes of a ModelProto that must compute in float32, with their largest magnitudes.

    Empty without such an entry, or if it is not a JSON object of numbers.
    """
    return float32_nodes_in({entry.key: entry.value for entry in model.metadata_props})
