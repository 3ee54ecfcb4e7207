"""A fake of TensorRT's Python bindings in one version, which computes with ONNX Runtime.

Members that a class lacks in a version raise AttributeError, by the names in tensorrt_names.json. Refusals of parser
and builder, and their messages, are in fake_tensorrt_parser and fake_tensorrt_builder. The fake also checks the order
of calls, and that memory belongs to the caller. An engine computes the graph that was passed to the builder.
"""

from __future__ import annotations

import json
import sys
import weakref
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt_builder import ON_DLA, Behaviour, Request, layer_name, plan
from fake_tensorrt_graph import Graph
from fake_tensorrt_parser import parse_error
from fake_tensorrt_runtime import PLAN, EngineInspector, ICudaEngine, IExecutionContext, Runtime, logged
from tensorrt_tables import VERSIONS, names_of, numbers, recorded

from edgekd.agent.runtimes import cuda
from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.core.formats.calibration_cache import from_text

__all__ = ["VERSIONS", "Behaviour", "FakeCuda", "fake", "installed", "names_of"]
SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
"""Severities in the order of their values, the most severe first."""
MAX_RANGE = 127
"""Dynamic range of a tensor divided by its scale."""


def installed(monkeypatch: pytest.MonkeyPatch, version: str, **options: Any) -> Behaviour:
    """Install the fakes of a TensorRT version and of CUDA as modules; with `times` also the fake's clock."""
    behaviour = Behaviour(**options)
    module = fake(version, behaviour)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(cuda, "opened", FakeCuda)
    if behaviour.times:
        monkeypatch.setattr(TensorRt, "clock", lambda _: behaviour.elapsed_ms / 1000)
    return behaviour


def fake(version: str, behaviour: Behaviour) -> ModuleType:
    """Return the module `tensorrt` of a version."""
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None, origin="fake")
    module.__version__ = version
    module.behaviour = behaviour
    names = names_of(version)
    for name in _ENUMERATIONS:
        if name in names:
            members = {each: _Member(index, name, each) for index, each in enumerate(sorted(names[name]))}
            setattr(module, name, type(name, (), members))
    for name in _OVERRIDDEN:
        if name in names:
            setattr(module, name, _Overridden(name, (), {}))
    severities = {each: _Member(index, "Severity", each) for index, each in enumerate(SEVERITIES)}
    module.ILogger.Severity = type("Severity", (), severities)
    for name, severity in severities.items():
        setattr(module.ILogger, name, severity)
    for name, base in _CLASSES.items():
        settable = {each[:-1] for each in recorded(version)[name] if each.endswith("=")}
        setattr(module, name, type(name, (_Gated, base), {"names": names[name], "settable": settable, "trt": module}))
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
        return f"<{self.kind}.{self.name}: {int(self)}>"


class _Overridden(type):
    """A class whose methods users override. Like pybind11, it requires a call of its constructor."""

    def __new__(mcs, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> _Overridden:
        made = super().__new__(mcs, name, bases, members)
        if not bases:
            made.__init__ = lambda self: setattr(self, "_constructed", True)  # type: ignore[misc,assignment]
        return made

    def __call__(cls, *arguments: Any) -> Any:
        made = super().__call__(*arguments)
        if not getattr(made, "_constructed", False):
            base = cls.__mro__[-2].__name__
            raise TypeError(f"tensorrt.tensorrt.{base}.__init__() must be called when overriding __init__")
        return made


class _Gated:
    """A class with the public names of its version only."""

    names: set[str]
    settable: set[str]
    trt: Any

    def __getattribute__(self, name: str) -> Any:
        own = name.startswith("_") or name in ("names", "settable", "trt")
        if not own and name not in self.names:
            raise AttributeError(f"TensorRT {self.trt.__version__}: {type(self).__name__} has no {name}")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.names:
            raise AttributeError(f"TensorRT {self.trt.__version__}: {type(self).__name__} has no {name}")
        if not name.startswith("_") and name not in self.settable:
            raise AttributeError(f"can't set attribute {name}")
        super().__setattr__(name, value)

    def _typed(self) -> bool:
        return numbers(self.trt.__version__) >= (11,)


# -------------------------------------------------------------------------------------------------- networks and graphs


class INetworkDefinition:
    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]


class ILayer:
    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    def set_output_type(self, index: int, dtype: _Member) -> None:
        assert index < len(self._outputs)
        self._output_type = dtype.name


class ITensor:
    is_execution_tensor = True

    def set_dynamic_range(self, min: float, max: float) -> bool:  # noqa: A002 the bindings' names
        self._range = (min, max)
        return True


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors, self._log = network, [], logged(self.trt, logger)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        return OnnxParser.parse(self, Path(model).read_bytes())

    def parse(self, model: bytes, path: str | None = None) -> bool:
        assert self._network._onnx is None, "parsed twice"
        assert self._typed() or self._network._explicit_batch, "only networks with an explicit batch dimension"
        try:
            parsed = onnx.load_from_string(bytes(model))
        except Exception as error:
            return self._refuse("MODEL_DESERIALIZE_FAILED", -1, str(error))
        for output in parsed.graph.output:
            if not output.type.tensor_type.elem_type:
                return self._refuse("UNSUPPORTED_GRAPH", -1, f"output {output.name}: UNSUPPORTED_GRAPH: data type 0")
        for node in Graph(parsed).nodes:
            self._log("VERBOSE", f"Parsing node: {node.name} [{node.op_type}]")
        error = parse_error(parsed, self.trt.__version__, self.trt.behaviour.refuses)
        if error:
            if error.logged:
                self._log("ERROR", error.logged)
            return self._refuse(error.code, error.node, error.description)
        self._keep(bytes(model), parsed)
        return True

    def _keep(self, content: bytes, model: onnx.ModelProto) -> None:
        network, tensors = self._network, {}
        network._onnx = content

        def tensor(name: str) -> Any:
            if name not in tensors:
                tensors[name] = made = self.trt.ITensor()
                made._range = None
                object.__setattr__(made, "name", name)
            return tensors[name]

        graph = Graph(model)
        network._inputs = [tensor(name) for name in graph.inputs]
        shapes = {each.name: each.type.tensor_type.shape.dim for each in model.graph.input}
        for each in network._inputs:
            each.shape = tuple(side.dim_value or -1 for side in shapes[each.name])
        network._layers = []
        for node in graph.nodes:
            layer = self.trt.ILayer()
            layer.name, layer._operator = layer_name(node, self.trt.__version__), node.op_type
            layer._outputs = [tensor(name) for name in node.output]
            network._layers.append(layer)
        network._tensors = tensors

    def _refuse(self, code: str, node: int, description: str) -> bool:
        error = self.trt.ParserError()
        error._code, error._node, error._description = code, node, description
        self._errors.append(error)
        return False


class ParserError:
    def code(self) -> Any:
        return _Member(0, "ErrorCode", self._code)

    def desc(self) -> str:
        return str(self._description)

    def node(self) -> int:
        return int(self._node)


# ---------------------------------------------------------------------------------------------------------- the builder


class Builder:
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, self.trt.ILogger)
        self._log = logged(self.trt, logger)
        self._log("INFO", "[MemUsageChange] Init CUDA: CPU +3, GPU +0, now: CPU 31, GPU 1000 (MiB)")

    @property
    def num_DLA_cores(self) -> int:  # noqa: N802 TensorRT's own name
        return int(self.trt.behaviour.dla_cores)

    def create_network(self, flags: int = 0) -> Any:
        explicit = getattr(self.trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        network = self.trt.INetworkDefinition()
        network._onnx = None
        network._explicit_batch = numbers(self.trt.__version__) >= (10,) or bool(flags & 1 << int(explicit))
        return network

    def create_optimization_profile(self) -> Any:
        return OptimizationProfile()

    def create_builder_config(self) -> Any:
        config = self.trt.IBuilderConfig()
        config._log = self._log
        return config

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        behaviour = self.trt.behaviour
        assert network._onnx is not None, "nothing was parsed"
        request = _request(self.trt, network, config)
        largest = _largest_batch(network, config, on_dla=request.dla_core is not None)
        if largest == 0:
            self._log(
                "ERROR",
                "4: [network.cpp::validate::2965] Error Code 4: Internal Error (Network has dynamic or "
                "shape inputs, but no optimization profile has been defined.)",
            )
            return None
        result = plan(onnx.load_from_string(network._onnx), request, behaviour, self._log)
        config._timing = config._timing and config._timing + b"+"  # layers are timed even if the build fails
        if result is None:
            return None
        record = _record(network, config, request)
        record["batch"] = largest
        record.update(missing=list(result.missing), precisions=dict(result.precisions), on_dla=list(result.on_dla))
        record["engine"] = [asdict(layer) for layer in result.layers]
        behaviour.built.append(record)
        assert config._cache is None or config._cache() is not None, "the timing cache is gone before it is used"
        use = "Global timing cache in use. Profiling results in this builder pass will be stored."
        self._log(
            "INFO", use if config._timing else use.replace("Global", "Local").replace("be stored", "not be stored")
        )
        return bytearray(PLAN + json.dumps(record).encode() + b"\n" + network._onnx)


class OptimizationProfile:
    """Minimum, optimum and maximum shape of each input."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 the bindings' names
        assert all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True))
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


def _largest_batch(network: Any, config: Any, *, on_dla: bool) -> int | None:
    """Return the largest batch of a network with a dynamic batch axis; None for a fixed one, 0 without a profile."""
    (port,) = network._inputs
    if -1 not in port.shape:
        return None
    profile = config._profile
    if profile is None or on_dla:
        return 0
    assert profile.shapes[port.name][0][1:] == port.shape[1:]
    return int(profile.shapes[port.name][2][0])


class IBuilderConfig:
    def __init__(self) -> None:
        self._profile: Any = None
        self._flags: set[str] = set()
        self._workspace: int | None = None
        self._timing = b""
        self._cache: Any = None

    def set_flag(self, flag: _Member) -> None:
        assert flag.kind == "BuilderFlag"
        pair = {"PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS"}
        if flag.name in pair and self._flags & pair - {flag.name}:
            other = "kOBEY" if flag.name.startswith("PREFER") else "kPREFER"
            place, text = "builderConfig.cpp::setFlag::65", "API Usage Error (Parameter check failed at: "
            reason = f"k{flag.name} cannot be set if {other}_PRECISION_CONSTRAINTS is set."
            self._log("ERROR", f"3: [{place}] Error Code 3: {text}{place}. {reason})")
            return
        self._flags.add(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profile = profile
        return 0

    def clear_flag(self, flag: _Member) -> None:
        self._flags.discard(flag.name)

    def get_flag(self, flag: _Member) -> bool:
        return flag.name in self._flags

    def set_memory_pool_limit(self, pool: _Member, pool_size: int) -> None:
        assert pool.kind == "MemoryPoolType"
        if pool.name == "WORKSPACE":
            self._workspace = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        if serialized_timing_cache == b"nonsense":
            return None
        cache = self.trt.ITimingCache()
        cache._content = bytes(serialized_timing_cache)
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
        return layer._operator in ON_DLA


class ITimingCache:
    def serialize(self) -> Any:
        return bytearray(self._content)


def _request(trt: Any, network: Any, config: Any) -> Request:
    """Return the build request that network and config describe."""
    settings = config.__dict__
    calibrator, cache = settings.get("int8_calibrator"), None
    if calibrator is not None:
        assert isinstance(calibrator, trt.IInt8EntropyCalibrator2)
        assert calibrator.get_batch_size() == 1
        cache = from_text(bytes(calibrator.read_calibration_cache()).decode("utf-8"))
    device = settings.get("default_device_type")
    on_dla = device is not None and device.name == "DLA"
    layers = network._layers
    ranges = {name: each._range for name, each in network._tensors.items() if each._range}
    return Request(
        trt.__version__,
        frozenset(config._flags),
        cache,
        {name: max(map(abs, limits)) / MAX_RANGE for name, limits in ranges.items()},
        frozenset(each.name for each in layers if _precision(each) == "HALF"),
        settings.get("DLA_core", 0) if on_dla else None,
    )


def _precision(layer: Any) -> str | None:
    """Return the precision that was set for a layer, None if none was."""
    return layer.precision.name if "precision" in layer.__dict__ else None


def _record(network: Any, config: Any, request: Request) -> dict[str, Any]:
    """Return the settings of a build, for the test and for the engine."""
    settings = config.__dict__
    verbosity = settings.get("profiling_verbosity")
    return {
        "version": request.version,
        "flags": sorted(request.flags),
        "workspace": settings.get("max_workspace_size", config._workspace),
        "level": settings.get("builder_optimization_level"),
        "verbosity": verbosity.name if verbosity is not None else "LAYER_NAMES_ONLY",
        "dla": request.dla_core,
        "half": sorted(request.half),
        "full": sorted(each.name for each in network._layers if _precision(each) == "FLOAT"),
        "layers": [[each.name, each._operator] for each in network._layers],
        "timings": bool(config._timing),
    }


_CLASSES: dict[str, type] = {
    each.__name__: each
    for each in (
        *(Builder, IBuilderConfig, INetworkDefinition, ILayer, ITensor, OnnxParser, ParserError, ITimingCache),
        *(Runtime, ICudaEngine, IExecutionContext, EngineInspector),
    )
}
_OVERRIDDEN = ("ILogger", "IProfiler", "IInt8EntropyCalibrator2")
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
