"""TensorRT's Python bindings as one generation has them, and CUDA's memory, computing with ONNX Runtime.

What a class does not have in a generation is an AttributeError, by the names in tensorrt_names.json. Beyond that the
fake holds its user to what TensorRT does: the order of calls, which flags go together, what a DLA takes, that memory is
its own and that nothing is there before the stream was waited for. An engine is the graph that the builder was given.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekd.agent.runtimes import cuda
from edgekd.formats.calibration_cache import from_text

NAMES = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text("utf-8"))
_POOLS = {"MemoryPoolType", "IBuilderConfig.set_memory_pool_limit", "IBuilderConfig.get_memory_pool_limit"}
_LEVELS = {"IBuilderConfig.builder_optimization_level"}
_BY_NAME = {
    "TensorIOMode",
    "ICudaEngine.num_io_tensors",
    *(f"ICudaEngine.get_tensor_{what}" for what in ("name", "mode", "shape", "dtype")),
    *(f"IExecutionContext.{what}" for what in ("set_tensor_address", "execute_async_v3")),
}
VERSIONS = {
    "8.2.1": ("8.6.1", _POOLS | _LEVELS | _BY_NAME | {"BuilderFlag.PREFER_PRECISION_CONSTRAINTS"}),
    "8.5.2.2": ("8.6.1", _LEVELS | {"BuilderFlag.FP8"}),
    "8.6.1": ("8.6.1", set()),
    "10.3.0": ("10.3.0", set()),
    "11.4.1": ("11.4.0.106", set()),
}
"""By version: whose recorded names it has, and which of them it does not have yet (TensorRT's release notes)."""
_PLAN = b"fake TensorRT plan\n"


@dataclass
class Behaviour:
    """What a test wants of the fake, and what it has seen.

    dla_cores: how many there are; refuses: operators that the parser does not take; int8_runs: whether layers in INT8
    are the fastest, and so chosen; fails: whether the builder finds nothing; bends: added to every output; breaks: the
    tensor that comes out wrong in INT8.
    """

    dla_cores: int = 0
    refuses: tuple[str, ...] = ()
    int8_runs: bool = True
    fails: bool = False
    bends: float = 0.0
    breaks: str = ""
    built: list[dict[str, Any]] = field(default_factory=list)


def installed(monkeypatch: pytest.MonkeyPatch, version: str, **told: Any) -> Behaviour:
    """Put the fake of a version, and of CUDA, where the real ones would be."""
    behaviour = Behaviour(**told)
    module = fake(version, behaviour)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "opened", FakeCuda)
    return behaviour


def names_of(version: str) -> dict[str, set[str]]:
    """The names of each class in a version."""
    source, without = VERSIONS[version]
    return {
        kind: {name for name in names if f"{kind}.{name}" not in without}
        for kind, names in NAMES[source].items()
        if kind not in without
    }


# -------------------------------------------------------------------------------------------------- memory and streams


class FakeCuda:
    """Memory of a GPU that a dictionary plays; work in the stream is done when it is waited for, in its order."""

    streams: dict[int, FakeCuda] = {}  # noqa: RUF012 by the handles that engines get

    def __init__(self) -> None:
        self.stream = 1000 + len(self.streams)
        self.streams[self.stream] = self
        self.memory: dict[int, np.ndarray] = {}
        self.queue: list[Callable[[], None]] = []
        self._pinned: list[np.ndarray] = []
        self.closed = False

    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        self._pinned.append(np.zeros(tuple(shape), kind))
        return self._pinned[-1]

    def allocate(self, count: int) -> int:
        address = 1 << 20 | len(self.memory) + 1
        self.memory[address] = np.zeros(count, np.uint8)
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        self._check(address, array)
        self.queue.append(lambda: np.copyto(self.memory[address], array.reshape(-1).view(np.uint8)))

    def download(self, array: np.ndarray, address: int) -> None:
        self._check(address, array)
        self.queue.append(lambda: np.copyto(array.reshape(-1).view(np.uint8), self.memory[address]))

    def wait(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def close(self) -> None:
        assert not self.queue, "closed before the stream was waited for"
        self.memory.clear()
        self.closed = True

    def _check(self, address: int, array: np.ndarray) -> None:
        assert not self.closed
        assert any(array is each for each in self._pinned), "memory that is not pinned"
        assert self.memory[address].nbytes == array.nbytes


# --------------------------------------------------------------------------------------------------------- the bindings


def fake(version: str, behaviour: Behaviour) -> ModuleType:
    """The module `tensorrt` of a version."""
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None, origin="fake")
    module.__version__ = version
    module.behaviour = behaviour
    names = names_of(version)
    for name in ("ILogger", "IProfiler", "IInt8EntropyCalibrator2"):
        if name in names:
            setattr(module, name, type(name, (), {}))
    for name in ("ERROR", "INTERNAL_ERROR", "WARNING", "INFO", "VERBOSE"):
        setattr(module.ILogger, name, f"Severity.{name}")
    for name in names:
        if name.isidentifier() and not hasattr(module, name) and name in _ENUMERATIONS:
            members = {each: _Member(at, name, each) for at, each in enumerate(sorted(names[name]))}
            setattr(module, name, type(name, (), members))
    for name, base in _CLASSES.items():
        gated = type(name, (_Gated, base), {"names": names[name], "trt": module})
        setattr(module, name, gated)
    return module


class _Member(int):
    """A member of an enumeration."""

    def __new__(cls, value: int, kind: str, name: str) -> _Member:
        member = super().__new__(cls, value)
        member.kind, member.name = kind, name
        return member

    kind: str
    name: str

    def __repr__(self) -> str:
        return f"{self.kind}.{self.name}"


class _Gated:
    """A class that has the public names of its generation and no others."""

    names: set[str]
    trt: Any

    def __getattribute__(self, name: str) -> Any:
        own = name.startswith("_") or name in ("names", "trt")
        if not own and name not in self.names:
            raise AttributeError(f"TensorRT {self.trt.__version__}: {type(self).__name__} has no {name}")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.names:
            raise AttributeError(f"TensorRT {self.trt.__version__}: {type(self).__name__} has no {name}")
        super().__setattr__(name, value)


class Builder:
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, self.trt.ILogger)
        self._logger = logger
        self.num_DLA_cores = self.trt.behaviour.dla_cores

    def create_network(self, flags: int = 0) -> Any:
        explicit = getattr(self.trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        assert self.trt.__version__[:2] != "8." or flags & 1 << int(explicit), "implicit batch"
        network = self.trt.INetworkDefinition()
        network._onnx = None
        return network

    def create_builder_config(self) -> Any:
        return self.trt.IBuilderConfig()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        behaviour = self.trt.behaviour
        assert network._onnx is not None, "nothing was parsed"
        problem = "told to find nothing" if behaviour.fails else _problem(self.trt, network, config)
        if problem:
            self._logger.log(self.trt.ILogger.ERROR, problem)
            return None
        record = _record(self.trt, network, config)
        behaviour.built.append(record)
        assert config._cache is None or config._cache() is not None, "the timing cache is gone before it is used"
        config._timing = config._timing and config._timing + b"+"
        return _host_memory(self.trt, _PLAN + json.dumps(record).encode() + b"\n" + network._onnx)


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags: set[str] = set()
        self._workspace: int | None = None
        self._timing = b""
        self._cache: Any = None

    def set_flag(self, flag: _Member) -> None:
        assert flag.kind == "BuilderFlag"
        self._flags.add(flag.name)

    def set_memory_pool_limit(self, pool: _Member, count: int) -> None:
        assert pool.name == "WORKSPACE"
        self._workspace = count

    def create_timing_cache(self, content: bytes) -> Any:
        cache = self.trt.ITimingCache()
        cache._content = bytes(content)
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        mine = f"timings of {self.trt.__version__}".encode()
        if cache._content and not cache._content.startswith(mine):
            return False
        self._timing, self._cache = cache._content or mine, weakref.ref(cache)
        return True

    def get_timing_cache(self) -> Any:
        return self.create_timing_cache(self._timing)

    def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802
        assert self.default_device_type.name == "DLA", "asked before it was chosen"
        return layer._operator in ("Conv", "Relu", "MaxPool", "Add", "Concat")


class INetworkDefinition:
    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class ILayer:
    num_outputs = 1

    def set_output_type(self, index: int, kind: _Member) -> None:
        assert index == 0
        self._output_type = kind.name


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse(self, content: bytes) -> bool:
        assert self._network._onnx is None, "parsed twice"
        try:
            model = onnx.load_from_string(bytes(content))
        except Exception as error:
            return self._refuse(str(error))
        for output in model.graph.output:
            if not output.type.tensor_type.elem_type:
                return self._refuse(f"output {output.name}: UNSUPPORTED_GRAPH: data type 0")
        for node in model.graph.node:
            if node.op_type in self.trt.behaviour.refuses:
                return self._refuse(f"In node {node.name} ({node.op_type}): UNSUPPORTED_NODE")
        self._network._onnx = bytes(content)
        self._network._layers = [_layer(self.trt, node) for node in model.graph.node]
        return True

    def _refuse(self, why: str) -> bool:
        error = self.trt.ParserError()
        error._why = why
        self._errors.append(error)
        return False


class ParserError:
    def desc(self) -> str:
        return str(self._why)


class ITimingCache:
    def serialize(self) -> Any:
        return _host_memory(self.trt, self._content)


class Runtime:
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, self.trt.ILogger)
        self._logger = logger
        self.DLA_core = -1

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        if not content.startswith(_PLAN):
            self._logger.log(self.trt.ILogger.ERROR, "magicTag does not match")
            return None
        told, _, graph = content[len(_PLAN) :].partition(b"\n")
        record = json.loads(told)
        if record["version"] != self.trt.__version__ or record["dla"] not in (None, self.DLA_core):
            self._logger.log(self.trt.ILogger.ERROR, f"the plan is of {record['version']}, DLA core {record['dla']}")
            return None
        engine = self.trt.ICudaEngine()
        engine._record, engine._onnx = record, graph
        engine._native = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        sides = (("Input", engine._native.get_inputs()), ("Output", engine._native.get_outputs()))
        engine._ports = [(each, side) for side, ports in sides for each in ports]
        return engine


class ICudaEngine:
    device_memory_size = device_memory_size_v2 = 123456

    @property
    def num_bindings(self) -> int:
        return len(self._ports)

    num_io_tensors = num_bindings

    def get_binding_name(self, index: int) -> str:
        return str(self._ports[index][0].name)

    get_tensor_name = get_binding_name

    def binding_is_input(self, index: int) -> bool:
        return bool(self._ports[index][1] == "Input")

    def get_binding_shape(self, index: int) -> tuple[int, ...]:
        return tuple(self._ports[index][0].shape)

    def get_binding_dtype(self, index: int) -> Any:
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
        return getattr(self.trt.DataType, kinds[self._ports[index][0].type])

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if self._at(name)[1] == "Input" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._at(name)[0].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return ICudaEngine.get_binding_dtype(self, self._ports.index(self._at(name)))

    def create_execution_context(self) -> Any:
        context = self.trt.IExecutionContext()
        context._engine, context._addresses, context.profiler = self, {}, None
        return context

    def create_engine_inspector(self) -> Any:
        inspector = self.trt.EngineInspector()
        inspector._engine = self
        return inspector

    def _at(self, name: str) -> Any:
        return next(port for port in self._ports if port[0].name == name)


class IExecutionContext:
    def execute_async_v2(self, bindings: list[int], stream_handle: int, input_consumed: Any = None) -> bool:
        assert all(type(address) is int for address in bindings)
        return self._enqueue(
            {port[0].name: at for port, at in zip(self._engine._ports, bindings, strict=True)}, stream_handle
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        self._engine._at(name)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        return self._enqueue(self._addresses, stream_handle)

    def _enqueue(self, addresses: dict[str, int], stream: int) -> bool:
        gpu = FakeCuda.streams[stream]
        (given, _), *taken = self._engine._ports
        source, goals = gpu.memory[addresses[given.name]], [gpu.memory[addresses[port.name]] for port, _ in taken]

        def work() -> None:
            batch = source.view(np.float32).reshape(given.shape)
            outputs = self._engine._native.run(None, {given.name: batch})
            for (port, _), output, goal in zip(taken, outputs, goals, strict=True):
                np.copyto(goal, (output + self._bend(port.name)).astype(np.float32).reshape(-1).view(np.uint8))

        gpu.queue.append(work)
        for layer in json.loads(inspected(self._engine._record))["Layers"] if self.profiler else ():
            self.profiler.report_layer_time(layer["Name"], 0.5 if layer["LayerType"] == "Reformat" else 1.0)
        return True

    def _bend(self, name: str) -> float:
        behaviour = self.trt.behaviour
        breaks = name == behaviour.breaks and "INT8" in self._engine._record["flags"]
        return 100.0 if breaks else behaviour.bends


class EngineInspector:
    def get_engine_information(self, kind: _Member) -> str:
        assert kind.name == "JSON"
        assert self._engine._record["verbosity"] == "DETAILED", "else it would say names alone"
        assert self.execution_context._engine is self._engine
        return inspected(self._engine._record)


class IHostMemory:
    pass


_CLASSES: dict[str, type] = {
    each.__name__: each
    for each in (Builder, IBuilderConfig, INetworkDefinition, ILayer, OnnxParser, ParserError, ITimingCache, Runtime)
}
_CLASSES.update({each.__name__: each for each in (ICudaEngine, IExecutionContext, EngineInspector)})
_ENUMERATIONS = (
    "BuilderFlag",
    "DataType",
    "DeviceType",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
    "TensorIOMode",
)


def _host_memory(trt: Any, content: bytes) -> Any:
    """Bytes that are read through the buffer protocol, as TensorRT's own are."""
    return bytearray(content)


def _layer(trt: Any, node: onnx.NodeProto) -> Any:
    layer = trt.ILayer()
    layer.name, layer._operator = node.name, node.op_type
    return layer


def _problem(trt: Any, network: Any, config: Any) -> str | None:
    """What TensorRT would not build of what it was told."""
    operators = {layer._operator for layer in network._layers}
    typed, quantized = int(trt.__version__.split(".")[0]) >= 11, "QuantizeLinear" in operators
    calibrator = getattr(config, "int8_calibrator", None) if not typed else None
    if getattr(config, "profiling_verbosity", None) is None:
        return "no verbosity was set, so that nothing could be seen of the engine"
    if quantized and not typed and "INT8" not in config._flags:
        return "Q/DQ without the flag INT8"
    if quantized and calibrator is not None:
        return "Q/DQ and a calibrator are mutually exclusive"
    if "INT8" in config._flags and not quantized and calibrator is None:
        return "INT8 without scales: neither Q/DQ nor a calibrator"
    on_dla = _on_dla(config)
    if on_dla and quantized and not typed:
        return "the DLA takes no Q/DQ"
    layers = network._layers
    if on_dla and "GPU_FALLBACK" not in config._flags and not all(config.can_run_on_DLA(each) for each in layers):
        return "a layer that the DLA does not take, and no fallback"
    if calibrator is not None:
        assert isinstance(calibrator, trt.IInt8EntropyCalibrator2)
        assert calibrator.get_batch_size() == 1
        scales = from_text(calibrator.read_calibration_cache().decode("utf-8"))
        read = {name for node in onnx.load_from_string(network._onnx).graph.node for name in node.input}
        if not read & scales.keys():
            return "Calibration failure occurred with no scaling factors detected"
    return None


def _on_dla(config: Any) -> bool:
    device = config.__dict__.get("default_device_type")
    return device is not None and device.name == "DLA"


def _record(trt: Any, network: Any, config: Any) -> dict[str, Any]:
    """What the engine is made of, as the inspector will tell it."""
    told = config.__dict__
    calibrated = told.get("int8_calibrator") is not None
    operators = [layer._operator for layer in network._layers]
    half = {layer.name for layer in network._layers if "precision" in layer.__dict__ and layer.precision.name == "HALF"}
    return {
        "version": trt.__version__,
        "flags": sorted(config._flags),
        "workspace": told.get("max_workspace_size", config._workspace),
        "level": told.get("builder_optimization_level"),
        "verbosity": told["profiling_verbosity"].name,
        "dla": told.get("DLA_core") if _on_dla(config) else None,
        "int8": trt.behaviour.int8_runs and (calibrated or "QuantizeLinear" in operators),
        "half": sorted(half),
        "layers": [[each.name, each._operator] for each in network._layers],
        "timings": bool(config._timing),
    }


def inspected(record: dict[str, Any]) -> str:
    """The inspector's JSON for a fake engine, in the words of its generation."""
    floating = "FP16" if "FP16" in record["flags"] else "FP32"
    return json.dumps({"Layers": list(_told_layers(record, floating)), **_told_ports(record)})


def _told_layers(record: dict[str, Any], floating: str) -> Iterator[dict[str, Any]]:
    words = {"INT8": "Int8", "FP16": "Half", "FP32": "Float"}
    for name, operator in record["layers"]:
        if operator in ("QuantizeLinear", "DequantizeLinear"):
            continue
        kind = "INT8" if record["int8"] and operator == "Conv" and name not in record["half"] else floating
        layer: dict[str, Any] = {"Name": name, "LayerType": "CaskConvolution" if operator == "Conv" else operator}
        tensor = {"Name": f"{name}_output", "Location": "Device", "Dimensions": [1, 8, 4, 4], **_typed(record, kind)}
        layer.update(Inputs=[tensor], Outputs=[tensor], TacticValue="0x1")
        if operator == "Conv":
            layer.update(Weights={"Type": words[kind], "Count": 64}, Bias={"Type": "Float", "Count": 8})
        if record["dla"] is not None and operator in ("Conv", "Relu"):
            layer.update(Name=f"{{ForeignNode[{name}]}}", LayerType="DLA")
            layer.pop("Weights", None)
        yield layer
    yield {
        "Name": "Reformatting CopyNode for Output Tensor 0",
        "LayerType": "Reformat",
        "Outputs": [{"Name": "out", "Dimensions": [1, 8], **_typed(record, "FP32")}],
    }


def _typed(record: dict[str, Any], kind: str) -> dict[str, str]:
    """How a generation tells a tensor's type."""
    words = {"INT8": "Int8", "FP16": "Half", "FP32": "Float"}
    if record["version"].startswith("11"):
        return {"Format": f"Row major linear {kind} format (kLINEAR)", "DataType": words[kind]}
    told = {"INT8": "Thirty-two wide channel vectorized row major Int8 format", "FP16": "Row major linear FP16 format"}
    return {"Format/Datatype": told.get(kind, "Row major linear FP32")}


def _told_ports(record: dict[str, Any]) -> dict[str, Any]:
    if record["version"].startswith("11"):
        return {"I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "Float"}]}
    return {"Bindings": ["images", "output0"]}
