"""ONNX Runtime on the CPU: for hosts without TensorRT, and the runtime of most tests.

Its engine is the graph as optimised for this processor, so that it depends on the machine and the version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes import networks
from edgekd.agent.runtimes.precision import REFORMAT, UNKNOWN, precision_named
from edgekd.agent.runtimes.types import FLOAT, BuildOptions, EngineDescription, Layer, LibrarySession, Runtime, noise
from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.state.slots import Slot

_ERRORS_ONLY = 3  # log levels: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
PROFILED_RUNS = 20
"""Runs of a profile; the minimum of each node counts, as other programs only add to it."""
WARM_UP_RUNS = 3
_KERNEL = "_kernel_time"
"""Ending of the names of node events in a profile."""
_COPIES = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Cast")
"""Operators that convert the type or layout of a tensor."""
_INT8 = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")
"""Prefixes of the operators that compute in INT8."""


class OnnxRuntime(Runtime):
    """ONNX Runtime with its provider for CPUs."""

    name = "onnxruntime"

    def version(self) -> str:
        for distribution in _DISTRIBUTIONS:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        import onnxruntime

        return str(onnxruntime.__version__)

    def problem(self) -> str | None:
        return None if find_spec("onnxruntime") else "onnxruntime is not installed"

    def build(self, slot: Slot, engine: Path, options: BuildOptions) -> EngineDescription:
        with networks.scratch_folder(engine) as folder:
            network = networks.network(slot, options, folder, int8_constants=True)
            _session(network.path, optimise_into=engine)
        return EngineDescription("graph" if options.source != FLOAT else network.float_type)

    def load(self, engine: Path) -> LibrarySession:
        return _library_session(_session(engine))

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """Return the layers of a few profiled runs; their operators determine the precision. Raises DeviceError."""
        import numpy as np

        with TemporaryDirectory(prefix="edgekd-") as folder:
            native = _session(engine, profile_into=Path(folder, "profile"))
            session, port = _library_session(native), native.get_inputs()[0]
            shape = [side if isinstance(side, int) else 1 for side in port.shape]  # a dynamic one has a name
            batch = noise(shape, np.uint8 if port.type == "tensor(uint8)" else np.float32)
            for _ in range(WARM_UP_RUNS + PROFILED_RUNS):
                session.run(batch)
            events = json.loads(Path(native.end_profiling()).read_bytes())
        return profiled_layers(events, WARM_UP_RUNS)

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """Return all outputs of the network as written, without optimisation. Raises DeviceError."""
        native = _session(onnx)
        names, input_name = [each.name for each in native.get_outputs()], native.get_inputs()[0].name
        try:
            return [dict(zip(names, native.run(None, {input_name: batch}))) for batch in batches]  # noqa: B905
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot run the network: {error}") from error


def _library_session(native: Any) -> LibrarySession:
    name = native.get_inputs()[0].name
    return LibrarySession("ONNX Runtime", lambda batch: native.run(None, {name: batch})[0])


def profiled_layers(events: Iterable[Mapping[str, Any]], warm_up: int) -> list[Layer]:
    """Return the nodes in a profile in execution order, with the minimum of their times. Pure.

    warm_up: number of runs at the beginning that do not count.
    """
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL):
            nodes.setdefault(str(event["args"]["node_index"]), []).append(event)
    layers = []
    for runs in nodes.values():
        arguments, name = runs[0]["args"], str(runs[0]["name"])
        layers.append(
            Layer(
                name[: -len(_KERNEL)],
                str(arguments["op_name"]),
                _precision(arguments),
                int(arguments["parameter_size"]),
                int(arguments["output_size"]),
                min(float(run["dur"]) for run in runs[warm_up:]) / 1000,
            )
        )
    return layers


def _precision(arguments: Mapping[str, Any]) -> str:
    """Return a node's precision: by its operator, else by its first input of a known type."""
    operator = str(arguments["op_name"])
    if operator in _COPIES:
        return REFORMAT
    if operator.startswith(_INT8):
        return "int8"
    types = (precision_named(name) for each in arguments.get("input_type_shape", ()) for name in each)
    return next(filter(None, types), UNKNOWN)


def _session(graph: Path | bytes, optimise_into: Path | None = None, profile_into: Path | None = None) -> Any:
    """Return an InferenceSession on a graph that is optimised already, or on one that is optimised into a file.

    profile_into: prefix of the path of its profile; None for no profile.
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
        source = graph if isinstance(graph, bytes) else str(graph)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = "the network in float" if isinstance(graph, bytes) else graph.name
        raise DeviceError(f"ONNX Runtime cannot load {name}: {error}", fix="build the engine again") from error
