"""ONNX Runtime on the CPU: for hosts without TensorRT, and as the stand-in with which everything else is tested.

Its engine is the graph as ONNX Runtime has optimised it for this processor, so it belongs to a machine and a version,
as TensorRT's does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes.precision import REFORMAT, UNKNOWN, precision_named
from edgekd.agent.runtimes.types import FLOAT, Inspection, Layer, Made, Wish
from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.slots import Slot

_ERRORS_ONLY = 3  # log levels: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
PROFILED_RUNS = 20
"""Runs that are profiled; the least time of each node counts, as other programs only add to it."""
_WARM_UP_RUNS = 3
_KERNEL = "_kernel_time"
"""How the profiler marks the events of nodes."""
_COPIES = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Cast")
"""Operators that change a tensor's type or layout and compute nothing."""
_INT8 = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")
"""How the names of the operators begin that compute in INT8."""


class OnnxRuntime:
    """ONNX Runtime with its provider for CPUs."""

    name = "onnxruntime"

    def version(self) -> str:
        """The version of the installed package, which need not be imported for it."""
        from importlib import metadata

        for distribution in _DISTRIBUTIONS:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        import onnxruntime

        return str(onnxruntime.__version__)

    def problem(self) -> str | None:
        """Usable where it is installed."""
        return None if find_spec("onnxruntime") else "onnxruntime is not installed"

    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        """Write the graph as it is optimised here. Raises DeviceError."""
        from edgekd.agent.runtimes import networks

        with networks.scratch_folder(engine) as folder:
            network = networks.network(slot, wish, folder, int8_constants=True)
            _session(network.path, optimise_into=engine)
        return Made("graph" if wish.source != FLOAT else network.float_type)

    def load(self, engine: Path) -> OnnxRuntimeSession:
        """Open an optimised graph. Raises DeviceError."""
        return OnnxRuntimeSession(_session(engine))

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """Return the layers of a few profiled runs; their operators tell the precision. Raises DeviceError."""
        import tempfile

        import numpy as np

        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            native = _session(engine, profile_into=Path(folder, "profile"))
            session, port = OnnxRuntimeSession(native), native.get_inputs()[0]
            noise = np.random.RandomState(0).random_sample(port.shape).astype(np.float32)
            for _ in range(_WARM_UP_RUNS + PROFILED_RUNS):
                session.run(noise)
            events = json.loads(Path(native.end_profiling()).read_bytes())
        return profiled_layers(events, _WARM_UP_RUNS)

    def inspect(self, engine: Path) -> Inspection | None:
        """ONNX Runtime has no inspector."""
        return None

    def times(self, engine: Path, iterations: int, seconds: float) -> Sequence[float] | None:
        """Its sessions are timed."""
        return None

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """What the network gives as it is written, without optimisation. Raises DeviceError."""
        native = _session(onnx)
        names, given = [each.name for each in native.get_outputs()], native.get_inputs()[0].name
        try:
            return [dict(zip(names, native.run(None, {given: batch}))) for batch in batches]  # noqa: B905
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot run the network: {error}") from error

    def clock(self) -> float:
        """This machine's monotonic high-resolution clock."""
        return time.perf_counter()


class OnnxRuntimeSession:
    """A graph with one input and one output, opened by ONNX Runtime."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self._input = native.get_inputs()[0].name

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for `batch` float32 [1, 3, h, w]. Raises DeviceError."""
        if self._native is None:
            raise DeviceError("the ONNX Runtime session is closed", fix="load the engine again")
        try:
            output: np.ndarray = self._native.run(None, {self._input: batch})[0]
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise DeviceError(f"ONNX Runtime cannot run the engine on {batch.dtype} {batch.shape}: {error}") from error
        return output

    def scratch_bytes(self) -> int | None:
        """ONNX Runtime does not say."""
        return None

    def close(self) -> None:
        """Free the graph."""
        self._native = None


def profiled_layers(events: Iterable[Mapping[str, Any]], warm_up: int) -> list[Layer]:
    """Return the nodes in a profile in the order in which they ran, with the least of their times. Pure.

    warm_up: how many runs come first that do not count.
    """
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL):
            nodes.setdefault(str(event["args"]["node_index"]), []).append(event)
    layers = []
    for runs in nodes.values():
        told, name = runs[0]["args"], str(runs[0]["name"])
        layers.append(
            Layer(
                name[: -len(_KERNEL)],
                str(told["op_name"]),
                _precision(told),
                int(told["parameter_size"]),
                int(told["output_size"]),
                min(float(run["dur"]) for run in runs[warm_up:]) / 1000,
            )
        )
    return layers


def _precision(told: Mapping[str, Any]) -> str:
    """Return a node's precision: by its operator, else by its first input of a known type."""
    operator = str(told["op_name"])
    if operator in _COPIES:
        return REFORMAT
    if operator.startswith(_INT8):
        return "int8"
    types = (precision_named(name) for each in told.get("input_type_shape", ()) for name in each)
    return next(filter(None, types), UNKNOWN)


def _session(graph: Path | bytes, optimise_into: Path | None = None, profile_into: Path | None = None) -> Any:
    """Return an InferenceSession on a graph that is optimised already, or on one that is optimised into a file.

    profile_into: how the path of its profile begins; None for no profile.
    """
    # From 1.32 on it sends events, and keeps a database of them at home, unless this is set before its import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = usable_cores()
    if profile_into is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_into)
    if optimise_into is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimise_into)
    try:
        given = graph if isinstance(graph, bytes) else str(graph)
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = "the network in float" if isinstance(graph, bytes) else graph.name
        raise DeviceError(f"ONNX Runtime cannot load {name}: {error}", fix="build the engine again") from error
