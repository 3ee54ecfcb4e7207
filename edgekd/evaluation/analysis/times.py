"""What each layer takes: as predicted for a target, or as ONNX Runtime's profiler counts it on this machine."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.core.errors import DeviceError, SpecError
from edgekd.hardware.predict.result import predict_graph
from edgekd.hardware.target import Target

RUNS, WARM_UP = 20, 5


@dataclass(frozen=True)
class Times:
    """Microseconds of each layer by the name of its node, and of all that belongs to none.

    basis: `predicted` for the target, `measured` on it, or measured on another machine, a `stand-in`. where: on what.
    """

    basis: str
    where: str
    us: Mapping[str, float]
    other_us: float


def predicted(graph: Path, target: Target) -> Times | None:
    """The times that `edgekd predict` gives a graph on the target; None where nobody can say."""
    try:
        found = predict_graph(graph, target)
    except SpecError:
        return None
    layers = {point.name: round(point.us, 3) for point in found.roof.points}
    where = f"{target.title}, {found.document['precision']}"
    return Times("predicted", where, layers, round(found.roof.other_us, 3))


def profiled(graph: Path, shape: tuple[int, ...], basis: str, cpu: str) -> Times:
    """The times that ONNX Runtime's profiler counts on this machine's CPU: the median of RUNS, on noise.

    What the runtime makes of a layer bears its name and more: the longest name that fits is meant. shape: of the input.
    Raises DeviceError where the graph cannot run.
    """
    import onnx
    import onnxruntime

    from edgekd.compress.quantization.layers import is_layer
    from edgekd.graph.nvfp4 import runnable
    from edgekd.graph.view import Graph

    opened = Graph(onnx.load(graph))
    layers = [node.name for node in opened.nodes if node.name and is_layer(opened, node)]
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        try:
            session = onnxruntime.InferenceSession(runnable(graph), options, providers=["CPUExecutionProvider"])
            noise = np.random.default_rng(0).random(shape, np.float32)
            for _ in range(WARM_UP + RUNS):
                session.run(None, {session.get_inputs()[0].name: noise})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        except Exception as error:  # ONNX Runtime's own share no base class
            raise DeviceError(f"{graph}: ONNX Runtime cannot profile the graph: {error}") from error
    us, other = attributed(events, layers)
    return Times(basis, f"{cpu}, ONNX Runtime {onnxruntime.__version__}", us, other)


def attributed(events: Iterable[Mapping[str, object]], layers: Iterable[str]) -> tuple[dict[str, float], float]:
    """The median microseconds of each layer in a profile, and the sum of those that belong to none. Pure."""
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
