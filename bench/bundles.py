"""Bundles for benchmarks: valid, but with a network of random weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekd.core.bundle.archive import file_entry, pack
from edgekd.core.bundle.manifest import (
    BuildLimits,
    DetectionThresholds,
    Evidence,
    GraphScore,
    Licence,
    Lineage,
    Manifest,
    TargetName,
)
from edgekd.core.formats import fp4x, packed_graph
from edgekd.deploy.agent_zipapp import NAME as AGENT
from edgekd.deploy.agent_zipapp import agent_archive

HASH = "0" * 64
AGENT_BYTES = 298_000
"""Size limit of the agent in bytes, as in tests/agent/test_agent_archive.py."""
_SHAPE = (256, 256, 3, 3)
_SEED = 0


def manifest_of(name: str, sources: Mapping[str, Path], roles: Mapping[str, str], counter: int = 0) -> Manifest:
    """Return a manifest for these files. roles: by file name; files without one get the role `evidence`."""
    entries = [file_entry(path, source, roles.get(path, "evidence")) for path, source in sorted(sources.items())]
    graph = next(entry for entry in entries if entry.role == "graph")
    score = GraphScore(0.5, 0.5, graph.length, (0.5,))
    return Manifest(
        name=name,
        created_by="edgekd benchmarks",
        counter=counter,
        target=TargetName("xavier", "nvidia,jetson-agx-xavier"),
        tensorrt=None,
        detector={
            "classes": ["thing"],
            "preprocess": {
                **{"height": 64, "width": 64, "color": "rgb", "scale": 1.0, "pad_value": 0},
                **{"mean": [0.0] * 3, "std": [1.0] * 3, "center": True, "upscale": True},
            },
            "head": {"kind": "yolo", "nms": True, "strides": []},
        },
        thresholds=DetectionThresholds((0.25,), 0.7, 300),
        files=tuple(entries),
        limits=BuildLimits(None, None, None),
        evidence=Evidence(1, score, score, 1.0),
        lineage=Lineage(HASH, None, HASH, None, "none", HASH, 0, {}, ()),
        licences=(Licence("model", "NOASSERTION"),),
    )


def noise(seed: int, count: int) -> bytes:
    """Return `count` incompressible bytes, determined by the seed."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(count)


def packed_noise(count: int) -> bytes:
    """Return a packed graph of about `count` bytes: random INT8 weights in fp4x, the format that expands the most."""
    rng, each = np.random.default_rng(_SEED), sum(fp4x.packed_bytes(_SHAPE))
    tensors = [numpy_helper.from_array(_random_codes(rng), f"w{index}") for index in range(-(-count // each))]
    graph = helper.make_graph([helper.make_node("Identity", ["w0"], ["y"])], "weights", [], [], tensors)
    return packed_graph.pack(helper.make_model(graph, producer_version=onnx.__version__).SerializeToString())


def _random_codes(rng: np.random.Generator) -> np.ndarray:
    """Return INT8 codes of shape _SHAPE that fp4x can store, with multipliers and magnitudes uniformly distributed."""
    count = int(np.prod(_SHAPE))
    halves = np.array([2 * value for value in fp4x.MAGNITUDES], np.int8)
    blocks = rng.integers(1, fp4x.MULTIPLIERS + 1, count // fp4x.BLOCK).astype(np.int8)
    signs = rng.choice(np.array([-1, 1], np.int8), count)
    return (rng.choice(halves, count) * signs * blocks.repeat(fp4x.BLOCK)).reshape(_SHAPE)


def write_with_agent(folder: Path, name: str, graph: bytes, counter: int = 0) -> Path:
    """Write a bundle of this packed graph and the agent, and both files beside it. Return the bundle's path."""
    sources = {AGENT: folder / AGENT, "graph.packed": folder / "graph.packed"}
    sources[AGENT].write_bytes(agent_archive())
    sources["graph.packed"].write_bytes(graph)
    out = folder / f"{name}.edgekd"
    pack(manifest_of(name, sources, {AGENT: "agent", "graph.packed": "graph"}, counter), sources, out)
    return out
