"""OpenVINO on the CPU: for cameras with an x86 processor, where its INT8 kernels are the fast ones.

Its engine is the compiled model as OpenVINO exports it, so that it depends on the machine and the version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes import networks
from edgekd.agent.runtimes.precision import NO_WORK, REFORMAT, UNKNOWN, precision_named
from edgekd.agent.runtimes.types import FLOAT, BuildOptions, EngineDescription, Layer, LibrarySession, Runtime, noise
from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.state.slots import Slot

PROFILED_RUNS = 20
"""Runs of a profile; the minimum of each layer counts, as other programs only add to it."""
_WARM_UP_RUNS = 3
_DEVICE = "CPU"
_COPIES = ("Reorder", "Convert", "FakeQuantize")
"""Kinds of layers that convert the type or layout of a tensor."""
_WITHOUT_WORK = ("Const", "Input", "Output")
_TYPES = {"i8": "int8", "u8": "int8", "f32": "fp32", "f16": "fp16", "bf16": "bf16", "i32": "int32", "i64": "int64"}
_BYTES = {"int8": 1, "fp16": 2, "bf16": 2, "int64": 8}
_DEFAULT_BYTES = 4


class OpenVino(Runtime):
    """OpenVINO with its plugin for CPUs."""

    name = "openvino"

    def version(self) -> str:
        return metadata.version("openvino")

    def problem(self) -> str | None:
        return None if find_spec("openvino") else "openvino is not installed"

    def build(self, slot: Slot, engine: Path, options: BuildOptions) -> EngineDescription:
        with networks.scratch_folder(engine) as folder:
            network = networks.network(slot, options, folder, int8_constants=True)
            blob = _compiled(network.path).export_model()
        engine.write_bytes(blob if isinstance(blob, bytes) else blob.getvalue())
        return EngineDescription("graph" if options.source != FLOAT else network.float_type)

    def load(self, engine: Path) -> LibrarySession:
        return _library_session(_imported(engine, {}).create_infer_request())

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """Return the layers of a few profiled runs, by the plugin's counters. Raises DeviceError."""
        native = _imported(engine, {"PERF_COUNT": True})
        shape = [side.min_length or 1 for side in native.inputs[0].partial_shape]  # 0 for a dynamic one
        batch = noise(shape, native.inputs[0].element_type.to_dtype())
        request, runs = native.create_infer_request(), []
        session = _library_session(request)
        for _ in range(_WARM_UP_RUNS):
            session.run(batch)
        for _ in range(PROFILED_RUNS):
            session.run(batch)
            runs.append({each.node_name: each.real_time.total_seconds() * 1000 for each in request.profiling_info})
        described = [_described(node) for node in native.get_runtime_model().get_ordered_ops()]
        return profiled_layers(described, runs)

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """Return all outputs of a model compiled for this alone. Raises DeviceError."""
        with TemporaryDirectory(prefix="edgekd-") as folder:
            path = Path(folder, "network.onnx")
            path.write_bytes(onnx)
            native = _compiled(path)
        names = [port.get_any_name() for port in native.outputs]
        request = native.create_infer_request()
        try:
            return [dict(zip(names, (each.copy() for each in request.infer([batch]).values()))) for batch in batches]  # noqa: B905
        except Exception as error:
            raise DeviceError(f"OpenVINO cannot run the network: {error}") from error


def _library_session(request: Any) -> LibrarySession:
    return LibrarySession("OpenVINO", lambda batch: request.infer([batch], share_inputs=True)[0])


def profiled_layers(described: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, float]]) -> list[Layer]:
    """Return the layers of a compiled model in execution order, with the minimum of their times. Pure.

    described: of each layer the attributes of its runtime model, its `name` and the number of output `elements`;
    runs: milliseconds by name.
    """
    layers = []
    for layer in sorted(described, key=lambda each: int(each["execOrder"])):
        kind, name = layer["layerType"], layer["name"]
        fused = [each for each in layer["originalLayersNames"].split(",") if each]
        written = _TYPES.get(layer["outputPrecisions"].split(",")[0], UNKNOWN)
        layers.append(
            Layer(
                " + ".join(fused) or name,
                kind,
                _precision(kind, layer["primitiveType"]),
                activation_bytes=int(layer["elements"]) * _BYTES.get(written, _DEFAULT_BYTES),
                ms=min(run.get(name, 0.0) for run in runs),
            )
        )
    return layers


def _precision(kind: str, primitive: str) -> str:
    """Return a layer's precision, by its kind and its primitive's name, such as `brgconv_avx512_I8`."""
    if kind in _WITHOUT_WORK:
        return NO_WORK
    if kind in _COPIES:
        return REFORMAT
    ending = primitive.rsplit("_", 1)[-1].lower()
    return _TYPES.get(ending) or precision_named(ending) or UNKNOWN


def _described(node: Any) -> dict[str, Any]:
    """Return the runtime model's description of a layer, as plain types."""
    info = node.get_rt_info()
    keys = ("execOrder", "layerType", "primitiveType", "originalLayersNames", "outputPrecisions")
    sizes = [port.get_shape() for port in node.outputs() if port.get_partial_shape().is_static]
    return {
        "name": node.get_friendly_name(),
        "elements": sum(prod(map(int, each)) for each in sizes),
        **{key: info[key].astype(str) for key in keys},
    }


def _settings() -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_cores(),
        # OpenVINO would compute float32 layers in bfloat16 on CPUs that have it; the graph decides instead.
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _compiled(graph: Path) -> Any:
    """Return a compiled model. Raises DeviceError.

    By `convert_model`, whose offline transformations turn Q/DQ into INT8 layers of the plugin: compiled straight
    from the reader, OpenVINO 2026.4 computed networks with shared scales wrongly, without a warning.
    """
    import openvino

    try:
        return openvino.Core().compile_model(openvino.convert_model(str(graph)), _DEVICE, _settings())
    except Exception as error:
        raise DeviceError(f"OpenVINO cannot compile {graph.name}: {error}", fix="name another runtime") from error


def _imported(engine: Path, more: Mapping[str, Any]) -> Any:
    import openvino

    try:
        return openvino.Core().import_model(engine.read_bytes(), _DEVICE, {**_settings(), **more})
    except Exception as error:
        raise DeviceError(f"OpenVINO cannot load {engine.name}: {error}", fix="build the engine again") from error
