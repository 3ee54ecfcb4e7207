"""Times of layers: predicted for a target, or measured by ONNX Runtime's profiler on this machine."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.core.errors import DeviceError, SpecError
from edgekd.graph.model_file import read_model
from edgekd.hardware.budget import Basis
from edgekd.hardware.predict.result import predict_graph
from edgekd.hardware.target import Target

RUNS = 20
"""Timed runs, of which the median is used."""
WARM_UP = 5
"""Runs before these: the first runs of a session are slower."""


@dataclass(frozen=True)
class LayerTimes:
    """Microseconds of each layer by the name of its node, and of kernels that belong to none.

    basis: `predicted` for the target, `measured` on it, or measured on another machine, a `stand-in`; where: device and
    runtime.
    """

    basis: Basis
    where: str
    us: Mapping[str, float]
    other_us: float


def predicted(graph: Path, target: Target) -> LayerTimes | None:
    """Return the times that `edgekd predict` predicts for a graph; None if the target cannot be predicted."""
    try:
        prediction = predict_graph(graph, target)
    except SpecError:
        return None
    layers = {point.name: round(point.us, 3) for point in prediction.roof.points}
    where = f"{target.title}, {prediction.precision}"
    return LayerTimes("predicted", where, layers, round(prediction.roof.other_us, 3))


def profiled(graph: Path, basis: Basis, cpu: str) -> LayerTimes:
    """Return the times of ONNX Runtime's profiler on this machine's CPU: the medians of RUNS runs on random input.

    Raises DeviceError where the graph cannot run, or its input has no fixed shape.
    """
    import onnxruntime

    from edgekd.compress.quantization.layers import is_layer
    from edgekd.graph.nvfp4 import runnable
    from edgekd.graph.session import cpu_options
    from edgekd.graph.view import Graph

    opened = Graph(read_model(graph))
    layers = [node.name for node in opened.nodes if node.name and is_layer(opened, node)]
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        options = cpu_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        try:
            session = onnxruntime.InferenceSession(runnable(graph), options, providers=["CPUExecutionProvider"])
            source = session.get_inputs()[0]
            noise = np.random.default_rng(0).random(source.shape, np.float32)
            if source.type == "tensor(uint8)":
                noise = (noise * 255).astype(np.uint8)
            for _ in range(WARM_UP + RUNS):
                session.run(None, {source.name: noise})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise DeviceError(f"{graph}: ONNX Runtime cannot profile the graph: {error}") from error
    us, other = attributed(events, layers)
    return LayerTimes(basis, f"{cpu}, ONNX Runtime {onnxruntime.__version__}", us, other)


def attributed(events: Iterable[Mapping[str, object]], layers: Iterable[str]) -> tuple[dict[str, float], float]:
    """Return the median microseconds of each layer in a profile, and the sum of those that belong to none. Pure.

    The name of a kernel begins with that of its layer; of several such layers, the one with the longest name is used.
    """
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            kernels[name.removesuffix("_kernel_time")].append(float(event["dur"]))  # type: ignore[arg-type]
    longest_first = sorted(layers, key=len, reverse=True)
    us: dict[str, float] = defaultdict(float)
    other = 0.0
    for name, runs in kernels.items():
        took = float(np.median(runs[WARM_UP:] or runs))
        layer = next((each for each in longest_first if name.startswith(each)), None)
        if layer is None:
            other += took
        else:
            us[layer] += took
    return {name: round(took, 3) for name, took in us.items()}, round(other, 3)
