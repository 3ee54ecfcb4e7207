"""Nodes that must compute in float32, because float16 cannot hold their values: an entry of a graph's metadata.

The entry travels with the graph, as the scales of Q/DQ do. `graph.fp16` reads it, `hardware.compatibility` reports it,
and on the camera a builder that chooses types itself holds the nodes in FP32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgekd.core.formats.onnx_bytes import FLOAT32_NODES, float32_nodes_in


def pin(model: Any, largest: Mapping[str, float]) -> None:
    """Write the nodes of a ModelProto that must compute in float32, with their largest magnitudes; none removes it."""
    kept = [entry for entry in model.metadata_props if entry.key != FLOAT32_NODES]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if largest:
        rounded = {name: float(f"{value:.3g}") for name, value in largest.items()}
        model.metadata_props.add(key=FLOAT32_NODES, value=json.dumps(rounded))


def pinned(model: Any) -> dict[str, float]:
    """Return the nodes of a ModelProto that must compute in float32, with their largest magnitudes.

    Empty where there is no entry, or one of another program that is no such object.
    """
    return float32_nodes_in({entry.key: entry.value for entry in model.metadata_props})
